"""`python -m robflat_bench` is the command line."""

from robflat_bench.cli import main

main()
