"""Flatness of the robust loss: average case and worst case."""
