"""What can be cut from a language model, found from its configuration and shapes, and the folder that is left."""
