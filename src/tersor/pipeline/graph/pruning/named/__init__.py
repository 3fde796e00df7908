"""A pruned network by the names of the model's tensors: saved without a pickle, and put into the model's own class."""
