#!/usr/bin/env bash
# Expected: `details` of WeightWatcher 0.7.7 has for each layer `norm` and `spectral_norm`, the Frobenius and the spectral norm of
#   its weights, and `stable_rank`, ||W||_F^2 / ||W||_2^2, which is at most the rank.
# What happens: both norms are squares: a linear layer's `spectral_norm` is sigma_max^2 and its `norm` is ||W||_F^2, while `sv_max` is
#   sigma_max. A convolution is cut into one matrix per place of its kernel; its `spectral_norm` is *half* of the largest
#   sigma^2 of any of these, its `norm` half of the sum over all of them, and their quotient, a `stable_rank` of 51.0 for nine
#   matrices of rank 16, is the stable rank of nothing: neither of the kernel as a matrix (16.0) nor of any part of it.
# Why it matters: the product of spectral norms and the sum of stable ranks are measures of generalization. From these
#   columns the former is squared, and small by a factor of its own at each convolution; the latter grows with the kernel.
# Guess before the run: the squares, since the tool looks at eigenvalues of W'W. Right; the half and the rank above the rank: missed.
# Seen: 2026-11-30, Python 3.11, pip 23.2, torch 2.14.1, numpy 2.4.6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/environment"
"$work/environment/bin/pip" install --quiet --disable-pip-version-check \
  "torch==2.14.1" "torchvision==0.29.1" "numpy==2.4.6" "weightwatcher==0.7.7" 2>/dev/null

cd "$work"
environment/bin/python - 2>/dev/null <<'PY' | tee seen
import importlib.metadata
import logging

import torch
import weightwatcher
from torch import nn

logging.disable()
torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Flatten(), nn.Linear(80, 60))
nn.init.normal_(network[2].weight, std=0.4)
details = weightwatcher.WeightWatcher(model=network).analyze(min_evals=10)
print("weightwatcher", importlib.metadata.version("weightwatcher"), "torch", importlib.metadata.version("torch"))


def line(name, spectral, total, rank):
    print(f"{name:40} spectral {spectral:7.4f}, norm {total:8.4f}, stable rank {rank:7.3f}")


def squared(name, matrices):
    sigma = torch.stack([torch.linalg.svdvals(matrix) for matrix in matrices]).detach() ** 2
    line(name, float(sigma.max()), float(sigma.sum()), float(sigma.sum() / sigma.max()))


kernel = network[0].weight
squared("linear, squares:", [network[2].weight])
line("linear, weightwatcher:", *(float(details[key][1]) for key in ("spectral_norm", "norm", "stable_rank")))
squared("convolution as a matrix, squares:", [kernel.flatten(1)])
squared("its nine 32 x 16 matrices, squares:", [kernel[:, :, i, j] for i in range(3) for j in range(3)])
line("convolution, weightwatcher:", *(float(details[key][0]) for key in ("spectral_norm", "norm", "stable_rank")))
PY

part() { grep "^$1" seen | sed "s/.*$2 *\([0-9.]*\).*/\1/"; }
near() { awk -v a="$1" -v b="$2" 'BEGIN { d = a - b; exit !(d < 0.01 && d > -0.01) }'; }
near "$(part "linear, weight" spectral)" "$(part "linear, squares" spectral)" || { echo "CHANGED: spectral_norm is no square"; exit 1; }
half=$(awk -v a="$(part "its nine" spectral)" 'BEGIN { print a / 2 }')
near "$(part "convolution, weight" spectral)" "$half" || { echo "CHANGED: spectral_norm of convolutions"; exit 1; }
awk -v r="$(part "convolution, weight" "stable rank")" 'BEGIN { exit !(r > 32) }' || { echo "CHANGED: stable_rank of convolutions"; exit 1; }
