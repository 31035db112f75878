"""`leaderboard check` refuses, in one line that names the file, whatever build, show or verify would trip over."""

import json
import os
import shutil

import numpy as np
import pytest
from helpers.fake_records import DATASET, REGISTRY, fake_run, submitted
from helpers.mutations import bind_socket
from helpers.tampering import replace_outcomes, rewrite

from robflat_bench.config.protocol import load
from robflat_bench.core.archives import arrays_bytes
from robflat_bench.data.splits import load_splits
from robflat_bench.leaderboard import tree
from robflat_bench.leaderboard.publish import read_leaderboard


@pytest.fixture
def root(tmp_path):
    """Two rows, a page, references and nothing else."""
    root = tmp_path / "leaderboard"
    submitted(root, [fake_run(tmp_path / "runs", "at", 1), fake_run(tmp_path / "runs", "trades", 1)])
    for name, text in (("pages/about.md", "# About"), ("references/digits-linf.toml", "")):
        (root / name).parent.mkdir()
        (root / name).write_text(text)
    return root


@pytest.fixture
def entry(root):
    return next(root.glob("records/*/at/*"))


def problems(root):
    return [line for _, line in read_leaderboard(root, REGISTRY)[1]]


def fifo(path):
    os.mkfifo(path)


ODD = {
    "file": lambda path: path.write_text("x"),
    "folder": lambda path: path.mkdir(),
    "link": lambda path: path.symlink_to("/etc/passwd"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "linked folder": lambda path: path.symlink_to("/etc"),
    "fifo": fifo,
    "socket": bind_socket,
}
STRAYS = (".hidden", "_x.txt", "UPPER", "new\nline", "spa ce", ".tmp-abc")
PLACES = (".", "records", "records/digits-linf", "records/digits-linf/at", "entry", "pages", "references")


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("place", PLACES)
def test_whatever_does_not_belong_is_named_and_never_opened(root, entry, kind, place):
    folder = entry if place == "entry" else root / place
    for name in STRAYS:
        ODD[kind](folder / name)
        (line,) = problems(root)
        assert repr(name)[1:-1] in line
        assert "does not belong" in line
        assert "\n" not in line
        (folder / name).rmdir() if (folder / name).is_dir() and kind == "folder" else (folder / name).unlink()


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "file"])
@pytest.mark.parametrize("name", ["record.json", "outcomes.npz", "entry.json", "pages/about.md", "board.json"])
def test_a_file_must_be_a_regular_file(root, entry, kind, name):
    path = root / name if name in ("pages/about.md", "board.json") else entry / name
    path.unlink(missing_ok=True)
    ODD[kind](path)
    (line,) = problems(root)
    assert path.name in line
    assert "does not belong" in line


@pytest.mark.parametrize("parents", [1, 2, 3])
def test_a_folder_must_not_be_a_link(root, entry, parents):
    """The entry, its label or its protocol are elsewhere, and linked to."""
    folder = [entry, *entry.parents][parents - 1]
    folder.rename(root.parent / "elsewhere")
    folder.symlink_to(root.parent / "elsewhere")
    assert any("does not belong" in line and folder.name in line for line in problems(root))


@pytest.mark.parametrize("name", ["record.json", "outcomes.npz", "entry.json"])
def test_a_missing_file_is_named(root, entry, name):
    (entry / name).unlink()
    (line,) = problems(root)
    assert f"{name} cannot be read: No such file" in line


def test_a_folder_that_git_would_not_keep_is_no_entry(root, entry):
    for path in entry.iterdir():
        path.unlink()
    assert problems(root) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_folder_is_named(root, entry):
    entry.chmod(0)
    assert any("cannot be read" in line for line in problems(root))
    entry.chmod(0o755)


# ---------------------------------------------------------------------------------------------------------
# Numbers and names
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("day", ["2999-01-01", "1969-12-31", "2150-01-01", "2026-1-1", "20260101", "2026-02-30"])
def test_a_date_is_a_day_that_has_come(root, entry, day):
    rewrite(entry, lambda said: said.update(submitted=day), "entry.json")
    (line,) = problems(root)
    assert day in line


def test_canonical_data_have_the_checksum_of_the_protocol(root, tmp_path):
    foreign = DATASET.model_copy(update={"checksum": "d" * 64})
    for dataset, said in (
        (foreign, "canonical: their checksum is dddd"),
        (DATASET.model_copy(update={"canonical": False}), "not canonical"),
    ):
        with pytest.raises(Exception, match=said):
            submitted(root, [fake_run(tmp_path / said[:3], "mart", 1, dataset=dataset)])
    own = foreign.model_copy(update={"canonical": False})
    submitted(root, [fake_run(tmp_path / "own", "mart", 1, dataset=own)])
    assert problems(root) == []


