"""What becomes of runs that are killed, stopped, or whose files are damaged: each fault tried on real processes."""
