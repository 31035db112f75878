"""Weights of the hub are foreign: what is downloaded, what never is, and which commit it is."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from helpers.hub import local_hub
from safetensors.torch import save

from robflat_bench.backbones.parts import built
from robflat_bench.config.protocol import load
from robflat_bench.core import CheckFailed, ImageShape, Observer, UsageError
from robflat_bench.evaluation.fitting import check_size
from robflat_bench.evaluation.hub import fetched
from robflat_bench.evaluation.inspection import MAX_BYTES, inspect
from robflat_bench.evaluation.model import find_model, load_model
from robflat_bench.evaluation.options import ModelOptions, check_model
from robflat_bench.evaluation.session import Session
from robflat_bench.records.hub import Unreachable
from robflat_bench.records.store import Store
from robflat_bench.registry.components import resolve
from robflat_bench.registry.registry import discover

ONE, OTHER = (save({"w": torch.full((4,), value)}) for value in (1.0, 2.0))
REPO, NAME = "them/net", "hf://them/net"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with local_hub(monkeypatch, tmp_path) as found:
        yield found


def public(hub, files, **known):
    return hub.add(REPO, files, private=False, **known)


def config(**entries):
    return json.dumps({"robflat_bench": {"backbone": "resnet8(width=8)", "activation": "relu", **entries}}).encode()


def test_a_file_is_downloaded_once_with_its_commit_and_its_size_is_said_before(hub):
    model, said = public(hub, {"last.safetensors": ONE, "best.safetensors": OTHER, "config.json": config()}), []
    found = fetched(NAME, said.append)
    pinned = f"{NAME}@{model.head}/last.safetensors"
    assert str(found.name) == pinned
    assert found.path.read_bytes() == ONE
    assert found.architecture.backbone == "resnet8(width=8)"
    assert said == [f"{pinned}: 0.0 MB from the hub"]
    hub.asked.clear()
    assert fetched(pinned, said.append) == found
    assert hub.asked == []
    assert fetched(NAME, said.append).path == found.path
    assert len(said) == 1
    assert not [line for line in hub.asked if "/resolve/" in line]


def test_a_commit_stays_what_it_was_when_the_branch_moves(hub):
    model = public(hub, {"net.safetensors": ONE})
    old = model.head
    model.commit({"net.safetensors": OTHER})
    assert fetched(f"{NAME}@{old}").path.read_bytes() == ONE
    found = fetched(NAME)
    assert (found.name.revision, found.path.read_bytes()) == (model.head, OTHER)
    model.commit({"net.safetensors": ONE})
    assert fetched(str(found.name)) == found
    with pytest.raises(UsageError, match="no revision 'v9'"):
        fetched(f"{NAME}@v9")


def test_the_usual_file_is_meant_or_the_only_one_or_it_is_asked(hub):
    public(hub, {"a.safetensors": ONE, "b/c.safetensors": OTHER})
    assert fetched(f"{NAME}/b/c.safetensors").path.read_bytes() == OTHER
    with pytest.raises(UsageError, match=r"has the files a.safetensors, b/c.safetensors; name one: hf://them/net/a"):
        fetched(NAME)
    with pytest.raises(UsageError, match="name one"):
        fetched(f"{NAME}/last.safetensors")


def test_no_pickle_is_downloaded(hub, tmp_path):
    public(hub, {"pytorch_model.bin": b"\x80\x02", "net.pt": b"PK\x03\x04"})
    with pytest.raises(UsageError, match=r"no safetensors file, and nothing else is read from the hub"):
        fetched(NAME)
    assert not [line for line in hub.asked if "/resolve/" in line]


class Runs:
    """Code that runs when it is unpickled."""

    def __reduce__(self):
        return Path("ran").touch, ()


@pytest.mark.parametrize("content", [pickle.dumps(Runs()), b""], ids=["pickle", "empty"])
def test_a_file_that_only_calls_itself_safetensors_is_refused(hub, monkeypatch, tmp_path, content):
    monkeypatch.chdir(tmp_path)
    public(hub, {"last.safetensors": content})
    with pytest.raises(CheckFailed, match=r"safetensors|empty"):
        fetched(NAME)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "name", ["../../../evil.safetensors", "/etc/x.safetensors", "\x1b[2Jx.safetensors", "a/.b.safetensors"]
)
def test_a_listed_file_with_another_name_is_passed_over(hub, tmp_path, name):
    public(hub, {"net.safetensors": ONE}, extra=[{"rfilename": name, "size": 9}])
    assert fetched(NAME).name.file == "net.safetensors"
    assert not [line for line in hub.asked if "evil" in line or "etc" in line or "\x1b" in line]
    assert {path.suffix for path in tmp_path.rglob("*evil*")} == set()


def test_a_file_that_is_too_large_is_refused_before_it_is_downloaded(hub):
    public(hub, {"last.safetensors": ONE}, lies={"last.safetensors": MAX_BYTES + 1})
    with pytest.raises(CheckFailed, match=r"8,589,934,593 bytes, and files of weights may have 8,589,934,592"):
        fetched(NAME)
    assert not [line for line in hub.asked if "/resolve/" in line]


def test_a_config_that_is_too_large_is_not_downloaded(hub):
    public(hub, {"last.safetensors": ONE, "config.json": b" " * 70_000 + config()})
    assert fetched(NAME).architecture is None
    assert not [line for line in hub.asked if "config.json" in line]


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"model_type": "bert"}', b"[" * 40_000, b"\xff"])
def test_a_config_of_another_program_says_nothing(hub, content):
    public(hub, {"last.safetensors": ONE, "config.json": content})
    assert fetched(NAME).architecture is None


def test_a_wrong_entry_in_the_config_is_refused(hub):
    public(hub, {"last.safetensors": ONE, "config.json": config(backbone=3)})
    with pytest.raises(CheckFailed, match=r"them/net/config.json: .*backbone.*--backbone"):
        fetched(NAME)


def test_the_network_of_a_pushed_run_is_the_one_that_its_config_names(hub, registry, tiny, tmp_path):
    """Strides and activations show in no tensor."""
    session = Session(registry, load(registry, str(tiny)), None, Store(tmp_path / "store"), "cpu", Observer())
    backbone = "resnet8(width=4, strides=[1, 1, 1], stem_stride=1)"
    network = built(resolve(registry, "backbone", backbone), session.splits.shape, "silu", 3)
    public(
        hub,
        {"last.safetensors": save(network.state_dict()), "config.json": config(backbone=backbone, activation="silu")},
    )
    found = find_model(session, NAME)
    assert (found.backbone, found.activation) == (backbone, "silu")
    x = session.examples("test", 4).x
    with torch.no_grad():
        assert torch.allclose(load_model(session, found).eval()(x), network.eval()(x), atol=1e-5)
    assert found.origin == f"{NAME}@{hub.models[REPO].head}/last.safetensors"
    assert find_model(session, NAME, ModelOptions(backbone=session.fixed.backbone)).activation == "relu"
    with pytest.raises(UsageError, match="--checkpoint best is of a run"):
        check_model(NAME, ModelOptions(checkpoint="best"), session.store, registry)


def test_a_backbone_of_a_plugin_is_not_built_unasked(hub, make_site, monkeypatch):
    source = (
        "from robflat_bench.api import BackboneInfo, Params, hookimpl\n\n"
        "@hookimpl\ndef robflat_bench_backbones():\n"
        "    return [BackboneInfo('theirs', 'fetches anything', 'theirs:make', Params)]\n"
    )
    make_site("theirs").install("robflat-theirs", {"theirs.py": source})
    monkeypatch.delenv("ROBFLAT_BENCH_PLUGINS")
    public(hub, {"last.safetensors": ONE, "config.json": config(backbone="theirs")})
    with pytest.raises(UsageError, match=r"which a plugin offers; if you trust it.*--backbone 'theirs'"):
        fetched(NAME).network(discover())


def test_a_backbone_that_is_larger_than_its_file_is_not_built(registry, tmp_path):
    file, shape = tmp_path / "w.safetensors", ImageShape(channels=1, size=8, classes=10, mean=(0.5,), std=(0.5,))
    file.write_bytes(b" " * 1000)
    with pytest.raises(CheckFailed, match="do not trust it"):
        check_size(resolve(registry, "backbone", "resnet8(width=1024)"), shape, "relu", file)
    check_size(resolve(registry, "backbone", "resnet8(width=8)"), shape, "relu", file)


def test_without_a_network_the_cache_answers_if_it_has_one_commit(hub, monkeypatch):
    model, said = public(hub, {"last.safetensors": ONE, "config.json": config()}), []
    with_network = fetched(NAME)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetched(NAME, said.append) == with_network
    assert said == [f"there is no network; from the cache: {NAME}@{model.head}/last.safetensors"]
    with pytest.raises(Unreachable, match=r"HF_HUB_OFFLINE.*does not have hf://them/net@main either"):
        fetched(f"{NAME}@main")
    with pytest.raises(Unreachable, match="does not have hf://them/other either"):
        fetched("hf://them/other")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    old = model.head
    model.commit({"last.safetensors": OTHER})
    fetched(NAME)
    hub.broken["GET /api/models"] = 503
    with pytest.raises(UsageError, match=rf"2 commits of them/net; name one: {NAME}@[0-9a-f]{{40}}$"):
        fetched(NAME)
    assert fetched(f"{NAME}@{old}").path.read_bytes() == ONE


@pytest.mark.parametrize("size", range(96, 160, 8))
def test_safetensors_are_known_by_their_content_whatever_the_length_of_their_header(tmp_path, size):
    """A header of 128 bytes begins as a pickle does."""
    file, names = tmp_path / "w.safetensors", 1
    while int.from_bytes((content := save({"w" * names: torch.ones(1)}))[:8], "little") != size:
        names += 1
    file.write_bytes(content)
    assert inspect(file) == "safetensors"
