"""Any checkpoint: networks and files as people bring them get the right number, or a refusal before any work.

A row makes its file, and says how it is given. The expected number is that of the live network, whose clean error is
computed here by a plain forward pass.
"""

from __future__ import annotations

import argparse
import functools
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import own_networks as own
from helpers import public_networks as public
from helpers.commands import run_here
from safetensors.torch import save_file
from torch import nn

import robflat_bench as rb
from robflat_bench.core import CheckFailed, UsageError
from robflat_bench.testing.tiny import tiny_protocol

pytestmark = pytest.mark.filterwarnings("ignore:.*(weight_norm|jit).* is deprecated:FutureWarning")

NETWORKS = Path(own.__file__)
MORE = """
[[fixed.measures]]
measure = "average-case(draws=2, steps=2)"
test = 30

[[fixed.measures]]
measure = "worst-case(xi=0.03, steps=2, restarts=1)"
test = 30
"""

Weights = dict[str, torch.Tensor]


def dict_of(network: nn.Module, path: Path) -> None:
    torch.save(network.state_dict(), path)


def prefixed(prefix: str, network: nn.Module) -> Weights:
    return {prefix + name: tensor for name, tensor in network.state_dict().items()}


def entry(name: str, **more: Any) -> Callable[[nn.Module, Path], None]:
    return lambda network, path: torch.save({name: network.state_dict(), **more}, path)


def names(prefix: str) -> Callable[[nn.Module, Path], None]:
    return lambda network, path: torch.save(prefixed(prefix, network), path)


def lightning(network: nn.Module, path: Path) -> None:
    states = {"optimizer_states": [{"lr": 0.1}], "epoch": 3, "hyper_parameters": {"width": 6}}
    torch.save({"state_dict": prefixed("model.", network), **states}, path)


def arguments(network: nn.Module, path: Path) -> None:
    torch.save({"model": network.state_dict(), "args": argparse.Namespace(lr=0.1)}, path)


def averaged(network: nn.Module, path: Path) -> None:
    other = {name: torch.zeros_like(tensor) for name, tensor in network.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": network.state_dict(), "ema": other}, path)


def safetensors(network: nn.Module, path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)


def all_halved(network: nn.Module, path: Path) -> None:
    torch.save({name: tensor.half() for name, tensor in network.state_dict().items()}, path)


def halved(dtype: torch.dtype, network: nn.Module, path: Path) -> None:
    state = network.state_dict()
    torch.save({name: part.to(dtype) if part.is_floating_point() else part for name, part in state.items()}, path)


def legacy(network: nn.Module, path: Path) -> None:
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=False)


def without_counters(network: nn.Module, path: Path) -> None:
    state = network.state_dict()
    torch.save({name: tensor for name, tensor in state.items() if "num_batches" not in name}, path)


