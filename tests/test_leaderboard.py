"""`robflat-bench leaderboard` and what compares methods, on runs that nobody trained."""

import json

import pytest
from fake_records import REGISTRY, fake_run, league

from robflat_bench.board import publish
from robflat_bench.board.entries import read

METHODS = {"at": 0.0, "trades": 0.4, "mart": 0.1}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    league(folder, METHODS)
    return folder


@pytest.fixture
def root(tmp_path, command, store):
    """A leaderboard with everything of the store, as its commands make it."""
    root = tmp_path / "leaderboard"
    assert command("leaderboard", "submit", "*", "--store", store, "--leaderboard", root).code == 0
    return root


def test_submit_packs_checks_and_says_what_comes_next(command, root, store):
    done = command("leaderboard", "submit", "*", "--store", store, "--leaderboard", root)
    assert done.code == 0
    assert len(done.out.splitlines()) == 9
    assert "9 packed and checked. Next: `robflat-bench leaderboard build`" in done.err
    assert command("leaderboard", "check", "--leaderboard", root).out.strip() == "9 entries checked, 0 refused"


def test_check_names_what_is_wrong_and_exits_with_3(command, root):
    folder = next(root.glob("records/*/at/*"))
    (folder / "notes.txt").write_text("mine")
    done = command("leaderboard", "check", "--leaderboard", root, "--json")
    assert done.code == 3
    assert [*json.loads(done.out)["problems"]] == [str(folder)]
    assert command("leaderboard", "build", "--leaderboard", root, "--site", root / "site").code == 3


def test_show_marks_ones_own_runs_beside_the_committed(command, root, tmp_path):
    fake_run(tmp_path / "mine", "alp", 1)
    done = command("leaderboard", "show", "--leaderboard", root, "--store", tmp_path / "mine")
    assert done.code == 0
    assert "alp *" in done.out
    assert [line.split()[0] for line in done.out.splitlines() if line.endswith("]  ")] == ["1", "2", "3"]
    found = json.loads(
        command("leaderboard", "show", "--leaderboard", root, "--store", tmp_path / "none", "--json").out
    )
    assert [row["label"] for row in found["boards"][0]["rows"]] == ["trades", "mart", "at"]


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
    done = command("leaderboard", "build", "--check", "--leaderboard", root)
    assert (done.code, done.err) == (0, "")
    (root / "board.json").write_bytes(b"{}")
    done = command("leaderboard", "build", "--check", "--leaderboard", root)
    assert done.code == 3
    assert "board.json is not what its entries give" in done.err


def test_pages_of_an_earlier_build_go(command, root, tmp_path, store):
    site = tmp_path / "site"
    command("leaderboard", "build", "--leaderboard", root, "--site", site)
    keys = {one.record.key for one in read(root, REGISTRY)[0]}
    (site / "mine.html").write_text("not the builder's")
    gone = next(root.glob("records/*/at/*"))
    for path in gone.iterdir():
        path.unlink()
    command("leaderboard", "build", "--leaderboard", root, "--site", site)
    left = {one.record.key for one in read(root, REGISTRY)[0]}
    (removed,) = keys - left
    assert not (site / "r" / removed / "index.html").exists()
    assert (site / "mine.html").exists()


def test_serve_asks_for_a_site(tmp_path, command):
    done = command("leaderboard", "serve", "--site", tmp_path)
    assert done.code == 2
    assert "leaderboard build --site" in done.err


def test_verify_asks_for_one_of_two_ways(command, root):
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


def test_compare_names_what_there_is(command, store):
    done = command("results", "compare", "trade", "at", "--store", store)
    assert done.code == 2
    assert "did you mean 'trades'" in done.err


def test_correlate_measures_with_a_target(command, store):
    done = command("results", "correlate", "average-*", "--store", store, "--json")
    (found,) = json.loads(done.out)
    assert found["models"] == 3
    assert found["target"] == "robust_loss"
    assert {statistic["name"] for statistic in found["statistics"]} >= {"pearson", "spearman", "kendall"}
    assert command("results", "correlate", "--store", store, "--target", "loss").code == 2
