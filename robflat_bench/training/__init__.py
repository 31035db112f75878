"""Training: the one loop, its inputs, the composition of method and modifiers, schedules and saved states."""
