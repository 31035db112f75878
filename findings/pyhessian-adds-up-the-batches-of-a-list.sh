#!/usr/bin/env bash
# Expected: `hessian(model, criterion, data=(x, y))` of PyHessian 0.1 is the Hessian of the loss on that batch, whatever other
#   objects of this class exist.
# What happens: the constructor accumulates into the parameters' `.grad` with a graph and keeps what it finds there. Of two
#   objects made one after the other the second is the Hessian of the *sum* of both losses, the third of all three, unless
#   eigenvalues were computed in between, which resets the gradients.
# Why it matters: "a list of Hessians, one for each batch, then their eigenvalues" is the obvious way to a spread over
#   batches. The curvature then grows with the place in the list.
# Guess before the run: the second one holds the sum of both batches. Right, to the estimate's error.
# Seen: 2026-11-30, Python 3.11, pip 23.2, torch 2.14.1, numpy 2.4.6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/environment"
"$work/environment/bin/pip" install --quiet --disable-pip-version-check "torch==2.14.1" "numpy==2.4.6" "pyhessian==0.1" 2>/dev/null

cd "$work"
environment/bin/python - 2>/dev/null <<'PY' | tee seen
import importlib.metadata

import torch
from pyhessian import hessian
from torch import nn
from torch.func import functional_call

torch.manual_seed(0)
network = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
loss = nn.CrossEntropyLoss()
batches = [(torch.randn(30, 5).double(), torch.randint(3, (30,))) for _ in range(3)]
shapes = {name: parameter.shape for name, parameter in network.named_parameters()}


def loss_at(vector, x, y):
    parts = vector.split([shape.numel() for shape in shapes.values()])
    weights = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts)}
    return loss(functional_call(network, weights, (x,)), y)


def eigenvalue(found):
    return found.eigenvalues(maxIter=2000, tol=1e-9)[0][0]


w = nn.utils.parameters_to_vector(network.parameters()).detach()
exact = [torch.autograd.functional.hessian(lambda v: loss_at(v, x, y), w) for x, y in batches]
print("pyhessian", importlib.metadata.version("pyhessian"), "torch", importlib.metadata.version("torch"))
alone = [eigenvalue(hessian(network, loss, data=batch, cuda=False)) for batch in batches]
listed = [eigenvalue(found) for found in [hessian(network, loss, data=batch, cuda=False) for batch in batches]]
for number in range(3):
    own, total = (float(torch.linalg.eigvalsh(h)[-1]) for h in (exact[number], sum(exact[: number + 1])))
    print(
        f"batch {number + 1}: largest eigenvalue {own:.3f}, of the sum so far {total:.3f}; "
        f"PyHessian {alone[number]:.3f} one at a time, {listed[number]:.3f} from a list"
    )
PY

[ "$(wc -l < seen)" = 4 ] || { echo "CHANGED: it does not run"; exit 1; }
sed -n 's/.*eigenvalue \([0-9.]*\), of the sum so far \([0-9.]*\); PyHessian \([0-9.]*\) one at a time, \([0-9.]*\) from a list/\1 \2 \3 \4/p' seen |
  awk 'function far(a, b) { return a - b > 0.01 || b - a > 0.01 }
       far($1, $3) { print "CHANGED: one batch at a time is another Hessian"; wrong = 1 }
       far($2, $4) { print "CHANGED: a list holds no sums"; wrong = 1 }
       END { exit wrong }'