def test_the_checksum_of_a_protocol_is_that_of_its_data():
    protocol = load(REGISTRY, "digits-linf")
    found = load_splits(REGISTRY, protocol, None).ref
    assert (found.canonical, found.checksum) == (True, protocol.checksum)


def test_entries_of_one_board_call_the_same_data_canonical(root, tmp_path):
    """Where the protocol states no checksum."""
    for seed, checksum in ((1, "c" * 64), (2, "d" * 64)):
        one = fake_run(tmp_path / "big", "at", seed, protocol="cifar10-linf-30", dataset=_dataset(checksum))
        if seed == 1:
            submitted(root, [one])
        else:
            with pytest.raises(Exception, match="calls other data canonical than cifar10-linf-30/at/seed-1"):
                submitted(root, [one])


def test_entries_of_other_data_have_a_board_each(root, tmp_path):
    """A board of other data is named by the first digits of their checksum."""
    copies = [f"{'e' * digits}{'f' * (64 - digits)}" for digits in (8, 7, 9)]
    for seed, checksum in enumerate(copies, start=1):
        dataset = _dataset(checksum).model_copy(update={"canonical": False})
        one = fake_run(tmp_path / "big", "at", seed, protocol="cifar10-linf-30", dataset=dataset)
        if seed < 3:
            submitted(root, [one])
        else:
            with pytest.raises(Exception, match=r"name its board as other data do, those of .*/at/seed-1"):
                submitted(root, [one])


def _dataset(checksum):
    return DATASET.model_copy(update={"name": "cifar10", "checksum": checksum})


# ---------------------------------------------------------------------------------------------------------
# One network as several
# ---------------------------------------------------------------------------------------------------------


def copied(root, entry, method, seed, other):
    """Submit, as another seed or method, the outcomes and weights of an entry. other: keeps the new weights."""
    made = fake_run(root.parent / "copies", method, seed)
    record, source = json.loads(made.record_file.read_text()), json.loads((entry / "record.json").read_text())
    shutil.copyfile(entry / "outcomes.npz", made.outcomes_file)
    weights = {name: result["weights"] for name, result in record["results"].items()}
    record |= {name: source[name] for name in ("results", "outcomes", "history")}
    if other:
        for name, digest in weights.items():
            record["results"][name]["weights"] = digest
    made.record_file.write_text(json.dumps(record))
    return made


@pytest.mark.parametrize(("method", "seed"), [("at", 2), ("at", 3), ("alp", 1)])
@pytest.mark.parametrize("other", [False, True], ids=["equal weights", "equal outcomes"])
def test_one_network_is_not_two_seeds_or_two_methods(root, entry, method, seed, other):
    made = copied(root, entry, method, seed, other)
    said = "losses, image by image, of" if other else "weights of"
    with pytest.raises(Exception, match=f"has the {said} .*/at/seed-1"):
        submitted(root, [made])
    assert problems(root) == []


def test_both_copies_are_named_until_one_is_withdrawn(root, entry, tmp_path):
    made = submitted(tmp_path / "other", [copied(root, entry, "at", 2, False)])[0]
    target = entry.parent / made.name
    shutil.copytree(made, target)
    lines = problems(root)
    assert {folder for folder, _ in read_leaderboard(root, REGISTRY)[1]} == {entry, target}
    assert all('"status": "superseded"' in line for line in lines)
    rewrite(target, lambda said: said.update(status="retracted", reason="a copy"), "entry.json")
    assert problems(root) == []


def test_networks_that_answer_every_image_alike_are_no_copies(root, tmp_path):
    def collapse(outcomes):
        for name, array in outcomes.items():
            if name.endswith("clean/loss"):
                array[:] = np.log(10)

    from robflat_bench.leaderboard.entry_checks import twin_problems

    found = read_leaderboard(root, REGISTRY)[0]
    for one in found:
        collapse(one.outcomes)
    assert not [*twin_problems(found)]


# ---------------------------------------------------------------------------------------------------------
# References, pages, experiments, evaluations
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("references/unknown.toml", "", "no known protocol"),
        ("references/digits-linf.toml", "rows = 3", "rows"),
        ("references/digits-linf.toml", "[" * 5000, "not valid TOML"),
        ("references/digits-linf.toml", "x = " + "9" * 5000, "not valid TOML"),
        ("references/digits-linf.toml", b"\xff", "cannot be read"),
        (
            "references/digits-linf.toml",
            '[[rows]]\nlabel = "x"\nattack = "y"\nsource = "z"\nrobust_error = 54.1',
            "robust_error",
        ),
        ("pages/changes.md", "", "address of another page"),
        ("pages/digits-linf.md", "", "address of another page"),
        ("pages/about.md", b"\xff", "cannot be read"),
        ("pages/about.md", "x" * 70_000, "larger than"),
        ("experiments/training.json", "{}", "is missing"),
        ("experiments/training.json", "[" * 100_000, "not valid JSON"),
    ],
)
def test_documents_beside_the_entries_are_checked(root, name, text, says):
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    (line,) = problems(root)
    assert says in line
    assert (root / name).name in line
    assert "\n" not in line


