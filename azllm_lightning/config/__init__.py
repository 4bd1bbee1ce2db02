"""The settings: one frozen dataclass per group of conf/, and the RunConfig that contains them."""
