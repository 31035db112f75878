"""A component is one file, read without torch, and its lazy imports are ordinary ones once its code is used."""

from __future__ import annotations

import builtins
import importlib
import json
import subprocess
import sys
import threading

import pytest

from robflat_bench.core import Info, Params, catalogue_rows, lazy_imports
from robflat_bench.registry.components import Component
from robflat_bench.registry.plugins import ROOMS, Provider
from robflat_bench.registry.registry import Offer

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
        ("def broken(x: Tensor | None = None) -> None | Tensor: ...", "a union"),
    ],
)
def test_what_needs_torch_when_the_file_is_read_loads_it_at_once(package, child_environment, line, why):
    (package / "components" / "family" / "weights.py").write_text(f"{COMPONENT}\n\n{line}\n")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=child_environment(package), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)[1], why


VALUES = "SIZE, NAME, TABLE, SAME, Text = 5, 'five', {1: 2}, object(), str"
USES = """
with lazy_imports():
    from values import NAME, SAME, SIZE, TABLE, Text
"""


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("min(7, SIZE)", 5),
        ("SIZE * 2 + 2 * SIZE - 1 // SIZE", 20),
        (
            "[SIZE == 5, SIZE != 5, SIZE < 6, SIZE >= 6, NAME in 'five', 1 in TABLE]",
            [True, False, True, False, True, True],
        ),
        ("{'five': 3}.get(NAME)", 3),
        ("f'{SIZE:02} {NAME}' + NAME", "05 fivefive"),
        ("[len(TABLE), list(TABLE), bool(TABLE), TABLE[1], [1, 2][:SIZE]]", [1, [1], True, 2, [1, 2]]),
        ("isinstance('five', Text) and isinstance(1, Text | int)", True),
    ],
)
def test_the_first_use_of_a_lazy_value_may_be_any_operation_on_it(tmp_path, monkeypatch, expression, value):
    (tmp_path / "values.py").write_text(VALUES)
    (tmp_path / "uses.py").write_text(f"from robflat_bench.core.catalogue import lazy_imports\n{USES}")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("values", "uses"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert eval(expression, vars(importlib.import_module("uses"))) == value


def test_building_a_component_does_the_lazy_imports_of_its_file_and_of_its_bases(make_site):
    head = "from robflat_bench.api import Measure, MeasureInfo, lazy_imports\nwith lazy_imports():\n    import torch\n"
    row = "INFO = MeasureInfo('heavy', 'needs torch', 'heavy:Heavy')\n"
    files = {
        "heavy.py": f"{head}from base import Base\n{row}class Heavy(Base):\n    measure = None\n",
        "base.py": f"{head}class Base(Measure): ...\n",
    }
    make_site().install("heavy", files)
    module = importlib.import_module("heavy")
    assert type(module.torch) is not type(sys)
    Component(Offer(module.INFO, Provider("heavy", "1.0", "heavy", module)), Params()).build(None)
    assert module.torch is sys.modules["base"].torch is sys.modules["torch"]


def test_two_threads_in_lazy_blocks_leave_imports_as_they_were():
    before, inside, leave = builtins.__import__, threading.Event(), threading.Event()

    def first() -> None:
        with lazy_imports():
            inside.set()
            leave.wait(5)

    def second() -> None:
        with lazy_imports():
            leave.set()

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(5)
    threads[1].start()
    leave.set()
    for thread in threads:
        thread.join(5)
    assert builtins.__import__ is before


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "config.protocols"])
def test_every_row_of_a_room_names_a_class_or_function_of_its_own_file(room):
    infos = catalogue_rows(f"robflat_bench.{room}")
    assert infos
    for info in infos:
        assert isinstance(info, Info)
        module, _, name = info.factory.partition(":")
        assert module.startswith(f"robflat_bench.{room}.")
        assert getattr(sys.modules[module], name).__module__ == module
