"""The training step and loop, resuming, monitoring, speed."""
