#!/usr/bin/env bash
# Expected: loss-landscapes 3.0.6 evaluates a network along a random line or plane in weight space; `distance` is the
#   "maximum distance in parameter space from the start point", and random directions of many weights are nearly orthogonal.
# What happens: a line ends ||w|| / distance away from the start: twice the distance gives half the line, and the default of 0.1
#   leads ten times the norm of the weights away. And the numbers of a random direction are all positive
#   (uniform in [0, 1]), so any two directions have a cosine of about 3/4: every line leads much the same way, upward in every
#   weight. The network itself is moved and stays at the end of the line unless `deepcopy_model=True`.
# Why it matters: pictures and slopes along "random filter-normalised directions" are evidence about flat minima. Here the
#   axis is the reciprocal of its label, and ten draws are nearly one draw, so that their spread says little.
# Guess before the run: the distance is measured in norms of the weights, so 0.1 is a tenth of ||w||. Wrong: it divides.
# Seen: 2026-11-30, Python 3.11, pip 23.2, torch 2.14.1, numpy 2.4.6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/environment"
"$work/environment/bin/pip" install --quiet --disable-pip-version-check "torch==2.14.1" "numpy==2.4.6" "loss-landscapes==3.0.6" 2>/dev/null

cd "$work"
environment/bin/python - <<'PY' | tee seen
import importlib.metadata

import torch
from loss_landscapes import random_line
from loss_landscapes.metrics import Metric
from torch import nn
from torch.nn.utils import parameters_to_vector

STEPS = 20


class Visited(Metric):
    """Keeps the weights at every point of the line."""

    def __init__(self):
        super().__init__()
        self.points = []

    def __call__(self, wrapped):
        self.points.append(parameters_to_vector(wrapped.modules[0].parameters()).detach().clone())
        return 0.0


def line(network, **options):
    """The weights at every point of a line, and how far the network itself has moved."""
    start = parameters_to_vector(network.parameters()).detach().clone()
    visited = Visited()
    random_line(network, visited, steps=STEPS, **options)
    moved = parameters_to_vector(network.parameters()).detach() - start
    return torch.stack(visited.points) - start, float(moved.norm() / start.norm())


torch.manual_seed(0)
network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
norm = float(parameters_to_vector(network.parameters()).detach().norm())
print("loss-landscapes", importlib.metadata.version("loss-landscapes"), "torch", importlib.metadata.version("torch"))
for options in ({}, {"distance": 1}, {"distance": 2}, {"distance": 10}):
    points, _ = line(network, **options, deepcopy_model=True)
    print(f"distance {options.get('distance', 'by default')}: every weight goes up: {bool((points[-1] > 0).all())}, the line reaches {float(points.norm(dim=1).max()) / norm:.3f} norms of the weights")
for normalization in ("filter", "layer", None):
    ends = [line(network, distance=1, normalization=normalization, deepcopy_model=True)[0][-1] for _ in range(10)]
    ways = nn.functional.normalize(torch.stack(ends))
    cosines = (ways @ ways.T)[~torch.eye(10, dtype=torch.bool)]
    print(f"normalization {normalization}: cosines of ten random directions {float(cosines.min()):.2f} to {float(cosines.max()):.2f}")
print(f"after a line with the default deepcopy_model: the network has moved by {line(network, distance=1)[1]:.2f} norms")
PY

grep -q "^distance by default: .* reaches \(9\|10\)\.[0-9]* norms" seen || { echo "CHANGED: the default distance"; exit 1; }
grep -q "^distance 10: every weight goes up: True, the line reaches 0\.\(09\|10\)" seen || { echo "CHANGED: a longer distance is no shorter line"; exit 1; }
grep -q "^normalization filter: cosines of ten random directions 0\.[5-9]" seen || { echo "CHANGED: random directions differ"; exit 1; }
