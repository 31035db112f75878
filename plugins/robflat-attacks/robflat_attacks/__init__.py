"""torchattacks' and foolbox's attacks as components of robflat-bench."""
