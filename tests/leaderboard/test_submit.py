"""`leaderboard submit` moves in what `leaderboard check` accepts, or leaves the folder as it was."""

import hashlib
import json
import re
import shutil

import pytest
from helpers.fake_records import REGISTRY, fake_evaluation, fake_run, submitted
from pydantic import ValidationError

from robflat_bench import NUMERICS
from robflat_bench.config import spec as specs
from robflat_bench.config.spec import ProtocolRef, RunSpec
from robflat_bench.core import CheckFailed
from robflat_bench.core.archives import arrays_bytes
from robflat_bench.leaderboard.entries import read_entries
from robflat_bench.leaderboard.submit import add_entries
from robflat_bench.records import store
from robflat_bench.records.store import read_arrays

DAY = "2026-01-02"


@pytest.fixture
def run(tmp_path):
    return fake_run(tmp_path / "runs", "at", 1)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "there" / "leaderboard"


def tree(folder):
    """Every path below a folder with its content; links are not followed."""
    return {path: path.is_symlink() or (path.is_file() and path.read_bytes()) for path in folder.rglob("*")}


def add(root, *runs):
    return add_entries(root, runs, REGISTRY, DAY)


def test_a_refused_run_leaves_nothing_not_even_a_folder(tmp_path, root, run):
    record = json.loads(run.record_file.read_text())
    record["spec"]["label"] = "my-at"
    run.record_file.write_text(json.dumps(record))
    with pytest.raises(CheckFailed) as refused:
        add(root, run)
    assert str(root) in str(refused.value), "the message names the entry's place, not the temporary one"
    assert not root.parent.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


def test_one_refused_run_keeps_the_others_out(tmp_path, root, run):
    submitted(root, [fake_run(tmp_path / "runs", "trades", 1)])
    bad = fake_run(tmp_path / "runs", "mart", 1)
    bad.outcomes_file.write_bytes(b"damaged")
    before = tree(root)
    with pytest.raises(CheckFailed):
        add(root, run, bad)
    assert tree(root) == before


def test_a_disk_that_fails_in_the_middle_leaves_the_leaderboard_as_it_was(tmp_path, root, run, monkeypatch):
    from pathlib import Path

    other = fake_run(tmp_path / "runs", "mart", 1)
    submitted(root, [fake_run(tmp_path / "runs", "trades", 1)])
    before, rename, moved = tree(root), Path.rename, []

    def failing(path, target):
        if ".tmp-" in str(path) and ".tmp-" not in str(target):
            moved.append(path)
            if len(moved) == 2:
                raise OSError(28, "No space left on device", str(target))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(Exception, match="No space left"):
        add(root, run, other)
    assert len(moved) == 2
    assert tree(root) == before


def test_what_submit_writes_passes_check(root, run):
    (folder,) = add(root, run)
    assert [*map(str, read_entries(root, REGISTRY)[1])] == []
    assert {path.name for path in folder.iterdir()} == {"record.json", "outcomes.npz", "entry.json"}
    assert {path.name for path in root.iterdir()} == {"records"}


@pytest.mark.parametrize("place", ["records", "records/digits-linf", "records/digits-linf/at", "the entry"])
def test_nothing_is_written_through_a_link(tmp_path, root, run, place):
    place = f"records/{run.record().spec.folder}" if place == "the entry" else place
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / place).parent.mkdir(parents=True)
    (root / place).symlink_to(outside)
    with pytest.raises(CheckFailed, match="is a link or no folder"):
        add(root, run)
    assert not [*outside.iterdir()]


def test_a_linked_file_of_an_entry_is_not_written_through(tmp_path, root, run):
    (folder,) = add(root, run)
    secret = tmp_path / "secret"
    secret.write_text("mine")
    (folder / "record.json").unlink()
    (folder / "record.json").symlink_to(secret)
    with pytest.raises(CheckFailed, match="does not belong"):
        add(root, run)
    assert secret.read_text() == "mine"


def test_new_evaluations_join_an_entry_that_keeps_its_date(root, run):
    (folder,) = add(root, run)
    before = tree(folder)
    fake_evaluation(run, "0" * 16)
    add_entries(root, [run], REGISTRY, "2026-02-02")
    fake_evaluation(run, "1" * 16)
    add_entries(root, [run], REGISTRY, "2026-02-03")
    after = tree(folder)
    assert {name: after[name] for name in before} == before
    assert {path.stem for path in (folder / "evaluations").iterdir()} == {"0" * 16, "1" * 16}
    assert read_entries(root, REGISTRY)[1] == []
    assert {path.name for path in root.iterdir()} == {"records"}


def test_an_evaluation_of_another_checkpoint_stays_at_home(root, run):
    file = fake_evaluation(run, "0" * 16)
    document = json.loads(file.read_text())
    document["results"] = {"initial": document["results"]["last"]}
    arrays = {name.replace("last/", "initial/"): array for name, array in read_arrays(file.with_suffix(".npz")).items()}
    raw = arrays_bytes(arrays)
    document |= {"outcomes": hashlib.sha256(raw).hexdigest()}
    file.with_suffix(".npz").write_bytes(raw)
    file.write_text(json.dumps(document))
    (folder,) = add(root, run)
    assert not (folder / "evaluations").exists()
    assert read_entries(root, REGISTRY)[1] == []


