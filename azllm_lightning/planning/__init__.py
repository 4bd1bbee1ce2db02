"""What to train: the rules of a recipe, the law of the loss they give, and its forecast."""
