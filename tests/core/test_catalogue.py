"""A component is one file, read without torch, and its lazy imports are ordinary ones once its code is used."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from robflat_bench.core import Info, catalogue_rows
from robflat_bench.registry.plugins import ROOMS

COMPONENT = '''
"""The number of weights."""

from robflat_bench.core import Measure, MeasureInfo, Measurement, lazy_imports

with lazy_imports():
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F
    from torch.nn.utils import parametrize

    from .helper import CLASSES, halves

INFO = MeasureInfo("weights", "number of weights", f"{__name__}:Weights")


class Weights(Measure):
    def measure(self, model, examples, workspace):
        weights = [p for p in model.parameters() if isinstance(p, Tensor)]
        assert F.relu(torch.zeros(())) == 0 and isinstance(model, nn.Module) and not parametrize.is_parametrized(model)
        assert [kind for kind in CLASSES if kind in CLASSES] == [nn.Linear] and halves(2) == 1
        return Measurement(float(sum(p.numel() for p in weights)), None, 0)
'''

HELPER = """
import torch

CLASSES = {torch.nn.Linear: 1}


def halves(number):
    return number // 2
"""

PROGRAM = """
import json, sys
from robflat_bench.core import catalogue_rows
(info,) = catalogue_rows("components")
before = "torch" in sys.modules
from components.family import weights
value = weights.Weights(None, None).measure(weights.nn.Linear(3, 2), None, None).value
import torch
same = weights.Tensor is torch.Tensor and weights.torch is torch and weights.F is torch.nn.functional
print(json.dumps([info.name, before, value, same]))
"""


@pytest.fixture
def package(tmp_path):
    """A package `components` with one component in a family, and a module that needs torch and holds no row."""
    family = tmp_path / "components" / "family"
    family.mkdir(parents=True)
    (family.parent / "__init__.py").touch()
    (family / "__init__.py").touch()
    (family / "weights.py").write_text(COMPONENT)
    (family / "helper.py").write_text(HELPER)
    return tmp_path


def test_a_row_is_read_without_torch_and_its_lazy_imports_are_real_once_used(package, child_environment):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=child_environment(package), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == ["weights", False, 8.0, True]


@pytest.mark.parametrize("line", ["import torch.nn", "import torch.nn.functional as F", "from torch import *"])
def test_import_that_cannot_be_delayed_is_an_error_that_says_what_to_write(package, child_environment, line):
    text = COMPONENT.replace("    import torch\n", f"    {line}\n")
    (package / "components" / "family" / "weights.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=child_environment(package), capture_output=True, text=True, check=False
    )
    assert "cannot be delayed; write `from PACKAGE import NAME`" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("class Broken(nn.Module): ...", "a base class"),
        ("TABLE = nn.__name__", "a value computed at import"),
        ("NAMES = list(CLASSES)", "iteration over an imported table"),
        ("def broken(kind=nn.Linear): ...", "a default value"),
        ("@torch.no_grad()\ndef broken(): ...", "a decorator"),
    ],
)
def test_what_needs_torch_when_the_file_is_read_loads_it_at_once(package, child_environment, line, why):
    (package / "components" / "family" / "weights.py").write_text(f"{COMPONENT}\n\n{line}\n")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=child_environment(package), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)[1], why


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "config.protocols"])
def test_every_row_of_a_room_names_a_class_or_function_of_its_own_file(room):
    infos = catalogue_rows(f"robflat_bench.{room}")
    assert infos
    for info in infos:
        assert isinstance(info, Info)
        module, _, name = info.factory.partition(":")
        assert module.startswith(f"robflat_bench.{room}.")
        assert getattr(sys.modules[module], name).__module__ == module
