"""The folder host: Hugging Face folders, block by block."""
