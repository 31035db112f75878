#!/usr/bin/env bash
# Expected: PGD with `random_restarts=20` of MadryLab's robustness 1.2.1.post2 keeps, for each image, what any of its 20 restarts broke.
# What happens: it returns the images of the last restart alone. The images to be overwritten are chosen by a mask of bytes that `~` is
#   to turn round; since torch 1.2 that flips every bit, 1 to 254 and 0 to 255, and as a mask both are true. So each
#   restart overwrites every image, also those that an earlier one broke.
# Why it matters: twenty restarts cost twenty times as much and find what one finds: here 96 of 500 images, and 199 if what any
#   restart broke is kept. Robust accuracies "under PGD with restarts" from this library are those of one restart.
# Guess before the run: the last restart alone. Right.
# How: networks and attacks of this library ask for a GPU by `.cuda()`, which is replaced here, so that it runs on any machine.
# Seen: 2026-11-30, Python 3.11, pip 23.2, torch 2.14.1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/environment"
"$work/environment/bin/pip" install --quiet --disable-pip-version-check "torch==2.14.1" "robustness==1.2.1.post2" 2>/dev/null

cd "$work"
environment/bin/python - 2>/dev/null <<'PY' | tee seen
import importlib.metadata
from types import SimpleNamespace

import torch
from robustness.attacker import AttackerModel
from torch import nn

torch.Tensor.cuda = lambda self, *_, **__: self
print("robustness", importlib.metadata.version("robustness"), "torch", importlib.metadata.version("torch"))


class Network(nn.Sequential):
    def forward(self, x, with_latent=False, fake_relu=False, no_relu=False):  # what the library passes to its networks
        return super().forward(x)


torch.manual_seed(0)
network = Network(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
x = torch.rand(500, 1, 8, 8)
y = network(x).argmax(1).detach()
model = AttackerModel(network, SimpleNamespace(mean=torch.tensor([0.0]), std=torch.tensor([1.0]))).eval()
ATTACK = {"constraint": "inf", "eps": 0.1, "step_size": 0.02, "iterations": 1, "random_start": True}


def broken(**options):
    _, images = model(x, y, make_adv=True, **ATTACK, **options)
    return images, network(images).argmax(1) != y


for restarts in (1, 5, 20):
    torch.manual_seed(0)
    images, found = broken(random_restarts=restarts)
    torch.manual_seed(0)
    single = [broken() for _ in range(restarts)]
    any_of = torch.stack([wrong for _, wrong in single]).any(0)
    same = "the same images as" if torch.equal(images, single[-1][0]) else "other images than"
    print(f"{restarts} restarts: {found.sum()} of 500 broken, {same} the last one's; {any_of.sum()} by any")
PY

[ "$(wc -l < seen)" = 4 ] || { echo "CHANGED: it does not run"; exit 1; }
[ "$(grep -c 'the same images as the last one' seen)" = 3 ] || { echo "CHANGED: a restart keeps what an earlier one broke"; exit 1; }
