"""Azerbaijani: lexicon, morphology, a grammar that generates short stories, and minimal pairs."""
