"""Configs for Hydra; a package, so that they are found wherever they are installed."""
