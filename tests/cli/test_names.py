"""Names that no file can have are answered in one line."""

import pytest
from helpers.commands import run_here


@pytest.mark.parametrize(
    "command", [("results", "show"), ("leaderboard", "submit"), ("leaderboard", "show", "--leaderboard")]
)
def test_a_name_that_is_too_long_is_one_line(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_here(*command, "x" * 5000)
    assert done.code == 2, done.err
    assert "File name too long" in done.complaint


def test_prune_fails_where_a_run_stays(tmp_path, monkeypatch):
    from robflat_bench.records import overview

    rows = [{"folder": "a", "state": "failed", "bytes": 1, "error": "Read-only file system"}]
    monkeypatch.setattr(overview, "prune", lambda *_: rows)
    done = run_here("results", "prune", "--yes", "--store", tmp_path)
    assert done.code == 1
    assert "1 of 1 were not removed" in done.err
