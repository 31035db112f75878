"""Entries come from strangers: every defect is refused with one line and never with a traceback."""

import hashlib
import json
import shutil
import struct
import zipfile

import numpy as np
import pytest
from helpers.fake_records import REGISTRY, fake_run, submitted
from helpers.tampering import replace_outcomes, rewrite, set_at

from robflat_bench.core import CheckFailed
from robflat_bench.leaderboard import entries
from robflat_bench.leaderboard.entries import read_entries, read_entry
from robflat_bench.leaderboard.submit import add_entries
from robflat_bench.leaderboard.tree import MAX_OUTCOMES
from robflat_bench.records.store import read_arrays


@pytest.fixture
def root(tmp_path):
    return tmp_path / "leaderboard"


@pytest.fixture
def entry(tmp_path, root):
    """The folder of a valid entry."""
    return submitted(root, [fake_run(tmp_path / "runs", "trades", 2)])[0]


def refusal(root, folder):
    """The reason why it is refused; "" where it is accepted."""
    try:
        read_entry(root, folder, REGISTRY)
    except CheckFailed as error:
        return str(error)
    return ""


def test_a_valid_entry_is_read_with_record_tier_and_weights(root, entry):
    found, problems = read_entries(root, REGISTRY)
    assert problems == []
    assert [one.record.spec.label for one in found] == ["trades"]
    assert found[0].entry.tier == "self-reported"
    assert found[0].entry.weights == {name: result.weights for name, result in found[0].record.results.items()}
    assert entry == root / "records" / found[0].folder


def test_submitting_twice_changes_nothing_and_another_record_is_refused(tmp_path, root, entry):
    run = fake_run(tmp_path / "runs", "trades", 2)
    before = (entry / entries.ENTRY).read_bytes()
    add_entries(root, [run], REGISTRY, "2026-02-02")
    assert (entry / entries.ENTRY).read_bytes() == before
    other = fake_run(tmp_path / "other", "trades", 2, flatness=2.0)
    with pytest.raises(CheckFailed, match="another record of this run"):
        add_entries(root, [other], REGISTRY, "2026-02-02")


def rename_everywhere(label):
    def change(record):
        record["spec"]["label"] = label

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda record: record.update(rank=1), "unknown key 'rank'"),
        (set_at("results", "last", "clean_error", to=0.0001), "its outcomes give"),
        (set_at("results", "last", "robust_loss", "test", to=0.0001), "its outcomes give"),
        (set_at("protocol", "hash", to="0" * 64), "its protocol differs from the protocol in its spec"),
        (set_at("results", "last", "clean_error", to=float("nan")), "nan"),
        (set_at("results", "last", "clean_error", to=1e400), "inf"),
        (set_at("seed", to=10**30), "seed"),
        (rename_everywhere("<script>alert(1)</script>"), "'spec.label' = "),
        (rename_everywhere("../../../etc"), "'spec.label' = "),
        (set_at("schema_version", to=3), "'schema_version' = 3"),
        (lambda record: record["results"]["last"]["measures"].popitem(), "not the protocol's"),
        (lambda record: record["results"].pop("best"), "lack the checkpoint best"),
    ],
)
def test_a_changed_record_is_refused_with_the_reason(root, entry, change, says):
    import re

    rewrite(entry, change)
    assert re.search(says, refusal(root, entry))


def test_the_label_of_a_row_is_what_its_spec_gives(tmp_path, root, entry):
    """A file that calls AT by another name, in that name's folder, with everything else consistent."""
    rewrite(entry, rename_everywhere("my-method"))
    moved = root / "records" / "digits-linf" / "my-method" / entry.name
    moved.parent.mkdir(parents=True)
    shutil.move(entry, moved)
    assert "is called 'trades', not 'my-method'" in refusal(root, moved)


def test_another_protocol_hash_is_refused(tmp_path, root, monkeypatch):
    run = fake_run(tmp_path / "runs", "at", 1)
    folder = submitted(root, [run])[0]
    record = json.loads((folder / "record.json").read_text())
    from robflat_bench.config.spec import RunSpec

    spec = record["spec"]
    spec["protocol"]["hash"] = record["protocol"]["hash"] = "1" * 64
    key = RunSpec.model_validate(spec).key
    record["key"] = key
    target = folder.with_name(f"seed-1-{key}")
    folder.rename(target)
    (target / "record.json").write_text(json.dumps(record))
    digest = hashlib.sha256((target / "record.json").read_bytes()).hexdigest()
    rewrite(target, lambda said: said.update(key=key, record=digest), entries.ENTRY)
    assert "made under digits-linf 1.0 (11111111)" in refusal(root, target)


@pytest.mark.parametrize("key", ["\x1b[2J", "a\nb", "\u202e"])
def test_a_refusal_quotes_keys_in_one_printable_line(root, entry, key):
    rewrite(entry, lambda record: record["spec"].update({key: 1}))
    line = refusal(root, entry)
    assert "unknown key" in line
    assert line.isprintable()


