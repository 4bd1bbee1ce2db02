"""What watches a run: speed, health, the console, and the summary it leaves."""
