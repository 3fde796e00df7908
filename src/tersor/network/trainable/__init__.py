"""The trainable view of a network: a plain nn.Module, and back."""
