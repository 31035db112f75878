#!/usr/bin/env bash
# Expected: on a network whose logits are finite and whose input gradient is NaN (a square root at zero), an attack warns,
#   raises, or at least returns images.
# What happens: torchattacks 3.5.1 says nothing. FGSM returns the clean images: 100 % robust. CW and DeepFool return images
#   of NaN, whose predicted class is 0, so they succeed on every image but those of class 0. Square, which takes no
#   gradient, breaks two thirds of the images. With 1e-12 added under the root, which moves logits by about 1e-6, FGSM
#   leaves 20 % robust.
# Why it matters: both numbers look like results. The first one hides that the network is not robust at all; the second
#   counts images that do not exist.
# Guess before the run: all return finite images, and gradient attacks report clean accuracy. Wrong for CW and DeepFool.
# Seen: 2026-11-28, Python 3.11, torchattacks 3.5.1, torch 2.14.1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.14.1" torchvision scipy tqdm requests 2>/dev/null
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "torchattacks==3.5.1" 2>/dev/null

"$work/venv/bin/python" - <<'PY'
import torch
import torchattacks
from torch import nn


class Net(nn.Module):
    """A linear classifier and the spread of a map that is zero everywhere; `floor` is added under the root."""

    def __init__(self, floor):
        super().__init__()
        self.linear, self.gain, self.floor = nn.Linear(192, 10), nn.Parameter(torch.zeros(())), floor
        self.direction = torch.randn(10)

    def forward(self, x):
        spread = ((self.gain * x.flatten(1)).square().mean(1) + self.floor).sqrt()
        return 4 * self.linear(x.flatten(1)) + spread[:, None] * self.direction


def robust(floor, make):
    torch.manual_seed(1)
    net = Net(floor).eval()
    x = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    y = net(x).argmax(1)
    attacked = make(net)(x, y)
    predicted = net(attacked).argmax(1)
    nan = attacked.isnan().flatten(1).any(1)
    only_class_0 = bool((predicted[nan] == 0).all()) and bool(nan.all())
    return (predicted == y).double().mean().item(), only_class_0


print("torchattacks", torchattacks.__version__, "torch", torch.__version__)
attacks = {
    "FGSM": lambda net: torchattacks.FGSM(net, eps=0.03),
    "CW": lambda net: torchattacks.CW(net),
    "DeepFool": lambda net: torchattacks.DeepFool(net),
    "Square": lambda net: torchattacks.Square(net, eps=0.03, n_queries=300),
}
seen = {}
for name, make in attacks.items():
    seen[name] = robust(0.0, make)
    smooth = robust(1e-12, make)
    images = "all of NaN, predicted class 0" if seen[name][1] else "finite"
    print(f"{name}: {seen[name][0]:.0%} robust, images {images}; with 1e-12 under the root {smooth[0]:.0%}")
same = (
    seen["FGSM"] == (1.0, False)
    and all(seen[name][1] and seen[name][0] < 0.5 for name in ("CW", "DeepFool"))
    and seen["Square"][0] < 0.5
)
raise SystemExit(0 if same else f"CHANGED: {seen}")
PY
