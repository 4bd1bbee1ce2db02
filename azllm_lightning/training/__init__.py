"""How a run is trained: the Lightning module, optimizers, schedule, hardware, batch sizes and
saving.
"""
