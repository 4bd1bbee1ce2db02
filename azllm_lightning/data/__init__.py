"""Text becomes tokens, shards and batches."""
