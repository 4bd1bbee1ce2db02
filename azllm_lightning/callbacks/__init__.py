"""What watches a run: its history, the diagnosis of it, and the views of both."""