class Touching:
    """A pickle that makes a file when it is read: harmless, and seen."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def hostile(network: nn.Module, path: Path) -> None:
    torch.save({"state_dict": network.state_dict(), "more": Touching(path.with_name("touched"))}, path)


@dataclass(frozen=True)
class Row:
    """A network, its file and how they are given.

    Parameters
    ----------
    network : callable
        Makes the network.
    write : callable
        Writes its file.
    suffix : str
        The file's.
    given : mapping
        Further arguments of `evaluate`.
    notes : tuple of str
        Words of the notes that say what was looked through.
    """

    network: Callable[[], nn.Module] = own.Plain
    write: Callable[[nn.Module, Path], None] = dict_of
    suffix: str = ".pth"
    given: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """The class or function of `own_networks` that makes the network."""
        made: Any = self.network
        return str(getattr(made, "func", made).__name__)


EQUAL = {
    "a plain network": Row(),
    "an old file of torch": Row(write=legacy, suffix=".pt"),
    "safetensors": Row(write=safetensors, suffix=".safetensors"),
    "a file called .tar": Row(write=entry("state_dict"), suffix=".pth.tar", notes=("'state_dict'",)),
    "an entry net beside others": Row(write=entry("net", acc=93.1, epoch=199), notes=("'net'",)),
    "an entry model_state_dict": Row(
        write=entry("model_state_dict", loss=torch.ones(3)), notes=("'model_state_dict'",)
    ),
    "a Lightning checkpoint": Row(write=lightning, suffix=".ckpt", notes=("'state_dict'", "'model.'")),
    "arguments of a training program": Row(write=arguments, notes=("'model'",)),
    "an average beside the weights": Row(write=averaged, notes=("'state_dict'", "'ema'")),
    "DataParallel": Row(write=names("module."), notes=("'module.'",)),
    "torch.compile": Row(write=names("_orig_mod."), notes=("'_orig_mod.'",)),
    "both": Row(write=names("module._orig_mod."), notes=("'module.'", "'_orig_mod.'")),
    "without counters of batches": Row(write=without_counters),
    "a factory with arguments": Row(
        functools.partial(own.make, depth=2, width=8), given={"arguments": {"depth": 2, "width": 8}}
    ),
    "a normalisation in front": Row(given={"normalize": ((0.3,), (0.25,))}, notes=("mean 0.3, std 0.25",)),
    "weight normalisation": Row(own.WeightNorm),
    "weight normalisation of old torch": Row(own.OldWeightNorm),
    "spectral normalisation": Row(own.SpectralNorm),
    "two outputs in train mode": Row(own.PairInTraining),
    "tied weights": Row(own.Tied),
    "a gain outside normalisation": Row(own.LayerScale),
    "a parameter of a module with children": Row(own.Holding),
    "frozen parameters": Row(own.Frozen),
    "dropout": Row(own.Dropping),
    "no normalisation": Row(own.Bare),
    "GroupNorm only": Row(own.Grouped),
    "LayerNorm only": Row(own.Layered),
    "view behind a convolution": Row(own.Viewed),
    "bfloat16": Row(write=functools.partial(halved, torch.bfloat16)),
    "float16": Row(write=functools.partial(halved, torch.float16)),
    "float16, counters too": Row(write=functools.partial(all_halved)),
    "float64": Row(write=functools.partial(halved, torch.float64)),
    "100 logits": Row(functools.partial(own.Plain, classes=100), given={"arguments": {"classes": 100}, "classes": 100}),
}


@pytest.fixture(scope="module")
def protocol(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("protocol") / "tiny.toml"
    path.write_text(tiny_protocol(more=MORE))
    return str(path)


@pytest.fixture(scope="module")
def images(registry, protocol):
    from robflat_bench.config.protocol import load
    from robflat_bench.data.splits import load_splits

    return load_splits(registry, load(registry, protocol), None).examples("test", "cpu", torch.float32)


def saved(row: Row, folder: Path) -> tuple[nn.Module, Path]:
    network, path = own.trained(row.network()), folder / f"weights{row.suffix}"
    row.write(network, path)
    return network, path


@pytest.mark.parametrize("name", EQUAL)
def test_a_file_has_the_numbers_of_its_live_network(name, protocol, images, tmp_path, one_thread):
    row = EQUAL[name]
    network, path = saved(row, tmp_path)
    if row.write.__class__ is functools.partial:  # what was rounded in the file
        network.load_state_dict({key: value.to(network.state_dict()[key]) for key, value in torch.load(path).items()})
    source = {"network": f"{NETWORKS}:{row.source}", "arguments": row.given.get("arguments")}
    here = {name: row.given.get(name) for name in ("normalize", "classes")} | {"protocol": protocol, "progress": False}
    told = rb.evaluate(path, store=tmp_path / "file", **source, **here)
    live = rb.evaluate(network, store=tmp_path / "live", **here)
    (found,), (expected,) = told.record.results.values(), live.record.results.values()
    assert numbers(found) == numbers(expected)
    assert clean_error(network, images, here["normalize"]) == pytest.approx(found.clean_error, abs=1e-9)
    assert all(measured.value is not None for measured in found.measures.values())
    for words in row.notes:
        assert any(words in note for note in told.notes), told.notes
    assert any("normalis" in note for note in told.notes)


def numbers(result: Any) -> dict[str, Any]:
    """Everything of a result but time."""
    document = result.model_dump(mode="json")
    del document["seconds"], document["weights"]
    for side in ("measures", "measures_train"):
        for measured in document[side].values():
            del measured["seconds"]
    return document


def clean_error(network: nn.Module, images: Any, normalize: Any) -> float:
    x = images.x if normalize is None else (images.x - normalize[0][0]) / normalize[1][0]
    with torch.no_grad():
        logits = network.eval()(x)
    return float((logits.argmax(1) != images.y).double().mean())


# ---------------------------------------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------------------------------------


def nothing(network: nn.Module, path: Path) -> None:
    path.touch()


def corrupted(network: nn.Module, path: Path) -> None:
    dict_of(network, path)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3 : 2 * len(raw) // 3] = b"\x00" * (2 * len(raw) // 3 - len(raw) // 3)
    path.write_bytes(raw)


def cut(network: nn.Module, path: Path) -> None:
    dict_of(network, path)
    path.write_bytes(path.read_bytes()[:-100])


def hostile_pickle(network: nn.Module, path: Path) -> None:
    path.write_bytes(pickle.dumps(Touching(path.with_name("touched"))))


def whole(network: nn.Module, path: Path) -> None:
    torch.save(network, path)


def script(network: nn.Module, path: Path) -> None:
    torch.jit.trace(network.eval(), torch.rand(2, 1, 8, 8)).save(str(path))


def changed(network: nn.Module, path: Path, **tensors: torch.Tensor | None) -> None:
    state = {**network.state_dict(), **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, path)


def pages(network: nn.Module, path: Path) -> None:
    path.write_text("<!DOCTYPE html><html>404</html>")


def no_tensors(network: nn.Module, path: Path) -> None:
    torch.save({"optimizer": {"lr": 0.1}, "epoch": 3}, path)


REFUSED: dict[str, tuple[Row, tuple[str, ...]]] = {
    "an empty file": (Row(write=nothing), ("empty",)),
    "a corrupted file": (Row(write=corrupted), ("weights.pth",)),
    "a file that was cut": (Row(write=cut), ("weights.pth",)),
    "a web page": (Row(write=pages), ("web page", "download")),
    "a hostile entry": (Row(write=hostile), ("asks Python to call", "it was not called")),
    "a hostile pickle": (Row(write=hostile_pickle), ("weights.pth",)),
    "a whole pickled network": (Row(write=whole), ("torch.save(model.state_dict()",)),
    "TorchScript": (Row(write=script, suffix=".pt"), ("TorchScript", "torch.save(model.state_dict()")),
    "no tensors": (Row(write=no_tensors), ("'optimizer'", "torch.save(model.state_dict()")),
    "a tensor is missing": (Row(write=functools.partial(changed, head__bias=None)), ("'head.bias'", "--model")),
    "a tensor too many": (Row(write=functools.partial(changed, tail=torch.ones(2))), ("'tail'", "--model")),
    "another shape": (
        Row(write=functools.partial(changed, conv2__weight=torch.ones(7, 6, 3, 3))),
        ("'conv2.weight'", "(7, 6, 3, 3)", "(6, 6, 3, 3)"),
    ),
    "NaN": (Row(write=functools.partial(changed, head__bias=torch.full((10,), torch.nan))), ("'head.bias'", "NaN")),
    "a tuple of outputs": (Row(own.Pair), ("returns a tuple", "[0]")),
    "3 classes for 10": (
        Row(functools.partial(own.Plain, classes=3), given={"arguments": {"classes": 3}}),
        ("(32, 3)|(30, 3)", "(30, 10)"),
    ),
    "100 logits unsaid": (
        Row(functools.partial(own.Plain, classes=100), given={"arguments": {"classes": 100}}),
        ("(30, 100)", "--classes 100"),
    ),
    "colours for grey images": (
        Row(functools.partial(own.Plain, channels=3), given={"arguments": {"channels": 3}}),
        ("[30, 1, 8, 8]", "3 channels"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_without_a_right_number_is_refused_in_one_line(name, protocol, tmp_path):
    row, says = REFUSED[name]
    _, path = saved(row, tmp_path)
    named = row.given.get("arguments", {})
    options = [word for key, value in named.items() for word in ("--model-args", f"{key}={value}")]
    options += ["--model", f"{NETWORKS}:{row.source}", "--protocol", protocol, "--store", tmp_path / "runs"]
    told = run_here("evaluate", path, *options)
    assert told.code in (UsageError.exit_code, CheckFailed.exit_code)
    for words in says:
        assert any(each in told.err.splitlines()[-1] for each in words.split("|")), told.err
    assert not (tmp_path / "touched").exists()
    assert not list(tmp_path.rglob("*.npz"))


def test_images_of_other_sizes_and_classes_are_measured_from_python(one_thread):
    draw = torch.Generator().manual_seed(3)
    for shape, classes in (((3, 16, 16), 3), ((1, 16, 16), 100), ((3, 32, 32), 2), ((1, 12, 20), 5)):
        x = torch.rand((12, *shape), generator=draw)
        y = torch.randint(0, classes, (12,), generator=draw)
        network = own.trained(own.Plain(channels=shape[0], classes=classes))
        for text in ("average-case(draws=2, steps=2)", "hessian-trace(probes=2)", "margin"):
            found = rb.measure(network, (x, y), text, epsilon=8 / 255, progress=False)
            assert found.value is not None, (shape, classes, text, found.reason)


# ---------------------------------------------------------------------------------------------------------
# Public layouts, without --model
# ---------------------------------------------------------------------------------------------------------

PUBLIC = {
    "CIFAR ResNet": (public.CifarResNet, "resnet18(width=4)"),
    "pre-activation ResNet": (public.PreActResNet, "preact-resnet18(width=4)"),
    "wide ResNet": (public.WideResNet, "wrn(depth=10, factor=1)"),
}


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("normalize", [None, ((0.3,), (0.25,))])
def test_a_public_layout_is_evaluated_without_its_code(name, normalize, protocol, images, tmp_path):
    make, backbone = PUBLIC[name]
    network, path = public.drawn(make()).float(), tmp_path / "weights.pth"
    torch.save({"net": {f"module.{key}": value for key, value in network.state_dict().items()}, "acc": 95.0}, path)
    told = rb.evaluate(path, protocol=protocol, normalize=normalize, store=tmp_path / "runs", progress=False)
    live = rb.evaluate(network, protocol=protocol, normalize=normalize, store=tmp_path / "runs", progress=False)
    (found,), (expected,) = told.record.results.values(), live.record.results.values()
    assert found.clean_error == pytest.approx(clean_error(network, images, normalize), abs=1e-9)
    for attack, pair in found.robust_loss.model_dump().items():
        if pair is not None:
            assert pair == pytest.approx(expected.robust_loss.model_dump()[attack], rel=1e-3)
    assert any(f"read as {backbone}" in note for note in told.notes)


def test_a_public_layout_under_a_backbone_of_the_command_line(protocol, tmp_path):
    network, path = public.drawn(public.CifarResNet()).float(), tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    here = ("--protocol", protocol, "--store", tmp_path / "runs", "--attack", "fgsm", "--json")
    named = run_here("evaluate", path, "--backbone", "resnet18(width=4)", *here).document
    seen = run_here("evaluate", path, *here).document
    assert named["key"] == seen["key"]
    other = run_here("evaluate", path, "--backbone", "resnet18(width=8)", *here)
    assert other.code == 2
    assert "--backbone" in other.err


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_nfnet"], ids=["BatchNorm", "LayerNorm", "no norm"])
def test_a_network_of_timm_is_read_by_its_name(name, protocol, tmp_path):
    import timm

    size = {"img_size": 32} if name == "test_vit" else {}
    torch.manual_seed(3)
    network, path = timm.create_model(name, num_classes=10, **size).eval(), tmp_path / "weights.pth"
    draw = torch.Generator().manual_seed(4)
    x, y = torch.rand((16, 3, 32, 32), generator=draw), torch.randint(0, 10, (16,), generator=draw)
    torch.save({"arch": name, "state_dict": network.state_dict()}, path)
    here = {"data": (x, y), "protocol": protocol, "attacks": ["pgd(steps=2)"], "store": tmp_path, "progress": False}
    here["measures"] = ["average-case(draws=2, steps=2)"]
    named, seen, live = (
        rb.evaluate(path, backbone=f"timm(name={name})", **here),
        rb.evaluate(path, **here),
        rb.evaluate(network, **here),
    )
    assert named.record.key == seen.record.key
    (found,), (expected,) = seen.record.results.values(), live.record.results.values()
    with torch.no_grad():
        error = float((network(x).argmax(1) != y).double().mean())
    assert found.clean_error == pytest.approx(error, abs=1e-9)
    assert found.robust_loss.test == pytest.approx(expected.robust_loss.test, rel=1e-4)
    for one in (*found.measures.values(), *expected.measures.values()):
        assert one.value is not None


def test_a_recognised_file_that_lacks_a_tensor_names_that_tensor(protocol, tmp_path):
    state, path = public.CifarResNet().state_dict(), tmp_path / "weights.pth"
    torch.save({name: state[name] for name in state if name != "linear.bias"}, path)
    told = run_here("evaluate", path, "--protocol", protocol, "--store", tmp_path / "runs")
    assert told.code == 2
    assert "1 of the network's 124 are not in it ('network.head.bias')" in told.err.splitlines()[-1]


def test_edited_code_is_evaluated_anew_even_where_clean_images_do_not_show_it(protocol, tmp_path):
    network, path = own.trained(own.Plain()), tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    here = {"protocol": protocol, "attacks": ["fgsm"], "store": tmp_path, "progress": False}
    text, keys = NETWORKS.read_text(), set()
    for ending in ("", "\n\n# edited\n"):
        (tmp_path / "net.py").write_text(text + ending)
        keys.add(rb.evaluate(path, network=f"{tmp_path / 'net.py'}:Plain", **here).record.key)
        keys.add(rb.evaluate(path, network=f"{tmp_path / 'net.py'}:Plain", **here).record.key)
    assert len(keys) == 2
