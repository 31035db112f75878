"""The kinds that `list` knows. `--help` reads this module, so it imports nothing."""

KINDS = (
    *("methods", "modifiers", "attacks", "measures", "backbones", "datasets", "launchers"),
    *("protocols", "studies", "experiments"),
)
