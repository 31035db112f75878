"""Files of weights of other programs: what is read, looked through and refused, and the numbers of networks in them."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import shlex
import struct
import sys
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.networks import NET
from helpers.public_networks import CifarResNet
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from robflat_bench.config.protocol import Attacked, Measured, load
from robflat_bench.core import BackboneInfo, Observer, Params, RobflatError, UsageError
from robflat_bench.evaluation.fitting import fitted, stripped
from robflat_bench.evaluation.model import find_model, load_model
from robflat_bench.evaluation.options import ModelOptions, channel_values, named_values
from robflat_bench.evaluation.plan import Plan
from robflat_bench.evaluation.session import Session
from robflat_bench.evaluation.weight_files import read
from robflat_bench.numerics.weights import digest, write_weights
from robflat_bench.records.store import Store
from robflat_bench.registry.files import load_file
from robflat_bench.registry.registry import Registry
from robflat_bench.runs.evaluation import evaluate_model

pytestmark = pytest.mark.usefixtures("one_thread")

PLAN = Plan(
    (Attacked(attack='pgd(init="uniform", loss="ce", restarts=1, steps=3)', test=30, train=10),),
    (Measured(measure="average-case(draws=2, steps=2)", test=30), Measured(measure="input-gradient-norm", test=30)),
)


@pytest.fixture
def session(registry, tiny, tmp_path) -> Session:
    return Session(registry, load(registry, str(tiny)), None, Store(tmp_path / "store"), "cpu", Observer())


@pytest.fixture
def net(tmp_path, monkeypatch) -> Path:
    """A network's file, `net.py`, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    return tmp_path / "net.py"


