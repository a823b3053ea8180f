"""Bytes to Arrow and back, without I/O: what comes over a wire is checked here, and nowhere else."""