def test_a_json_key_that_occurs_twice_is_refused(root, entry):
    raw = (entry / "record.json").read_text()
    (entry / "record.json").write_text(raw.replace('"seed": 2,', '"seed": 1, "seed": 2,', 1))
    assert "'seed' is there twice" in refusal(root, entry)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("9" * 5000, "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("1e999", "inf"),
        ("Infinity", "inf"),
    ],
)
def test_huge_numbers_and_deep_brackets_are_refused(root, entry, text, says):
    raw = (entry / "record.json").read_text()
    passes = json.loads(raw)["budget"]["forward"]
    (entry / "record.json").write_text(raw.replace(f'"forward": {passes}', f'"forward": {text}', 1))
    assert says in refusal(root, entry)


def test_fewer_examples_than_the_protocol_asks_for_are_refused(root, entry):
    attack = next(name for name in read_arrays(entry / "outcomes.npz") if name.startswith("last/test/autoattack"))

    def fewer(outcomes):
        outcomes[attack] = outcomes[attack][:200]

    replace_outcomes(entry, fewer)
    found = read_arrays(entry / "outcomes.npz")
    error = float(np.mean(found[attack] | found["last/test/clean/error"][:200]))
    name = attack.removeprefix("last/test/").removesuffix("/error")
    rewrite(entry, set_at("results", "last", "robust_error", name, "test", to=error))
    assert "is not of 250 examples" in refusal(root, entry)


@pytest.mark.parametrize(
    "change",
    [
        lambda outcomes: outcomes.update({"last/test/clean/error": outcomes["last/test/clean/error"].astype(float)}),
        lambda outcomes: outcomes.update({"last/test/clean/loss": np.full(500, np.nan)}),
        lambda outcomes: outcomes.update({"last/test/clean/loss": np.array(["x"] * 500)}),
        lambda outcomes: outcomes.update({"last/test/clean/error": np.zeros((500, 1), bool)}),
        lambda outcomes: outcomes.pop("last/test/clean/error"),
        lambda outcomes: outcomes.update({"last/test/clean/error": np.array(7.0)}),
    ],
)
def test_outcomes_that_no_evaluation_writes_are_refused(root, entry, change):
    replace_outcomes(entry, change)
    assert refusal(root, entry)


def test_unknown_files_and_links_in_an_entry_are_refused(root, entry):
    (entry / "setup.py").write_text("print('hello')")
    assert "setup.py' does not belong" in refusal(root, entry)
    (entry / "setup.py").unlink()
    (entry / "evaluations").mkdir(exist_ok=True)
    (entry / "evaluations" / "0.json").symlink_to("/etc/passwd")
    assert "does not belong" in refusal(root, entry)
    (entry / "evaluations" / "0.json").unlink()
    (entry / "evaluations" / "1.json").mkdir()
    assert "does not belong" in refusal(root, entry)


def test_files_over_the_size_limit_are_refused_before_they_are_read(root, entry):
    """50 MB of record; an archive that unpacks to more than it may; one that names a huge array."""
    raw = (entry / "record.json").read_bytes()
    with (entry / "record.json").open("wb") as file:
        file.truncate(50 * 1024 * 1024)
    assert "is larger than" in refusal(root, entry)
    (entry / "record.json").write_bytes(raw)
    with zipfile.ZipFile(entry / "outcomes.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.npy", bytes(MAX_OUTCOMES + 1))
    digest = hashlib.sha256((entry / "outcomes.npz").read_bytes()).hexdigest()
    rewrite(entry, set_at("outcomes", to=digest))
    assert "unpacks to more than" in refusal(root, entry)
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999,), }"
    with zipfile.ZipFile(entry / "outcomes.npz", "w") as archive:
        archive.writestr("huge.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    rewrite(entry, set_at("outcomes", to=hashlib.sha256((entry / "outcomes.npz").read_bytes()).hexdigest()))
    assert "damaged" in refusal(root, entry)


def test_a_tier_comes_from_verifications_and_withdrawing_takes_a_reason(root, entry):
    for change, says in (
        (lambda said: said.update(tier="reproduced"), "unknown key 'tier'"),
        (lambda said: said.update(status="retracted"), "needs a reason"),
        (lambda said: said.update(reason="a bug"), "an active entry must not have one"),
        (lambda said: said.update(submitted="yesterday"), "submitted"),
        (lambda said: said.update(weights={"last": "0" * 64}), "other weights"),
        (lambda said: said.update(record="0" * 64), "another record"),
    ):
        before = (entry / entries.ENTRY).read_bytes()
        rewrite(entry, change, entries.ENTRY)
        assert says in refusal(root, entry)
        (entry / entries.ENTRY).write_bytes(before)
    assert refusal(root, entry) == ""


def test_own_runs_count_as_if_they_were_submitted(registry, tmp_path):
    run = fake_run(tmp_path, "at", 1)
    found, others = entries.store_submissions(tmp_path, registry)
    assert [one.record.key for one in found] == [run.record().key]
    assert not others
