"""What a model is on disk: checkpoints, Hugging Face folders, GGUF, plain state dicts."""
