"""Models on disk: checkpoints, Hugging Face folders, GGUF, state_dicts, model cards."""
