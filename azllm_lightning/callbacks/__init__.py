"""Lightning callbacks: the history of a run, its diagnosis, and their display."""
