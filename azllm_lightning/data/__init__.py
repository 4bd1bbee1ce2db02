"""From text to tokens, shards and batches."""
