"""The configs that Hydra composes; a package, so that they are found wherever they are installed."""
