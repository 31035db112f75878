#!/usr/bin/env bash
# Expected: pyautoattack 0.2.0, AutoAttack as a package, keeps its progress in the file `state_path`, so that an
#   evaluation that was stopped goes on with the same call; a state of other attacks is refused.
# What happens: every state is refused, its own too. The set of attacks is written as one text, "{'apgd-ce'}", and read back as
#   that text, which equals no set: the same call on the same network, images and attacks ends in a ValueError about "a
#   different set of attacks". The progress of the attacks that ended lies in the file and is never read.
# Why it matters: standard AutoAttack on 10,000 images takes hours, and resuming is what the option is for. Whoever needs
#   it must cut the images into parts and keep each part's answer.
# Guess before the run: a state is accepted for any network, since nothing in it names one. Wrong: it is accepted for none.
# Seen: 2026-11-28, Python 3.11, pip 23.2, torch 2.14.1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/environment"
"$work/environment/bin/pip" install --quiet --disable-pip-version-check "torch==2.14.1" "numpy<3" "pyautoattack==0.2.0" 2>/dev/null

cd "$work"
environment/bin/python - <<'PY' | tee seen
import importlib.metadata
import json
import pathlib

import torch
from pyautoattack import AutoAttack
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).eval()
x = torch.rand(40, 1, 6, 6)
y = model(x).argmax(1)
state = pathlib.Path("state.json")
print("pyautoattack", importlib.metadata.version("pyautoattack"), "torch", importlib.metadata.version("torch"))
for call in ("first call", "same call again"):
    attack = AutoAttack(model, norm="Linf", eps=0.02, version="custom", attacks=["apgd-ce"], device="cpu")
    try:
        attack.run_standard_evaluation(x, y, batch_size=40, state_path=state)
        print(f"{call}: finished")
    except ValueError as error:
        print(f"{call}: ValueError: {error}")
    kept = json.loads(state.read_text())
    print("  the file says:", {name: kept[name] for name in ("_attacks_to_run", "_run_attacks")})
PY

grep -q "^first call: finished" seen || { echo "CHANGED: the first call does not finish"; exit 1; }
grep -q "^same call again: ValueError: .*different set of attacks" seen || { echo "CHANGED: the state is accepted"; exit 1; }
