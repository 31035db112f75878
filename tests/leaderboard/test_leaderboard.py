"""`robflat-bench leaderboard` and the commands that compare methods, on synthetic runs."""

import csv
import html
import io
import json
import re
import shutil
import socket

import pytest
from helpers.fake_records import REGISTRY, fake_run, league, submitted

from robflat_bench.analysis.correlation import STATISTICS
from robflat_bench.config.spec import RunSpec
from robflat_bench.leaderboard import publish
from robflat_bench.leaderboard.entries import read_entries
from robflat_bench.leaderboard.model import Leaderboard
from robflat_bench.records.quantities import quantity_values
from robflat_bench.records.store import Store

METHODS = {"at": 0.0, "trades": 0.4, "mart": 0.1}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    league(folder, METHODS)
    return folder


@pytest.fixture
def root(tmp_path, command, store):
    """A leaderboard with every run of the store, made by its own commands."""
    root = tmp_path / "leaderboard"
    assert command("leaderboard", "submit", "*", "--store", store, "--leaderboard", root).code == 0
    return root


def test_submit_packs_checks_and_says_what_comes_next(command, root, store):
    done = command("leaderboard", "submit", "*", "--store", store, "--leaderboard", root)
    assert done.code == 0
    assert len(done.out.splitlines()) == 9
    assert "9 packed and checked. Next: `robflat-bench leaderboard build`" in done.err
    assert command("leaderboard", "check", "--leaderboard", root).out.strip() == "9 checked, 0 refused"


def test_results_commands_read_submitted_runs_like_a_store(command, root, store):
    listed = [command("results", "ls", "--store", where, "--json").document for where in (store, root / "records")]
    assert [row["key"] for row in listed[0]] == [row["key"] for row in listed[1]]
    key = listed[0][0]["key"]
    shown = [
        command("results", "show", key, "--store", where, "--json").document for where in (store, root / "records")
    ]
    assert shown[0] == shown[1]


def test_check_names_the_problem_and_exits_with_3(command, root):
    folder = next(root.glob("records/*/at/*"))
    (folder / "notes.txt").write_text("mine")
    done = command("leaderboard", "check", "--leaderboard", root, "--json")
    assert done.code == 3
    assert [*json.loads(done.out)["problems"]] == [str(folder)]
    assert command("leaderboard", "build", "--leaderboard", root, "--site", root / "site").code == 3


def test_show_marks_own_runs_among_the_committed_ones(command, root, tmp_path):
    fake_run(tmp_path / "mine", "alp", 1)
    done = command("leaderboard", "show", "--leaderboard", root, "--store", tmp_path / "mine")
    assert done.code == 0
    assert "alp *" in done.out
    assert re.findall(r"(?m)^  (\d+) \(", done.out) == ["1", "2", "3"]
    found = json.loads(
        command("leaderboard", "show", "--leaderboard", root, "--store", tmp_path / "none", "--json").out
    )
    assert [row["label"] for row in found["boards"][0]["rows"]] == ["trades", "mart", "at"]


def test_show_reports_own_runs_that_are_already_committed(command, root, store):
    done = command("leaderboard", "show", "--leaderboard", root, "--store", store)
    assert f"9 of your runs are in {root} already" in done.err


def test_a_single_seed_is_shown_with_its_standard_error(command, tmp_path):
    fake_run(tmp_path / "mine", "alp", 1)
    done = command("leaderboard", "show", "--leaderboard", tmp_path / "none", "--store", tmp_path / "mine")
    (row,) = [line for line in done.out.splitlines() if "alp *" in line]
    assert re.search(r"\d+\.\d \(\d+\.\d\)", row)
    assert "±" not in row


def test_an_empty_leaderboard_says_how_to_begin(command, tmp_path):
    done = command("leaderboard", "show", "--leaderboard", tmp_path / "none", "--store", tmp_path / "none")
    assert done.code == 0
    assert "leaderboard submit RUN" in done.err


def test_build_writes_the_committed_board_and_the_site_and_check_proves_it(command, root, tmp_path):
    """'`build --check` rebuilds both twice (two hash seeds, two time zones) and compares'"""
    site = tmp_path / "site"
    assert command("leaderboard", "build", "--leaderboard", root, "--site", site).code == 0
    assert (site / "index.html").is_file()
    assert (root / "board.json").read_bytes() == (site / publish.BOARD).read_bytes()
    assert command("leaderboard", "build", "--commit", "../x", "--leaderboard", root, "--site", site).code == 2
    done = command("leaderboard", "build", "--check", "--leaderboard", root)
    assert (done.code, done.err) == (0, "")
    (root / "board.json").write_bytes(b"{}")
    done = command("leaderboard", "build", "--check", "--leaderboard", root)
    assert done.code == 3
    assert "board.json differs from what its entries give" in done.err


