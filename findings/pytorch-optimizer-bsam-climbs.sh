#!/usr/bin/env bash
# Expected: `BSAM` of pytorch-optimizer 4.1.0, Bayesian SAM, lowers the loss; a learning rate of 0 leaves the weights where they are,
#   and its weight decay pulls them towards 0.
# What happens: `weight_decay` multiplies the *gradient*, in place of being added to it times the weights: the default of 1e-4 makes
#   the step down 10,000 times shorter, and 0 makes it 0. And the weights never come back from the two trial points of a
#   step, the random one and the one uphill: they are where the next step starts. So with the defaults the ascent is what is left.
# Why it matters: on a linear classifier that SGD would fit, 200 steps at the defaults raise the loss from 1.14 to 15.3 nats; so does
#   a learning rate of 0. With a "weight decay" of 1, a step of full length, the loss falls to 0.15. A sharpness-aware
#   optimizer that looks as if it did not suit a problem is an ascent there.
# Guess before the run: the loss rises at the defaults, and weights move at a learning rate of 0. Right.
# Seen: 2026-11-30, Python 3.11, pip 23.2, torch 2.14.1, numpy 2.4.6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/environment"
"$work/environment/bin/pip" install --quiet --disable-pip-version-check "torch==2.14.1" "numpy==2.4.6" "pytorch_optimizer==4.1.0" 2>/dev/null

cd "$work"
environment/bin/python - <<'PY' | tee seen
import importlib.metadata

import torch
from pytorch_optimizer import BSAM
from torch import nn

STEPS = 200
print("pytorch_optimizer", importlib.metadata.version("pytorch_optimizer"), "torch", importlib.metadata.version("torch"))
torch.manual_seed(0)
x = torch.randn(512, 20)
y = (x @ torch.randn(20, 3)).argmax(1)


def trained(**options):
    """The loss before and after, and the distance that the weights went."""
    torch.manual_seed(1)
    network = nn.Linear(20, 3)
    start = nn.utils.parameters_to_vector(network.parameters()).detach()
    optimizer = BSAM(network.parameters(), num_data=len(x), **options)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x), y)
        loss.backward()
        return loss

    before = closure().item()
    for _ in range(STEPS):
        optimizer.step(closure)
    moved = (nn.utils.parameters_to_vector(network.parameters()).detach() - start).norm().item()
    return before, closure().item(), moved


for options in ({}, {"lr": 0.0}, {"weight_decay": 0.0}, {"weight_decay": 1.0}):
    before, after, moved = trained(**options)
    print(f"options {options}: loss {before:.2f} before, {after:.2f} after {STEPS} steps; weights moved by {moved:.1f}")
PY

[ "$(wc -l < seen)" = 5 ] || { echo "CHANGED: it does not run"; exit 1; }
sed -n 's/.*: loss \([0-9.]*\) before, \([0-9.]*\) after .* moved by \([0-9.]*\)/\1 \2 \3/p' seen |
  awk 'NR <= 3 && $2 < 5 * $1 { print "CHANGED: the loss does not rise in line " NR; wrong = 1 }
       NR == 2 && $3 < 5 { print "CHANGED: a learning rate of 0 leaves the weights"; wrong = 1 }
       NR == 4 && $2 > $1 / 2 { print "CHANGED: a decay of 1 does not train"; wrong = 1 }
       END { exit wrong }'
