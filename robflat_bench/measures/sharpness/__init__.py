"""Sharpness: how far the loss rises around the weights."""