def test_claims_are_those_of_board_json(command, root, tmp_path):
    done = command("leaderboard", "claims", "--leaderboard", root)
    assert done.code == 2
    assert f"`robflat-bench leaderboard build --leaderboard {root}` writes it" in done.err
    command("leaderboard", "build", "--leaderboard", root, "--site", tmp_path / "site")
    boards = [one for one in json.loads((root / "board.json").read_text())["boards"] if one["rows"]]
    found = json.loads(command("leaderboard", "claims", "--json", "--leaderboard", root).out)
    assert [(one["board"], one["claims"]) for one in found] == [(one["id"], one["claims"]) for one in boards]
    page = html.unescape((tmp_path / "site" / "index.html").read_text())
    words = "".join(command("leaderboard", "claims", "--board", "digits-linf", "--leaderboard", root).out.split())
    for one in found[0]["claims"]:
        assert one["sentence"].partition(": ")[2] in page
        assert one["rule"] in page
        assert one["id"] in words
    assert "Aclaimofseveralnumbersiscontradictedifoneofthemis" in words
    done = command("leaderboard", "claims", "--board", "cifar", "--leaderboard", root)
    assert (done.code, "has no board 'cifar'; its boards are digits-linf" in done.err) == (2, True)


def test_claims_name_the_boards_without_active_entries(command, tmp_path):
    """All boards where none can be tested; else those that were asked for."""
    root = tmp_path / "leaderboard"
    (root / "references").mkdir(parents=True)
    (root / "references" / "cifar10-linf.toml").write_text("")
    (root / "records").mkdir()
    (root / "board.json").write_text(Leaderboard(boards=()).model_dump_json())
    claims = ("leaderboard", "claims", "--leaderboard", root)
    assert "board.json has no boards, so no claim can be tested; `robflat-bench" in command(*claims).err
    command("leaderboard", "build", "--leaderboard", root, "--site", tmp_path / "site")
    said = "cifar10-linf has no active entries, so no claim can be tested there; `robflat-bench leaderboard submit"
    assert said in command(*claims).err
    submitted(root, [fake_run(tmp_path / "runs", "at", 1)])
    command("leaderboard", "build", "--leaderboard", root, "--site", tmp_path / "site")
    assert command(*claims).err == ""
    assert said in command(*claims, "--board", "cifar10-linf").err


def test_the_page_of_a_run_has_standard_errors_and_n(command, root, store, tmp_path):
    command("leaderboard", "build", "--leaderboard", root, "--site", tmp_path / "site")
    record, outcomes = Store(store).runs("record.json")[0].evidence()
    page = (tmp_path / "site" / "r" / record.key / "index.html").read_text()
    for value in quantity_values("last", record.results["last"], outcomes):
        if value.quantity in ("clean_error", "robust_error") and value.split == "test":
            assert f'<td class="n">{100 * value.standard_error:.1f}</td><td class="n">{value.n}</td>' in page


def test_pages_that_only_an_earlier_build_had_are_removed(command, root, tmp_path, store):
    site = tmp_path / "site"
    command("leaderboard", "build", "--leaderboard", root, "--site", site)
    keys = {one.record.key for one in read_entries(root, REGISTRY)[0]}
    (site / "mine.html").write_text("not the builder's")
    gone = next(root.glob("records/*/at/*"))
    for path in gone.iterdir():
        path.unlink()
    command("leaderboard", "build", "--leaderboard", root, "--site", site)
    left = {one.record.key for one in read_entries(root, REGISTRY)[0]}
    (removed,) = keys - left
    assert not (site / "r" / removed / "index.html").exists()
    assert (site / "mine.html").exists()


def test_serve_asks_for_a_site(tmp_path, command):
    done = command("leaderboard", "serve", "--site", tmp_path)
    assert done.code == 2
    assert "leaderboard build --site" in done.err


def test_a_port_in_use_is_one_line(tmp_path, command):
    (tmp_path / "index.html").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = command("leaderboard", "serve", "--site", tmp_path, "--port", port)
    assert done.code == 2
    assert f"cannot serve on port {port}: Address already in use; choose another one" in done.complaint


