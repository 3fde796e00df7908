"""The module host: eager models, which keep the user's own class."""
