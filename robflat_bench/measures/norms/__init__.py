"""Norms of weights and of their gradients."""
