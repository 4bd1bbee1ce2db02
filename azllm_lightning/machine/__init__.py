"""What this machine can do, measured: products, compiling, disk, data, steps, and a resume."""
