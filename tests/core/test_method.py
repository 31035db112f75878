"""What methods and modifiers share: the attributes that a resumed run needs."""

from __future__ import annotations

import torch
from torch import Tensor

from robflat_bench.core import Modifier, Params


class Remembers(Modifier):
    saved = ("count", "average")

    def __init__(self, count: int) -> None:
        super().__init__(Params())
        self.count = torch.tensor(count)
        self.average = {"a.b": torch.full((2,), float(count)), "c": torch.zeros(0)}


def test_saved_attributes_are_restored_as_copies():
    state = Remembers(3).state_dict()
    assert state.keys() == {"count", "average.a.b", "average.c"}
    other = Remembers(0)
    other.load_state_dict(state)
    assert (int(other.count), other.average["a.b"].tolist()) == (3, [3.0, 3.0])
    other.count += 1
    other.average["a.b"] += 1
    assert (int(state["count"]), state["average.a.b"].tolist()) == (3, [3.0, 3.0])


def test_restored_tensors_keep_the_precision_of_the_component():
    state: dict[str, Tensor] = {name: tensor.double() for name, tensor in Remembers(3).state_dict().items()}
    other = Remembers(0)
    other.load_state_dict(state)
    assert (other.count.dtype, other.average["a.b"].dtype) == (torch.int64, torch.float32)
