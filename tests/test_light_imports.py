"""Commands that only describe import neither torch nor anything else heavy; the others import what they use."""

import json
import subprocess
import sys

from robflat_bench.config import recipe

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


def in_one_process(heavy, commands, environment, folder):
    command = [sys.executable, "-c", PROGRAM, json.dumps([heavy, commands])]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)


def test_commands_that_only_describe_import_nothing_heavy(child_environment, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([HEAVY, COMMANDS])],
        env=child_environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


UNUSED = (
    "torch._dynamo",
    "torch._inductor",
    "torch.fx.experimental.symbolic_shapes",
    "sympy",
    "torchvision",
    "timm",
    "pandas",
    "sklearn",
    "pyarrow",
    "PIL",
    "huggingface_hub",
    "matplotlib",
)
"""Neither training nor an evaluation on the embedded digits needs them."""
MEASURES = (
    "spectral-norm",
    "path-norm",
    "distance-from-init",
    "fisher-rao(coupling=frozen, steps=2)",
    "relative-flatness",
    "hessian-trace(probes=2)",
    "gradient-alignment",
    "probabilistic-error(draws=2)",
    "calibration",
    "pert-align",
    "soft-rank(probes=2, nodes=3)",
    "keskar(iterations=2)",
    "sam-sharpness",
    "margin",
    "local-lipschitz(steps=2)",
    "boundary-thickness(points=4, steps=2)",
)


def test_runs_and_evaluations_import_nothing_that_they_do_not_use(finished_copy, tiny, child_environment, tmp_path):
    protocol = ["--protocol", str(tiny), "--store", str(tmp_path), "--json"]
    runs = [["run", "--method", "at", "--set", f"recipe.optimizer={name}", *protocol] for name in recipe.OPTIMIZERS]
    measures = [word for measure in MEASURES for word in ("--measure", measure)]
    evaluation = ["evaluate", str(finished_copy.folder), *measures, "--examples", "10", *protocol]
    done = in_one_process(UNUSED, [*runs, evaluation], child_environment(), tmp_path)
    assert done.returncode == 0, done.stderr
