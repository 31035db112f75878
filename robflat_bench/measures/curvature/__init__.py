"""Curvature of the loss over the weights."""
