"""Runs: from a method to its record, an evaluation, or a sweep over a study."""
