"""`python -m robflat_bench` is the command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is imported is one line, as it is later."""
    try:
        from robflat_bench.cli import main as command
    except KeyboardInterrupt:
        sys.stderr.write("robflat-bench: interrupted; run the same command again, it resumes\n")
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
