"""What differs between file systems: locks, and which writes reach the disk."""
