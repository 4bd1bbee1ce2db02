"""A session of a run, in four stages: resolve, open, attempts, report."""
