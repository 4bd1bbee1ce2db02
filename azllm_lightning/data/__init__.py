"""Data: from text to tokens, shards and batches."""