def test_verify_needs_weights_or_retrain(command, root):
    folder = next(root.glob("records/*/at/*"))
    done = command("leaderboard", "verify", folder, "--leaderboard", root)
    assert done.code == 2
    assert "--weights FILE or --retrain" in done.err


# ---------------------------------------------------------------------------------------------------------
# Comparing
# ---------------------------------------------------------------------------------------------------------


def test_compare_two_methods_and_their_networks(command, store):
    done = command("results", "compare", "trades", "at", "--store", store)
    assert done.code == 0
    assert "of two networks, not of two methods" in done.out
    found = json.loads(command("results", "compare", "trades", "at", "--store", store, "--json").out)
    error = found["quantities"]["robust_error"]
    assert error["low"] < error["difference"] < error["high"] < 0
    assert error["detectable"] > 0
    assert len(error["networks"]) == 3
    back = json.loads(command("results", "compare", "at", "trades", "--store", store, "--json").out)
    assert back["quantities"]["robust_error"]["difference"] == -error["difference"]


@pytest.fixture
def edited(tmp_path, store):
    """A store with runs under the protocol and under an edited file of the same name; the file."""
    file = tmp_path / "edited" / "digits-linf.toml"
    file.parent.mkdir()
    text, _ = REGISTRY.protocol("digits-linf")
    file.write_text(text.replace("epsilon = 0.2", "epsilon = 0.1", 1))
    shutil.copytree(store, tmp_path / "mixed")
    fake_run(tmp_path / "mixed", "at", 4, protocol=str(file))
    return tmp_path / "mixed", file


def test_a_name_alone_does_not_make_a_protocol(command, edited):
    """Runs under an edited file of the same name are ranked apart from runs under the original."""
    mixed, file = edited
    done = command("results", "report", "--store", mixed, "--json")
    (board,) = done.document
    assert [(row["label"], len(row["runs"])) for row in board["rows"]] == [("trades", 3), ("mart", 3), ("at", 3)]
    assert f"in {mixed} 1 under digits-linf 1.0 (" in done.err
    (board,) = command("results", "report", "--store", mixed, "--json", "--protocol", file).document
    assert [(row["label"], len(row["runs"])) for row in board["rows"]] == [("at", 1)]
    assert board["epsilon"] == 0.1
    done = command("results", "compare", "at", "trades", "--store", mixed, "--protocol", file)
    assert done.code == 2
    assert "no finished run of 'trades'" in done.err


def test_versions_of_a_method_are_named_by_the_key_of_a_run(command, tmp_path):
    """Runs of one name with other plugin code are rows of their own; an ambiguous name is an error."""
    runs = [fake_run(tmp_path, "at", 1), fake_run(tmp_path, "trades", 1)]
    document = json.loads(runs[0].record_file.read_text())
    for name, code in (("a", "1" * 64), ("b", "2" * 64)):
        changed = json.loads(json.dumps(document))
        changed["spec"]["plugins"] = {f"{name}.py file": code}
        key = RunSpec.model_validate(changed["spec"]).key
        changed["key"] = key
        copy = runs[0].path.parent / f"seed-1-{key}"
        shutil.copytree(runs[0].path, copy)
        (copy / "record.json").write_text(json.dumps(changed))
    shutil.rmtree(runs[0].path)
    keys = [run.record().key for run in Store(tmp_path).runs() if run.record().spec.label == "at"]
    done = command("results", "compare", "at", "trades", "--store", tmp_path)
    assert done.code == 2
    assert "'at' has 2 versions" in done.err
    assert all(key[:8] in done.err for key in keys)
    assert command("results", "compare", keys[0], "trades", "--store", tmp_path).code == 0
    shown = command("results", "report", "--store", tmp_path).out
    assert all(f"at {{{key[:8]}}}" in shown for key in keys)


def test_compare_suggests_the_closest_method_name(command, store):
    done = command("results", "compare", "trade", "at", "--store", store)
    assert done.code == 2
    assert "did you mean 'trades'" in done.err


def test_correlate_measures_with_a_target(command, store):
    done = command("results", "correlate", "average-*", "--store", store, "--json")
    (found,) = json.loads(done.out)
    assert found["models"] == 3
    assert found["target"] == "robust_loss"
    assert {statistic["name"] for statistic in found["statistics"]} >= {"pearson", "spearman", "kendall"}
    shown = command("results", "correlate", "average-*", "--store", store).out
    assert all(f"{name}: {kind.meaning}" in shown for name, kind in STATISTICS.items())
    assert command("results", "correlate", "--store", store, "--target", "loss").code == 2


