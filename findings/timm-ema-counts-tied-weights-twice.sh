#!/usr/bin/env bash
# Expected: an exponential moving average with decay 0.9 moves every weight by a tenth of the way in one step, as
#   torch.optim.swa_utils.AveragedModel does; also a weight that two layers share.
# What happens: ModelEmaV2 and ModelEmaV3 of timm go through the state dict, in which a shared weight stands once for each
#   of its names. One update moves it twice: by 0.19 instead of 0.1. Its decay is 0.9 squared, that of all others 0.9.
# Why it matters: averaged weights are the usual remedy for robust overfitting, and timm's class is a common way to get
#   them. A network with tied weights is evaluated at an average with two time constants, and nothing says so.
# Guess before the run: both classes of timm average twice, torch once. Right.
# Seen: 2026-11-28, Python 3.11, timm 1.0.31, torch 2.14.1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "timm==1.0.31" "torch==2.14.1" 2>/dev/null

"$work/venv/bin/python" - <<'PY'
import timm
import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.other = (nn.Linear(2, 2, bias=False) for _ in range(3))
        self.second.weight = self.first.weight


def filled(model, value):
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return model


def after_one_update(make, update):
    model = filled(Tied(), 0.0)
    average = make(model)
    update(average, model)  # torch takes the first call as the start of the average
    update(average, filled(model, 1.0))
    weights = (average.module.first.weight, average.module.second.weight, average.module.other.weight)
    return [round(weight[0, 0].item(), 4) for weight in weights]


print("timm", timm.__version__, "torch", torch.__version__)
by_timm = lambda average, model: average.update(model)
by_torch = lambda average, model: average.update_parameters(model)
seen = {
    "ModelEmaV2": after_one_update(lambda model: ModelEmaV2(model, decay=0.9), by_timm),
    "ModelEmaV3": after_one_update(lambda model: ModelEmaV3(model, decay=0.9), by_timm),
    "AveragedModel": after_one_update(lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)), by_torch),
}
for name, (first, second, other) in seen.items():
    print(f"{name}: weights go from 0 to 1; the average of the shared weight is {first}, of the other {other}")
expected = {"ModelEmaV2": [0.19, 0.19, 0.1], "ModelEmaV3": [0.19, 0.19, 0.1], "AveragedModel": [0.1, 0.1, 0.1]}
raise SystemExit(0 if seen == expected else f"CHANGED: expected {expected}")
PY
