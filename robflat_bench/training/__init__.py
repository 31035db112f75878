"""Training: the one loop, its schedule and optimizer tables, checkpoints and observers."""
