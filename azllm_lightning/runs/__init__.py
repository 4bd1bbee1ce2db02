"""Runs on disk: folders, checkpoint files, curves."""
