"""One session of a run: resolve, open, attempt, report."""