def made(net: Path, seed: int = 1, **arguments: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = load_file(net).Net(**arguments)
        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
        return network


def numbers(session: Session, model: object, options: ModelOptions) -> tuple:
    """What an evaluation finds, without names and seconds."""
    record, _ = evaluate_model(session, find_model(session, model, options), PLAN)
    (result,) = record.results.values()
    measures = [(found.value, found.standard_error, found.details) for found in result.measures.values()]
    return result.weights, result.clean_error, result.robust_error, result.robust_loss, measures


OWN = ModelOptions(network="net.py:Net")

# ---------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------


class Settings:
    """A class of the training program."""

    def __init__(self) -> None:
        self.rate = 0.1


def weights() -> dict[str, Tensor]:
    return {"conv.weight": torch.arange(6.0).view(2, 3), "conv.bias": torch.ones(2)}


CONTENTS = {
    "alone": (weights(), ()),
    "ordered": (OrderedDict(weights()), ()),
    "parameters": ({name: nn.Parameter(tensor) for name, tensor in weights().items()}, ()),
    "state_dict": (
        {"state_dict": weights(), "epoch": 3, "optimizer": {"state": {0: {"m": torch.ones(2)}}}},
        ("state_dict",),
    ),
    "scalars beside": ({"net": weights(), "acc": torch.tensor(0.9)}, ("net",)),
    "two deep": ({"model": {"state_dict": weights()}}, ("model", "state_dict")),
    "another word": ({"classifier": weights(), "epoch": 3}, ("classifier",)),
    "objects beside": (
        {"model_state_dict": weights(), "args": argparse.Namespace(lr=0.1), "best": np.float64(3), "s": Settings()},
        ("model_state_dict",),
    ),
    "arrays beside": ({"model": weights(), "losses": np.arange(3.0)}, ("model",)),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("case", CONTENTS)
def test_tensors_are_found_in_what_a_training_program_saves(case, legacy, tmp_path):
    content, entries = CONTENTS[case]
    torch.save(content, tmp_path / "w.pth.tar", _use_new_zipfile_serialization=not legacy)
    found = read(tmp_path / "w.pth.tar")
    assert found.tensors.keys() == weights().keys()
    assert all(torch.equal(tensor, found.tensors[name]) for name, tensor in weights().items())
    assert not any(tensor.requires_grad for tensor in found.tensors.values())
    said = ", ".join(f"'{entry}'" for entry in entries)
    assert found.notes == ((f"w.pth.tar: tensors of {said}",) if entries else ())


def test_of_several_networks_the_plain_one_is_read_and_the_note_has_the_line_for_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    averaged = {name: tensor + 1 for name, tensor in weights().items()}
    torch.save({"net": {"ema": averaged, "state_dict": weights()}}, "$(touch hacked) w.pt")
    found = read(Path("$(touch hacked) w.pt"))
    assert torch.equal(found.tensors["conv.bias"], torch.ones(2))
    (note,) = found.notes
    assert "tensors of 'net', 'state_dict', not of 'ema'; for these: python -c" in note
    *_, code, file = shlex.split(note.partition("for these: ")[2])  # as a shell reads the line
    monkeypatch.setattr(sys, "argv", ["-c", file])
    exec(code)
    assert file == "$(touch hacked) w.pt"
    assert torch.equal(read(Path("other.pt")).tensors["conv.bias"], torch.full((2,), 2.0))


def test_the_reader_is_chosen_by_content(tmp_path):
    write_weights(tmp_path / "w.bin", weights())
    torch.save(weights(), tmp_path / "w.safetensors")
    assert all(digest(read(path).tensors) == digest(weights()) for path in tmp_path.iterdir())


@pytest.mark.parametrize("content", [{"arch": "resnet18"}, {"args": argparse.Namespace(arch="resnet18")}], ids=str)
def test_the_architecture_that_a_training_program_names_is_passed_on(content, tmp_path):
    torch.save({**content, "state_dict": weights()}, tmp_path / "w.pt")
    assert read(tmp_path / "w.pt").architecture == "resnet18"


# ---------------------------------------------------------------------------------------------------------
# Refused files
# ---------------------------------------------------------------------------------------------------------


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)


class Hostile:
    """Unpickling it would make a folder."""

    def __init__(self, call: object = os.mkdir, argument: str = "hacked") -> None:
        self.call, self.argument = call, argument

    def __reduce__(self) -> tuple:
        return self.call, (self.argument,)


def written(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def archive(*members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as made:
        for name, data in members:
            made.writestr(f"w/{name}", data)
    return buffer.getvalue()


def scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def endless() -> dict:
    content: dict = {}
    content["model"] = content
    return content


def packed_twice() -> bytes:
    """A file of torch.save whose members are compressed, so that it unpacks to much more than its size."""
    with zipfile.ZipFile(io.BytesIO(written({"a": torch.zeros(100_000)}))) as source:
        members = [(entry.filename.partition("/")[2], source.read(entry)) for entry in source.infolist()]
    return archive(*members, method=zipfile.ZIP_DEFLATED)


REFUSED = {
    "empty": (b"", "is empty"),
    "text": (b"hello, hello, hello", "was written neither by torch.save nor by safetensors"),
    "page": (b"<!DOCTYPE html><html>", "is a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "type `git lfs pull`"),
    "cut": (written(weights())[:-40], "is damaged"),
    "cut pickle": (pickle.dumps(weights(), 2)[:40], "cannot be read"),
    "other zip": (archive(("a.txt", b"x")), "that torch.save did not write"),
    "bomb": (packed_twice(), "would unpack to more than its own size"),
    "script": (None, "is TorchScript"),
    "whole network": (written(Whole()), r"a whole object \(.*Whole\), whose code would run"),
    "network inside": (written({"model": Whole(), "epoch": 1}), r"a whole object \(.*Whole\)"),
    "a list": (written([1, 2]), "holds a list, and no tensors by name"),
    "a tensor": (written(torch.ones(3)), "holds a Tensor, and no tensors"),
    "nothing": (written({}), "holds a dictionary of nothing"),
    "numbers": (written({"epoch": 3, "lr": 0.1}), "holds a dictionary of 'epoch', 'lr'"),
    "two unknown": (written({"one": weights(), "two": weights()}), "holds a dictionary of 'one', 'two'"),
    "unnamed": (written({0: torch.ones(2)}), "no tensors by name"),
    "hostile": (written({"state_dict": weights(), "x": Hostile()}), "asks Python to call posix.mkdir.* do not use"),
    "hostile builtin": (written(Hostile(eval, "__import__('os').mkdir('hacked')")), "asks Python to call eval"),
    "endless": (written(endless()), "no tensors by name"),
    "expanded": (written({"a": torch.ones(1).expand(10**6, 10**6)}), "'a' is sparse, quantized, or larger"),
    "sparse": (written({"a": torch.eye(3).to_sparse()}), "'a' is sparse"),
    "header": (struct.pack("<Q", 2**40) + b"{" + b"x" * 50, "is not a readable safetensors file"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_holds_no_weights_is_refused_in_one_line_and_nothing_in_it_runs(case, tmp_path, monkeypatch):
    content, says = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    file = Path("w.pt")
    file.write_bytes(scripted() if content is None else content)
    with pytest.raises(RobflatError, match=says) as caught:
        read(file)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("w.pt")
    assert not Path("hacked").exists()


def test_pipes_folders_and_large_files_are_refused_unread(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.pt")
    Path("folder.pt").mkdir()
    with open("large.pt", "wb") as file:
        file.truncate(9 * 2**30)
    for name, says in (
        ("pipe.pt", "is no regular file"),
        ("folder.pt", "no regular file"),
        ("large.pt", "is larger than"),
    ):
        with pytest.raises(RobflatError, match=says):
            read(Path(name))
    with pytest.raises(UsageError, match=r"lage.pt: no such file; did you mean 'large.pt'"):
        read(Path("lage.pt"))


# ---------------------------------------------------------------------------------------------------------
# Prefixes
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "module._orig_mod.", "model.module.", "net."])
def test_prefixes_that_every_name_has_are_taken_off(prefix):
    given = {prefix + name: tensor for name, tensor in weights().items()}
    found, notes = fitted(given, weights())
    assert found.keys() == weights().keys()
    parts = [f"{part}." for part in prefix.split(".") if part]
    assert notes == tuple(f"names are read without their prefix '{part}'" for part in parts)


def test_a_prefix_that_is_the_networks_own_name_stays():
    own = {f"model.{name}": tensor for name, tensor in weights().items()}
    assert fitted(own, own) == (own, ())
    assert fitted({f"module.{name}": tensor for name, tensor in own.items()}, own)[0].keys() == own.keys()


def test_a_prefix_of_some_names_stays():
    given = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert [found.keys() for found, _ in stripped(given)] == [given.keys()]
    assert fitted(given, {"a": torch.ones(1), "b": torch.ones(1)}) is None


@pytest.mark.parametrize("prefix", ["model.", "encoder.net.", "my."])
def test_a_network_behind_a_prefix_is_found_beside_other_tensors(prefix):
    given = {prefix + name: tensor for name, tensor in weights().items()}
    found, (note,) = fitted({"criterion.weight": torch.ones(3), **given}, weights())
    assert all(found[name] is given[prefix + name] for name in weights())
    assert note == f"names are read behind their prefix '{prefix}'; 1 others, such as 'criterion.weight', are left out"


def test_a_network_that_a_file_holds_twice_is_not_chosen():
    both = {prefix + name: tensor for prefix in ("model.", "ema.") for name, tensor in weights().items()}
    with pytest.raises(UsageError, match=r"this network 2 times, behind 'ema.' and 'model.'.*k\[4:\]"):
        fitted(both, weights())
    with pytest.raises(UsageError, match="this network 2 times"):
        fitted({**both, "model.auxiliary.weight": torch.ones(3)}, weights())
    first = next(iter(weights()))
    lacking = {name: tensor for name, tensor in both.items() if name != f"ema.{first}"}
    other = {**both, f"ema.{first}": torch.ones(7)}
    for given in (lacking, other):
        found, _ = fitted(given, weights())
        assert all(found[name] is given[f"model.{name}"] for name in weights())


@pytest.mark.parametrize("name", ["normalize.mean", "std", "front.sigma"])
def test_a_normalisation_beside_the_network_is_not_left_out(name):
    given = {f"model.{each}": tensor for each, tensor in weights().items()}
    with pytest.raises(UsageError, match=f"the file holds '{name}' beside the network.*give its normalisation by"):
        fitted({name: torch.ones(3), **given}, weights())


def test_a_part_of_another_network_is_none():
    given = {f"model.{each}": tensor for each, tensor in weights().items()}
    assert fitted({"model.more": torch.ones(3), **given, "x": torch.ones(2)}, weights()) is None


def test_the_counter_of_averaged_weights_is_left_out():
    network = nn.Linear(2, 2)
    found, _ = fitted(AveragedModel(network).state_dict(), network.state_dict())
    assert found.keys() == network.state_dict().keys()


def test_counters_that_old_versions_of_torch_did_not_save_are_the_networks():
    network = nn.BatchNorm2d(3)
    own = network.state_dict()
    given = {name: tensor for name, tensor in own.items() if name != "num_batches_tracked"}
    assert fitted(given, own)[0].keys() == own.keys()
    assert fitted({name: given[name] for name in ("weight", "bias")}, own) is None


def test_a_file_may_name_a_tied_tensor_once():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].weight = network[0].weight
    own = network.state_dict()
    given = {name: torch.full_like(tensor, 3.0) for name, tensor in own.items() if name != "1.weight"}
    assert torch.equal(fitted(given, own)[0]["1.weight"], given["0.weight"])
    assert fitted({name: own[name] for name in own if name != "1.bias"}, own) is None


# ---------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------


WRITTEN = {
    "safetensors": (lambda tensors, path: write_weights(path, tensors), "w.safetensors"),
    "torch.save": (torch.save, "w.pt"),
    "nested, of DataParallel": (
        lambda tensors, path: torch.save({"net": {f"module.{name}": t for name, t in tensors.items()}, "acc": 1}, path),
        "ckpt.pth",
    ),
    "float64": (
        lambda tensors, path: torch.save(
            {k: t.double() if "tracked" not in k else t for k, t in tensors.items()}, path
        ),
        "w.ckpt",
    ),
}


@pytest.mark.parametrize("given", [{}, {"mean": (0.3,), "std": (0.4,)}], ids=["as they are", "normalised"])
@pytest.mark.parametrize("form", WRITTEN)
def test_a_file_has_the_numbers_of_the_live_network(form, given, session, net):
    write, name = WRITTEN[form]
    network = made(net)
    write(network.state_dict(), Path(name))
    live = numbers(session, network, ModelOptions(**given))
    assert numbers(session, name, ModelOptions(network="net.py:Net", **given)) == live
    assert live[3].test > 0


class Normalizing(nn.Module):
    """The formula, written out."""

    def __init__(self, network: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.network, self.mean, self.std = network, mean, std

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - self.mean) / self.std)


def test_mean_and_std_put_the_normalisation_in_front(session, net):
    network = made(net)
    front = numbers(session, network, ModelOptions(mean=(0.3,), std=(0.4,)))
    own = numbers(session, Normalizing(network, 0.3, 0.4), ModelOptions())
    without = numbers(session, network, ModelOptions())
    assert front[1:3] == own[1:3]
    assert front[3].test == pytest.approx(own[3].test, rel=1e-5)
    assert abs(front[3].test - without[3].test) > 1e-3
    with pytest.raises(UsageError, match="--mean has 3 values, and the protocol's images have 1 channels"):
        find_model(session, network, ModelOptions(mean=(0.1, 0.2, 0.3), std=(1.0,)))


def test_the_record_says_what_was_read_and_assumed(session, net):
    torch.save({"state_dict": {f"module.{k}": t for k, t in made(net).state_dict().items()}}, "w.pt")
    record, path = evaluate_model(session, find_model(session, "w.pt", OWN), PLAN)
    assert record.provenance["notes"] == [
        "w.pt: tensors of 'state_dict'",
        "the network is net.py:Net()",
        "names are read without their prefix 'module.'",
        "no normalisation: images in [0,1] go in as they are; --mean and --std put one in front",
    ]
    assert evaluate_model(session, find_model(session, "w.pt", OWN), PLAN) == (record, path)


def test_arguments_reach_the_class_and_functions_make_networks_too(session, net):
    torch.save(made(net, width=2).state_dict(), "w.pt")
    for network in ("net.py:Net", "net.py:make", "net:make"):
        found = find_model(session, "w.pt", ModelOptions(network=network, arguments={"width": 2}))
        assert digest(load_model(session, found).state_dict()) == digest(made(net, width=2).state_dict())


def test_a_network_s_file_imports_from_its_folder_and_from_the_current_one(session, net):
    Path("own_models/deep").mkdir(parents=True)
    Path("own_models/deep/net.py").write_text(
        "from own_models.widths import WIDTH\nfrom own_parts.base import Net as Base\n"
    )
    with open("own_models/deep/net.py", "a") as file:
        file.write("def Net():\n    from own_late import CLASSES\n    return Base(CLASSES, WIDTH)\n")
    Path("own_models/widths.py").write_text("WIDTH = 3\n")
    Path("own_models/deep/own_parts").mkdir()  # without __init__.py, as in many repositories
    Path("own_models/deep/own_parts/base.py").write_text(NET)
    Path("own_models/deep/own_late.py").write_text("CLASSES = 10\n")
    torch.save(made(net, width=3).state_dict(), "w.pt")
    before = [*sys.path]
    assert find_model(session, "w.pt", ModelOptions(network="own_models/deep/net.py:Net")).module.conv.out_channels == 3
    assert sys.path == before


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, lambda module: torch.compile(module, backend="eager"), AveragedModel],
    ids=["DataParallel", "torch.compile", "AveragedModel"],
)
def test_wrappers_are_taken_off_so_that_draws_are_those_of_the_network(wrap, session, net):
    network = made(net)
    wrapped = wrap(network)
    found = find_model(session, wrapped)
    assert found.name == "Net"
    assert "evaluated without its wrapper" in found.notes[0]
    assert numbers(session, wrapped, ModelOptions()) == numbers(session, network, ModelOptions())


def test_the_user_s_network_draws_the_same_each_time_and_leaves_the_random_state(session, net):
    Path("net.py").write_text(NET.replace("self.head =", "self.noise = torch.rand(1)\n        self.head ="))
    torch.save(made(net).state_dict(), "w.pt")
    before = torch.get_rng_state()
    one, other = (find_model(session, "w.pt", OWN).module.noise for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------------------------------------------------
# Classes
# ---------------------------------------------------------------------------------------------------------


def test_more_logits_than_classes_are_evaluated_and_count_as_wrong_predictions(session, net):
    network = made(net, classes=12)
    with torch.no_grad():
        network.head.bias[11] = 1e4
    record, _ = evaluate_model(session, find_model(session, network, ModelOptions(classes=12)), PLAN)
    (result,) = record.results.values()
    assert result.clean_error == 1.0


def test_unused_logits_change_no_error(session, net):
    network, wide = made(net), made(net, classes=12)
    wide.load_state_dict({k: t for k, t in network.state_dict().items() if "head" not in k}, strict=False)
    with torch.no_grad():
        wide.head.weight.zero_()[:10], wide.head.bias.fill_(-1e3)[:10]
        wide.head.weight[:10], wide.head.bias[:10] = network.head.weight, network.head.bias
    one = numbers(session, network, ModelOptions())
    other = numbers(session, wide, ModelOptions(classes=12))
    assert other[1:3] == one[1:3]
    assert other[3].test == pytest.approx(one[3].test, rel=1e-6)


def test_another_number_of_classes_is_refused_with_the_option_to_type(session, net):
    torch.save(made(net, classes=12).state_dict(), "w.pt")
    with pytest.raises(
        UsageError, match=r"'head.bias' is \(12,\) there and \(10,\) here.* --model-args .*--classes 12"
    ):
        find_model(session, "w.pt", OWN)
    wide = ModelOptions(network="net.py:Net", arguments={"classes": 12})
    with pytest.raises(UsageError, match=r"if it has 12 classes, say so: --classes 12"):
        evaluate_model(session, find_model(session, "w.pt", wide), PLAN)
    with pytest.raises(UsageError, match=r"--classes 3: digits has 10 classes.* --protocol FILE.toml"):
        find_model(session, "w.pt", ModelOptions(network="net.py:Net", classes=3))


# ---------------------------------------------------------------------------------------------------------
# Misfits
# ---------------------------------------------------------------------------------------------------------


def test_a_misfit_names_five_of_each_side_their_numbers_and_the_option_to_type(session, net):
    own = made(net).state_dict()
    given = {f"layer{i}.weight": torch.ones(1) for i in range(7)}
    given |= {"conv.weight": torch.ones(2), "conv.bias": own["conv.bias"]}
    torch.save({f"module.{name}": tensor for name, tensor in given.items()}, "w.pt")
    with pytest.raises(UsageError) as caught:
        find_model(session, "w.pt", OWN)
    names = ", ".join(f"'layer{i}.weight'" for i in range(5))
    missing = "'head.bias', 'head.weight', 'norm.bias', 'norm.num_batches_tracked', 'norm.running_mean'"
    assert str(caught.value) == (
        f"w.pt does not fit net.py:Net: 7 of its 9 tensors are not in the network ({names}, ...), "
        f"7 of the network's 9 are not in it ({missing}, ...), "
        "1 have another shape ('conv.weight' is (2,) there and (4, 1, 3, 3) here); "
        "name the class that it was saved from by --model, and its arguments by --model-args NAME=VALUE"
    )


def public(counts: tuple[int, ...] = (2, 2, 2, 2)) -> dict[str, Tensor]:
    return CifarResNet(width=4, channels=1, counts=counts).state_dict()


def test_public_names_are_those_of_the_backbone_that_they_show_or_that_is_named(session, tmp_path):
    torch.save(public(), tmp_path / "w.pt")
    one, other = (
        numbers(session, str(tmp_path / "w.pt"), ModelOptions(backbone=text)) for text in (None, "resnet18(width=4)")
    )
    assert one == other


class Public(Params):
    pass


def as_published(params: Public, shape: object, activation: str) -> nn.Module:
    return CifarResNet(width=4, channels=1, counts=(1, 1, 1, 1))


def test_a_backbone_with_public_names_of_its_own_keeps_its_files(registry, session, tmp_path):
    """The protocol's or the named one is tried before any layout."""
    extended = Registry(registry.plugins)
    info = BackboneInfo("published", "-", f"{__name__}:as_published", Public)
    extended.add(info, registry.get("attack", "fgsm").provider)
    own = replace(session, registry=extended)
    torch.save(public((1, 1, 1, 1)), tmp_path / "w.pt")
    assert find_model(own, str(tmp_path / "w.pt"), ModelOptions(backbone="published")).backbone == "published"
    with pytest.raises(UsageError, match=r"stages of 1, 1, 1, 1 basic blocks.*--model FILE.py:CLASS"):
        find_model(own, str(tmp_path / "w.pt"))


def test_a_file_of_one_s_own_run_brings_its_normalisation_and_may_have_prefixes(session, finished, tmp_path):
    own = finished.folder / "checkpoints" / "last.safetensors"
    state = read(own).tensors
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "last.pt")
    found = find_model(session, str(own))
    assert found.notes == ()
    again = find_model(session, str(tmp_path / "last.pt"))
    assert again.notes == ("names are read without their prefix 'module.'",)
    assert digest(load_model(session, again).state_dict()) == digest(load_model(session, found).state_dict())
    with pytest.raises(UsageError, match="holds the normalisation that it was trained with; leave out --mean"):
        find_model(session, str(own), ModelOptions(mean=(0.5,), std=(0.5,)))


def test_a_file_of_no_known_network_says_how_to_name_one(session, net):
    torch.save(made(net).state_dict(), "w.pt")
    with pytest.raises(UsageError, match=r"of no network that is known here; add its code, --model net.py:CLASS"):
        find_model(session, "w.pt")


# ---------------------------------------------------------------------------------------------------------
# The user's code
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "says"),
    [
        ("net.py:thing", "net.py:thing made a list, not an nn.Module"),
        ("net.py:broken", r"ZeroDivisionError: .*zero \(line 33 of net.py\); mend that line"),
        ("late.py:Net", r"ModuleNotFoundError: No module named 'surely_none' \(line 2 of late.py\)"),
        ("quits.py:Net", r"SystemExit: 3 \(line 3 of quits.py\)"),
        ("wants.py:Net", r"missing 1 required positional argument: 'depth'; give its arguments by --model-args"),
        ("made.py:net", "net is a network already; name its class"),
    ],
)
def test_a_failure_of_the_user_s_code_is_one_line_with_its_place(network, says, session, net, capsys):
    torch.save(made(net).state_dict(), "w.pt")
    Path("late.py").write_text("\nimport surely_none\nNet = surely_none.Net\n")
    Path("quits.py").write_text("import sys\nprint('hello')\nsys.exit(3)\nNet = 1\n")
    Path("wants.py").write_text("class Net:\n    def __init__(self, depth): ...\n")
    Path("made.py").write_text("from torch import nn\nnet = nn.Linear(2, 2)\n")
    with pytest.raises(UsageError, match=says) as caught:
        find_model(session, "w.pt", ModelOptions(network=network))
    assert "\n" not in str(caught.value)
    assert "hello" not in capsys.readouterr().out


