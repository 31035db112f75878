"""Networks as numbers: weights, weight space, passes, folded and compiled networks."""