def test_an_evaluation_has_its_key_as_its_name_and_both_of_its_files(root, entry):
    (entry / "evaluations").mkdir()
    lone = entry / "evaluations" / ("0" * 16 + ".npz")
    lone.write_bytes(arrays_bytes({}))
    (line,) = problems(root)
    assert "0000000000000000 is not the evaluation of that key" in line


# ---------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [["check"], ["build"], ["build", "--check"]])
def test_a_root_that_is_no_folder_is_a_wrong_argument(command, tmp_path, verb):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "leaderbord", tmp_path / "file"):
        done = command("leaderboard", *verb, "--leaderboard", root)
        assert done.code == 2
        assert f"there is no folder {root} here" in done.complaint


def test_an_empty_leaderboard_has_nothing_to_check(command, tmp_path):
    done = command("leaderboard", "check", "--leaderboard", tmp_path)
    assert done.code == 2
    assert "nothing to check" in done.complaint


def test_show_of_a_root_that_is_no_folder(command, tmp_path):
    done = command("leaderboard", "show", "--leaderboard", tmp_path / "none", "--store", tmp_path / "none")
    assert done.code == 0
    assert "there is no folder" in done.err
    (tmp_path / "file").write_text("")
    done = command("leaderboard", "show", "--leaderboard", tmp_path / "file", "--store", tmp_path / "none")
    assert (done.code, done.out) == (2, "")
    assert "there is no folder" in done.err


def test_an_entry_may_be_named_in_any_form(command, root, entry, monkeypatch, tmp_path):
    (tmp_path / "link").symlink_to(root)
    inside = entry.relative_to(root)
    forms = [entry, f"{entry}/", entry / "record.json", tmp_path / "link" / inside, entry.parent / "." / entry.name]
    for form in forms:
        assert command("leaderboard", "check", form, "--leaderboard", root).out.strip() == "1 checked, 0 refused", form
    for cwd, form, leaderboard in (
        (root, inside, "."),
        (root.parent, f"./leaderboard/{inside}/", "leaderboard"),
        (entry, ".", root),
        (tmp_path / "link" / inside.parent, entry.name, "../../.."),
        (tmp_path / "link", inside, tmp_path / "link"),
    ):
        monkeypatch.chdir(cwd)
        done = command("leaderboard", "check", form, "--leaderboard", leaderboard)
        assert (done.code, done.out.strip()) == (0, "1 checked, 0 refused"), (form, done.err)


@pytest.mark.parametrize("form", ["records", "records/digits-linf/at", "nowhere", "..", "/etc/passwd"])
@pytest.mark.parametrize("verb", [["check"], ["verify", "--retrain"]])
def test_a_path_that_is_no_entry_is_a_wrong_argument(command, root, monkeypatch, form, verb):
    monkeypatch.chdir(root)
    done = command("leaderboard", *verb, form, "--leaderboard", ".")
    assert done.code == 2
    assert f"{form} is no entry of ." in done.complaint


def test_a_named_entry_is_refused_for_its_own_problems_only(command, root, entry):
    (root / "stray").write_text("")
    assert command("leaderboard", "check", entry, "--leaderboard", root).code == 0
    (entry / "stray").write_text("")
    assert command("leaderboard", "check", entry, "--leaderboard", root).code == 3
    (other,) = root.glob("records/*/trades/*")
    assert command("leaderboard", "check", other, "--leaderboard", root).code == 0
    assert command("leaderboard", "check", "--leaderboard", root).code == 3


def test_verify_refuses_what_check_refuses(command, root, entry, tmp_path):
    made = submitted(tmp_path / "other", [copied(root, entry, "at", 2, False)])[0]
    shutil.copytree(made, entry.parent / made.name)
    done = command("leaderboard", "verify", entry, "--retrain", "--leaderboard", root)
    assert done.code == 3
    assert "has the weights of" in done.complaint


def test_the_committed_leaderboard_passes():
    from helpers.commands import REPOSITORY

    assert [*tree.walk(REPOSITORY / "leaderboard")]
    assert problems(REPOSITORY / "leaderboard") == []


def test_a_leaderboard_that_check_refuses_is_not_built_or_shown(command, root, entry, tmp_path):
    replace_outcomes(entry, lambda outcomes: outcomes.update({"odd": np.zeros(1, "V0")}))
    for verb in (["build", "--site", tmp_path / "site"], ["build", "--check"], ["show"], ["check"]):
        done = command("leaderboard", *verb, "--leaderboard", root)
        assert done.code == 3
        assert str(entry) in done.err + done.out
    assert not (tmp_path / "site").exists()
