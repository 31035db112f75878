"""Versions of a protocol: each has its own board; entries of an earlier one are checked against it, and superseded."""

import json
import re

import pytest
from helpers.fake_records import DATASET, REGISTRY, fake_run

from robflat_bench.config import protocol
from robflat_bench.config.protocol import load, named, recorded
from robflat_bench.core import CheckFailed, UsageError
from robflat_bench.front.boards import Standings
from robflat_bench.front.shown import _next_lines
from robflat_bench.leaderboard.entries import Entry, read_entry
from robflat_bench.leaderboard.publish import pages, read_leaderboard
from robflat_bench.records.store import write_json
from robflat_bench.registry.components import title
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


def entered(root, status="superseded", **run):
    """An entry with that status."""
    found = fake_run(root / "records", "at", 1, **run)
    entry = Entry.of(found.record(), found.record_file.read_bytes(), "2026-01-02")
    for path in {*found.path.iterdir()} - {found.record_file, found.path / "outcomes.npz"}:
        path.unlink() if path.is_file() else path.rmdir()
    reason = "" if status == "active" else "version 2.0 replaces it"
    write_json(found.path / "entry.json", {**json.loads(entry.model_dump_json()), "status": status, "reason": reason})
    return found


@pytest.mark.parametrize("status", ["active", "superseded"])
def test_an_entry_of_an_earlier_version_is_superseded(tmp_path, status):
    run = entered(tmp_path, status, protocol=EARLIER)
    if status == "active":
        with pytest.raises(CheckFailed, match=r"made under cifar10-mini 1.0, which version 2.0 replaces; mark"):
            read_entry(tmp_path, run.path, REGISTRY)
    else:
        assert read_entry(tmp_path, run.path, REGISTRY).record.protocol.version == "1.0"


def test_an_entry_whose_protocol_has_no_version_in_force_is_refused(tmp_path):
    registry = own()
    del registry._protocols[NOW]
    with pytest.raises(CheckFailed, match="there is no protocol 'cifar10-mini'"):
        read_entry(tmp_path, entered(tmp_path, protocol=EARLIER).path, registry)


@pytest.mark.parametrize(
    ("board", "made"),
    [
        (NOW, {"protocol": EARLIER}),
        ("digits-linf", {"status": "retracted"}),
        (f"digits-linf-{'a' * 8}", {"dataset": DATASET.model_copy(update={"checksum": "a" * 64, "canonical": False})}),
    ],
)
def test_entries_of_a_board_without_active_ones_have_their_pages(tmp_path, board, made):
    run = entered(tmp_path, **made)
    found, problems = read_leaderboard(tmp_path, REGISTRY)
    assert not problems
    site = pages(found, tmp_path, REGISTRY)
    address = f"r/{run.record().key}/index.html"
    assert "version 2.0 replaces it" in site[address].decode()
    page = site[f"{board}/index.html"].decode()
    assert f'href="../{address}"' in page.split('<h2 id="withdrawn">')[1]
    assert "they are listed below" in page


def test_every_number_of_an_earlier_version_has_its_name(tmp_path):
    """The attacks and measures of version 1.0 are no columns of the board of 2.0."""
    run = entered(tmp_path, protocol=EARLIER)
    found, _ = read_leaderboard(tmp_path, REGISTRY)
    page = pages(found, tmp_path, REGISTRY)[f"r/{run.record().key}/index.html"].decode()
    headings = re.findall(r'<th scope="row">([^<]*)<small>', page)
    record = run.record()
    (result, *_) = record.results.values()
    texts = [("attack", text) for text in result.robust_error] + [("measure", text) for text in result.measures]
    for kind, text in texts:
        assert any(title(REGISTRY, kind, text).lower() in one.lower() for one in headings), text


def test_a_page_of_text_cannot_have_the_address_of_such_a_board(tmp_path):
    entered(tmp_path, protocol=EARLIER)
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / f"{NOW}.md").write_text("mine")
    (problem,) = read_leaderboard(tmp_path, REGISTRY)[1]
    assert "has the address of another page" in problem.line


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
