"""Inference: sampling, decoding with a KV cache, scoring texts and minimal pairs."""
