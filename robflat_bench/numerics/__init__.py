"""Networks as numbers: weights and weight space, counted passes, folded and compiled networks."""
