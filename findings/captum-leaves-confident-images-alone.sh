#!/usr/bin/env bash
# Expected: an attack by the sign of the gradient does not mind the scale of a network's logits: larger logits change no
#   prediction, and the sign of a gradient is the sign of a small one.
# What happens: captum 0.9.0's FGSM and PGD leave every pixel alone whose loss gradient is at most 1e-6 in absolute value (the
#   attribute `zero_thresh`, no argument). Cross-entropy of a confident prediction has such gradients in every pixel, so
#   whole images come back as they went in, without a word, and count as robust.
# Why it matters: with 4 times the logits, and the same predictions everywhere, 78 % of the images come back unchanged and
#   the accuracy under FGSM rises from 51 to 79 %; the sign of the same float32 gradients leaves 2 % unchanged and gives
#   63 %. PGD is as blind as FGSM, since it starts at the image. A confident network looks more robust than it is.
# Guess before the run: it depends on the batch, since a mean over many images makes gradients small. Wrong: a loss that is a
#   mean ends in an IndexError for more than one image. It is the confidence of the network alone.
# Seen: 2026-11-30, Python 3.11, pip 23.2, torch 2.14.1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/environment"
"$work/environment/bin/pip" install --quiet --disable-pip-version-check "torch==2.14.1" "captum==0.9.0" 2>/dev/null

cd "$work"
environment/bin/python - 2>/dev/null <<'PY' | tee seen
import importlib.metadata

import torch
from captum.robust import FGSM, PGD
from torch import nn

EPSILON = 0.05
torch.manual_seed(0)
x = torch.rand(4000, 64)
weight = 3 * torch.randn(10, 64)
print("captum", importlib.metadata.version("captum"), "torch", importlib.metadata.version("torch"))
for scale in (1, 4):
    network = nn.Linear(64, 10, bias=False)
    network.weight = nn.Parameter(scale * weight)
    y = network(x).argmax(1)
    loss = nn.CrossEntropyLoss(reduction="none")
    start = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(network(start), y).sum(), start)
    images = {
        "sign of the gradient": (x + EPSILON * gradient.sign()).clamp(0, 1),
        "captum FGSM": FGSM(network, loss, 0, 1).perturb(x, epsilon=EPSILON, target=y),
        "captum PGD-10": PGD(network, loss, 0, 1).perturb(x, radius=EPSILON, step_size=EPSILON / 4, step_num=10, target=y),
    }
    for name, attacked in images.items():
        right = (network(attacked).argmax(1) == y).double().mean()
        same = (attacked == x).all(1).double().mean()
        print(f"logits x {scale}: {name:20}: accuracy {right:6.1%}, images unchanged {same:6.1%}")
try:
    FGSM(network, nn.CrossEntropyLoss(), 0, 1).perturb(x, epsilon=EPSILON, target=y)
except IndexError as error:
    print("with the mean of the losses: IndexError:", str(error)[:34])
PY

unchanged() { grep "x 4: $1" seen | sed 's/.*unchanged *//; s/\..*//'; }
[ "$(unchanged "sign of")" -lt 10 ] || { echo "CHANGED: the gradients themselves vanish"; exit 1; }
[ "$(unchanged "captum FGSM")" -gt 60 ] || { echo "CHANGED: captum moves images of small gradients"; exit 1; }
