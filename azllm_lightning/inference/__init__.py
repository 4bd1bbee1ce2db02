"""A model in use: sampling, decoding with a cache, scoring texts and minimal pairs."""
