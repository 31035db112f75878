"""What the tests share: this plugin alone, one thread, one architecture with its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from robflat_bench.api import ImageShape
from robflat_robustbench import MODELS, RobustBenchParams
from robflat_robustbench.zoo import robustbench_model

CIFAR = ImageShape(channels=3, size=32, classes=10, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch):
    """No other plugin, and no folder of weights, whatever this machine has."""
    monkeypatch.setenv("ROBFLAT_BENCH_PLUGINS", "robflat-robustbench")
    monkeypatch.delenv("ROBFLAT_BENCH_DISABLE_PLUGINS", raising=False)
    monkeypatch.delenv(MODELS, raising=False)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def registry():
    from robflat_bench.registry.registry import discover

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBFLAT_BENCH_PLUGINS", "robflat-robustbench")
        return discover()


@pytest.fixture(scope="session")
def cifar() -> ImageShape:
    return CIFAR


@pytest.fixture(scope="session")
def build():
    """`build("Wong2020Fast", weights=...)`: the adapter's model for CIFAR-10."""

    def built(name: str = "Wong2020Fast", shape: ImageShape = CIFAR, **parameters: str) -> nn.Module:
        return robustbench_model(RobustBenchParams(name=name, **parameters), shape, "relu")

    return built


@pytest.fixture(scope="session")
def trained(build) -> dict[str, torch.Tensor]:
    """Weights of Wong2020Fast that no constructor draws."""
    source = torch.Generator().manual_seed(1)
    state = build(weights="random").state_dict()
    return {
        name: torch.rand(tensor.shape, generator=source) / 10 + 0.01 if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
        if name not in ("mu", "sigma")
    }


@pytest.fixture
def place(tmp_path) -> Path:
    """Where RobustBench keeps Wong2020Fast below tmp_path."""
    path = tmp_path / "cifar10" / "Linf" / "Wong2020Fast.pt"
    path.parent.mkdir(parents=True)
    return path
