"""Language models as single GGUF files for llama.cpp."""
