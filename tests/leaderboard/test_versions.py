"""Versions of a protocol: each has its own board; entries of an earlier one are checked against it, and superseded."""

import json

import pytest
from helpers.fake_records import REGISTRY, fake_run

from robflat_bench.config import protocol
from robflat_bench.config.protocol import load, named, recorded
from robflat_bench.core import CheckFailed, UsageError
from robflat_bench.front.boards import Standings
from robflat_bench.front.shown import _next_lines
from robflat_bench.leaderboard.entries import Entry, read_entry
from robflat_bench.records.store import write_json
from robflat_bench.registry.registry import Registry

NOW, EARLIER = "cifar10-mini", "cifar10-mini@1.0"


@pytest.fixture
def store(tmp_path):
    for seed in (1, 2, 3):
        fake_run(tmp_path / "runs", "at", seed, protocol=EARLIER)
        fake_run(tmp_path / "runs", "trades", seed, protocol=NOW)
    return tmp_path / "runs"


def own():
    return Registry(REGISTRY.plugins)


def standings(root, store, *protocols):
    return Standings.of(own(), protocols, root, store)


@pytest.mark.parametrize(("asked", "row"), [(EARLIER, "at"), (NOW, "trades")])
def test_each_version_has_its_own_board(tmp_path, store, asked, row):
    (board,) = standings(tmp_path / "none", store, asked).boards
    assert board.hash == load(REGISTRY, asked).hash
    assert [each.label for each in board.rows] == [row]


def test_two_versions_at_once_are_refused(tmp_path, store, command):
    with pytest.raises(UsageError, match="name one of them"):
        standings(tmp_path / "none", store, EARLIER, NOW)
    both = ("--protocol", EARLIER, "--protocol", NOW, "--store", store)
    assert "name one of them" in command("results", "report", *both).complaint


def test_a_protocol_that_was_asked_for_is_read_once(tmp_path, store, monkeypatch):
    asked = []
    monkeypatch.setattr(protocol, "load", lambda registry, name, *_: asked.append(name) or load(registry, name))
    standings(tmp_path / "none", store, EARLIER)
    assert asked == [EARLIER]


@pytest.mark.parametrize("status", ["active", "superseded"])
def test_an_entry_of_an_earlier_version_is_superseded(tmp_path, status):
    run = fake_run(tmp_path / "records", "at", 1, protocol=EARLIER)
    entry = Entry.of(run.record(), run.record_file.read_bytes(), "2026-01-02")
    for path in {*run.path.iterdir()} - {run.record_file, run.path / "outcomes.npz"}:
        path.unlink() if path.is_file() else path.rmdir()
    reason = "" if status == "active" else "version 2.0 replaces it"
    write_json(run.path / "entry.json", {**json.loads(entry.model_dump_json()), "status": status, "reason": reason})
    if status == "active":
        with pytest.raises(CheckFailed, match=r"made under cifar10-mini 1.0, which version 2.0 replaces; mark"):
            read_entry(tmp_path, run.path, REGISTRY)
    else:
        assert read_entry(tmp_path, run.path, REGISTRY).record.protocol.version == "1.0"


def test_commands_to_type_next_name_the_version(tmp_path):
    run = fake_run(tmp_path, "at", 1, protocol=EARLIER)
    assert any(f"--protocol {EARLIER}" in line for line in _next_lines(REGISTRY, run, run.record()))
    assert named(REGISTRY, "cifar10-mini", "2.0") == NOW
    assert named(REGISTRY, "cifar10-mini", "3.0") == ""


@pytest.mark.parametrize(
    ("name", "version", "known"), [(NOW, "1.0", EARLIER), (NOW, "2.0", NOW), (NOW, "0.9", NOW), ("mine", "1.0", "")]
)
def test_the_protocol_of_a_record_is_its_version_or_the_one_in_force(name, version, known):
    assert recorded(REGISTRY, name, version) == known


def test_info_describes_an_earlier_version(command):
    found = command("info", EARLIER, "--json").document
    assert (found["name"], found["version"], found["hash"]) == (NOW, "1.0", load(REGISTRY, EARLIER).hash)
