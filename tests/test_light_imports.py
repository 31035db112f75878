"""Commands that only describe import neither torch nor anything else heavy."""

import json
import subprocess
import sys

HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "pandas",
    "scipy",
    "sklearn",
    "pyarrow",
    "PIL",
    "huggingface_hub",
    "matplotlib",
    "curvlinops",
)
COMMANDS = [
    ["--help"],
    ["--version"],
    ["run", "--help"],
    ["sweep", "--help"],
    ["evaluate", "--help"],
    ["experiment", "--help"],
    ["landscape", "--help"],
    ["completion", "bash"],
    ["list", "methods"],
    ["list", "modifiers"],
    ["list", "studies"],
    ["list", "attacks", "--json"],
    ["list", "measures"],
    ["list", "backbones"],
    ["list", "datasets"],
    ["list", "launchers"],
    ["list", "protocols"],
    ["list", "experiments"],
    ["info", "trades"],
    ["info", "landscape"],
    ["info", "awp"],
    ["info", "paper-digits"],
    ["info", "average-case"],
    ["info", "timm"],
    ["info", "digits-linf"],
    ["info", "cifar10"],
    ["info", "local"],
    ["plugin", "list"],
    ["plugin", "list", "--json"],
    ["plugin", "new", "robflat-light"],
    ["results", "ls"],
    ["leaderboard", "--help"],
]
# One process for all of them, in this order: whatever is imported stays, so the first offender is named.
PROGRAM = """
import contextlib, io, json, sys
heavy, commands = json.loads(sys.argv[1])
from robflat_bench.cli import main
import robflat_bench.api
for command in commands:
    sys.argv = ["robflat-bench", *command]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            main()
        except SystemExit as ended:
            assert ended.code == 0, (command, ended.code)
    assert out.getvalue().strip(), command
    loaded = sorted(set(heavy) & set(sys.modules))
    if loaded:
        sys.exit(f"{' '.join(command)} imported {', '.join(loaded)}")
"""


def test_commands_that_only_describe_import_nothing_heavy(child_environment, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([HEAVY, COMMANDS])],
        env=child_environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
