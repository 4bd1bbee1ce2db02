"""The model, in pure torch: its shape, its loss, its samples and its files."""