def test_a_failure_in_forward_names_the_line(session, net):
    torch.save(made(net).state_dict(), "w.pt")
    Path("net.py").write_text(NET.replace(".flatten(1))", ")"))
    with pytest.raises(UsageError, match=r"w fails on images .*RuntimeError: .*mat1.* \(line 16 of net.py\); pass"):
        evaluate_model(session, find_model(session, "w.pt", OWN), PLAN)


def test_a_network_that_returns_more_than_logits_is_refused_with_the_line_that_wraps_it(session, net):
    torch.save(made(net).state_dict(), "w.pt")
    with pytest.raises(UsageError, match="returns a tuple, not a tensor of logits") as caught:
        evaluate_model(session, find_model(session, "w.pt", ModelOptions(network="net.py:Pair")), PLAN)
    line = str(caught.value).partition("`")[2].rstrip("`")
    Path("net.py").write_text(f"{NET}\n\n{line}\n")
    found = numbers(session, "w.pt", ModelOptions(network="net.py:Logits"))
    assert found == numbers(session, made(net), ModelOptions())


# ---------------------------------------------------------------------------------------------------------
# Values of options
# ---------------------------------------------------------------------------------------------------------


def test_statistics_on_another_scale_are_refused_wherever_they_come_from():
    for mean, std, says in (
        ((125.3,), (63.0,), "as 125.3/255"),
        ((0.5,), (), "add --std"),
        ((0.5,), (0.0,), "--std: 0"),
    ):
        with pytest.raises(UsageError, match=says):
            ModelOptions(mean=mean, std=std)


def test_statistics_and_arguments_are_read_from_text():
    assert channel_values("0.5, 125.5/255,1", "--mean") == (0.5, 125.5 / 255, 1.0)
    assert named_values(["depth=28", "widths=[16, 32]", "act=relu", "name='a=b'", "bias=False", "cut=None"]) == {
        "depth": 28,
        "widths": [16, 32],
        "act": "relu",
        "name": "a=b",
        "bias": False,
        "cut": None,
    }
