"""The Azerbaijani language: lexicon, morphology, and a grammar that writes small stories."""
