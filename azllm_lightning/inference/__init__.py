"""A model at work: sampling, decoding with a cache, scoring."""
