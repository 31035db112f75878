"""Evaluation: robustness and flatness of trained weights. No training code is called here."""
