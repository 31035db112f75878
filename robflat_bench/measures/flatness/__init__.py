"""Flatness as the paper defines it: average and worst case."""
