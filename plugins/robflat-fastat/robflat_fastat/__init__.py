"""Fast adversarial training for robflat-bench: NuAT, GAT and ZeroGrad."""
