"""Lightning: the module, its optimizer and schedule, the run folder, and checkpoints that survive."""