def test_an_evaluation_of_the_leaderboard_is_not_replaced(root, run):
    fake_evaluation(run, "0" * 16)
    (folder,) = add(root, run)
    before = tree(folder)
    fake_evaluation(run, "0" * 16, value=2.0)
    with pytest.raises(CheckFailed, match="holds another evaluation"):
        add(root, run)
    assert tree(folder) == before


def test_a_refused_evaluation_leaves_the_entry_as_it_was(root, run):
    add(root, run)
    before = tree(root)
    file = fake_evaluation(run, "0" * 16)
    file.write_text(file.read_text().replace('"value": 1.0', '"value": -1e999'))
    with pytest.raises(CheckFailed):
        add(root, run)
    assert tree(root) == before


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "/etc", ".hidden", "-x", "", "A", "a" * 80, "a\nb", "a\x00"])
def test_the_name_of_a_protocol_names_no_place(name):
    with pytest.raises(ValidationError):
        ProtocolRef(name=name, version="1.0", hash="0" * 64)


@pytest.mark.parametrize("label", ["..", "../x", "/etc", ".hidden", "-x", "", "a\nb", "a\x1b[2J", "x" * 5000])
def test_a_label_names_no_place(run, label):
    spec = run.record().spec.model_dump()
    with pytest.raises(ValidationError):
        RunSpec.model_validate({**spec, "label": label})


@pytest.mark.parametrize("label", ["at", "trades(beta=6)", 'x(path="../../etc")', "at [epsilon=8/255]", "7x"])
def test_every_label_that_is_allowed_gives_a_folder_below_its_protocol(run, label):
    spec = RunSpec.model_validate({**run.record().spec.model_dump(), "label": label})
    parts = spec.folder.split("/")
    assert len(parts) == 3
    assert not any(part.startswith((".", "-")) or not part for part in parts)


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", -1), ("seed", 2**63), ("numerics", 0), ("numerics", 2**40), ("extra_data", "../x")],
)
def test_numbers_and_digests_of_a_spec_are_bounded(run, field, value):
    with pytest.raises(ValidationError):
        RunSpec.model_validate({**run.record().spec.model_dump(), field: value})


def test_one_run_named_twice_is_one_entry(command, run, root):
    store = run.path.parents[2]
    key = run.record().key
    done = command("leaderboard", "submit", key, run.path, f"{run.path}/", "--store", store, "--leaderboard", root)
    assert done.code == 0
    assert len(done.out.splitlines()) == 1


def test_copies_of_one_run_from_two_stores_are_refused(tmp_path, root, run):
    shutil.copytree(run.path, tmp_path / "copy" / "a" / "b" / run.path.name)
    from robflat_bench.records.store import RunFolder

    with pytest.raises(CheckFailed, match="name it once"):
        add(root, run, RunFolder(tmp_path / "copy" / "a" / "b" / run.path.name))
    assert not root.exists()


def test_a_store_without_runs_has_nothing_to_submit(command, tmp_path, root):
    done = command("leaderboard", "submit", "*", "--store", tmp_path, "--leaderboard", root)
    assert done.code == 2
    assert "no finished run to submit" in done.complaint


def test_a_file_in_place_of_the_leaderboard_is_one_line(command, tmp_path, run):
    (tmp_path / "file").write_text("")
    done = command("leaderboard", "submit", run.path, "--leaderboard", tmp_path / "file")
    assert done.code == 2
    assert "--leaderboard DIR" in done.complaint


EARLIER = "cifar10-mini@1.0"


def again(method, *settings):
    options = f"--method {method} --protocol cifar10-mini --seed 1 {' '.join(settings)}"
    return rf"robflat-bench run {options}--store \S+/runs`"


@pytest.mark.parametrize("settings", [(), ("--set recipe.weight_decay=0.005 ",)])
def test_a_run_under_an_earlier_version_is_answered_with_the_command_that_trains_it_again(tmp_path, root, settings):
    changes = tuple(text.split()[1] for text in settings)
    run = fake_run(tmp_path / "runs", "trades", 1, protocol=EARLIER, settings=changes)
    with pytest.raises(CheckFailed) as refused:
        add(root, run)
    assert "made under cifar10-mini 1.0, which version 2.0 replaces. Train it again" in str(refused.value)
    assert re.search(again(r"'trades\(beta=6.0\)'", *settings), str(refused.value))


def test_the_outcomes_of_a_run_are_read_and_checked_once(tmp_path, root, run, command, monkeypatch):
    read, real = [], store.read_outcomes
    monkeypatch.setattr(
        store, "read_outcomes", lambda record, path, *more: (read.append(path), real(record, path, *more))[1]
    )
    assert command("leaderboard", "submit", run.path, "--leaderboard", root).code == 0
    assert read.count(run.outcomes_file) == 1


def test_a_run_with_earlier_numerics_is_packed_and_says_how_to_train_it_again(tmp_path, command, monkeypatch):
    monkeypatch.setattr(specs, "NUMERICS", NUMERICS - 1)
    run = fake_run(tmp_path / "runs", "at", 1, protocol="cifar10-mini")
    monkeypatch.undo()
    line = ("leaderboard", "submit", run.path, "--leaderboard", tmp_path / "leaderboard")
    told = rf"numerics {NUMERICS - 1}: runs of this version have {NUMERICS} .* again: `{again('at')}"
    done = command(*line)
    assert done.code == 0
    assert re.search(told, done.err)
    assert "numerics" not in command(*line).err, "it is an entry already"
