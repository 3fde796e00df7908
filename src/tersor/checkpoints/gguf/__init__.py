"""Language models as one GGUF file, for llama.cpp."""
