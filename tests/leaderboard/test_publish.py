"""Writing the site, and building the board again in another process."""

import hashlib
import io
import os

import numpy as np
import pytest
from helpers.fake_records import REGISTRY, fake_run, submitted

from robflat_bench.core import UsageError
from robflat_bench.leaderboard.publish import differences, pages, read_leaderboard, write_site


def test_build_check_survives_noise_and_files_of_the_working_directory(tmp_path, monkeypatch):
    noisy, root = tmp_path / "noisy.py", tmp_path / "leaderboard"
    noisy.write_text("import os\nos.write(1, b'NOISE')\n")
    submitted(root, [fake_run(tmp_path / "runs", "at", 1)])
    (tmp_path / "secrets.py").write_text("raise RuntimeError('shadowed')\n")
    monkeypatch.chdir(tmp_path)
    write_site(pages(read_leaderboard(root, REGISTRY)[0], root, REGISTRY), tmp_path / "site", root)
    assert differences(root, (noisy,)) == ""


@pytest.mark.parametrize("damage", ["{", "[1, null]", "3"])
def test_a_damaged_list_of_files_does_not_stop_a_build(tmp_path, damage):
    site, root = tmp_path / "site", tmp_path
    site.mkdir()
    (root / "lb").mkdir()
    (site / "files.json").write_text(damage)
    write_site({"data/board.json": b"x"}, site, root / "lb")
    assert (site / "data/board.json").read_bytes() == b"x"


@pytest.mark.parametrize("place", ["file", "lb", "lb/site"])
def test_a_site_that_cannot_be_written_is_a_line(tmp_path, place):
    (tmp_path / "lb").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError):
        write_site({"data/board.json": b"x"}, tmp_path / place, tmp_path / "lb")


def test_a_pipe_in_the_site_is_a_line(tmp_path):
    (tmp_path / "lb").mkdir()
    (tmp_path / "site").mkdir()
    os.mkfifo(tmp_path / "site/index.html")
    with pytest.raises(UsageError, match="regular"):
        write_site({"index.html": b"", "data/board.json": b"x"}, tmp_path / "site", tmp_path / "lb")


def test_a_runs_page_links_what_happened_to_every_image(tmp_path):
    root = tmp_path / "leaderboard"
    submitted(root, [fake_run(tmp_path / "runs", "at", 1)])
    (run,) = read_leaderboard(root, REGISTRY)[0]
    made = pages([run], root, REGISTRY)
    folder = f"r/{run.record.key}"
    assert hashlib.sha256(made[f"{folder}/outcomes.npz"]).hexdigest() == run.record.outcomes
    assert b'href="outcomes.npz"' in made[f"{folder}/index.html"]
    assert "last/test/clean/error" in np.load(io.BytesIO(made[f"{folder}/outcomes.npz"])), "the page names this array"
