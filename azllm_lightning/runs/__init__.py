"""What a run is on disk: its folder, its checkpoint files, its curves."""
