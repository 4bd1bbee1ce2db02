"""The model in pure torch: architecture and loss."""
