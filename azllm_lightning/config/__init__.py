"""What can be set: one frozen dataclass per group of conf/, and the RunConfig that holds them."""