# ---------------------------------------------------------------------------------------------------------
# Out of the store
# ---------------------------------------------------------------------------------------------------------


def test_export_has_every_number_of_every_run(command, store, tmp_path):
    done = command("results", "export", "--store", store)
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert json.loads(command("results", "export", "--store", store, "--json").out) == [
        {**row, **{name: read(row[name]) for name, read in TYPES.items()}} for row in rows
    ]
    runs = Store(store).runs("record.json")
    assert {row["key"] for row in rows} == {run.record().key for run in runs}
    record = runs[0].record()
    mine = {
        (row["checkpoint"], row["quantity"], row["of"], row["split"]): float(row["value"])
        for row in rows
        if row["key"] == record.key
    }
    for checkpoint, result in record.results.items():
        assert mine[checkpoint, "clean_error", "", "test"] == result.clean_error
        for attack, pair in result.robust_error.items():
            assert mine[checkpoint, "robust_error", attack, "test"] == pair.test
        for measure, found in result.measures.items():
            assert mine[checkpoint, "measure", measure, "test"] == found.value
    file = tmp_path / "numbers.csv"
    assert command("results", "export", "--store", store, "--output", file).out == f"{len(rows)} numbers in {file}\n"
    assert file.read_text() == done.out


def number(text):
    return float(text) if text else None


TYPES = {
    "canonical_data": "True".__eq__,
    "added": "True".__eq__,
    "seed": int,
    "n": int,
    "value": number,
    "standard_error": number,
}


def test_an_empty_store_exports_nothing_and_says_how_to_begin(command, tmp_path):
    for name in ("export", "report"):
        done = command("results", name, "--store", tmp_path)
        assert (done.code, done.out) == (0, "")
        assert "`robflat-bench run --method at` makes one" in done.err


def test_a_report_shows_the_ranking_the_test_images_and_the_software(command, store):
    done = command("results", "report", "--store", store)
    lines = done.out.splitlines()
    assert lines[0].startswith("## digits-linf 1.0 (")
    assert [line.split(" | ")[1] for line in lines if line.startswith("| ")] == ["method", "trades", "mart", "at"]
    assert "robust error: 250 test images" in done.out
    assert "made with torch ? on ?" in done.out, "synthetic runs have no environment"
    assert command("results", "report", "--store", store, "--protocol", "cifar10-mini").out == ""


def test_a_report_in_latex_escapes_what_latex_reads(command, store, tmp_path):
    fake_run(tmp_path, "at+label-noise(tau=0.3)", 1)
    done = command("results", "report", "--store", tmp_path, "--format", "latex")
    (row,) = [line for line in done.out.splitlines() if line.startswith("- & at+label-noise")]
    assert row.endswith(r"\\")
    assert r"\%" in row
    assert not re.search(r"(?<!\\)[%_#]", row)
    assert done.out.startswith("% digits-linf")


def test_prune_lists_first_and_removes_only_the_kinds_that_were_named(command, tmp_path):
    finished, failed, stopped = (fake_run(tmp_path, "at", seed) for seed in (1, 2, 3))
    for run in (failed, stopped):
        run.record_file.unlink()
    failed.failed_file.write_text("{}")
    finished.checkpoints.mkdir()
    finished.weights("last").write_bytes(b"0" * 1000)

    def prune(*options):
        rows = command("results", "prune", "--store", tmp_path, "--json", *options).document
        return {row["folder"]: row["removed"] for row in rows}

    assert prune() == {str(failed.path): False}
    assert "nothing was removed; add --yes" in command("results", "prune", "--store", tmp_path).err
    everything = {str(finished.checkpoints): False, str(failed.path): False, str(stopped.path): False}
    assert prune("--unfinished", "--weights") == everything
    assert failed.path.is_dir()
    with stopped.locked():
        (row,) = [
            row
            for row in command("results", "prune", "--store", tmp_path, "--json", "--unfinished", "--yes").document
            if row["folder"] == str(stopped.path)
        ]
    assert not row["removed"]
    assert "is working on this run" in row["error"]
    assert not failed.path.exists()
    assert stopped.path.is_dir()
    assert prune("--unfinished", "--weights", "--yes") == {str(finished.checkpoints): True, str(stopped.path): True}
    assert not stopped.path.exists()
    assert finished.record()
    assert not finished.checkpoints.exists()
