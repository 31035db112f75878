"""The Compare page: its numbers are those of the pairs, hostile text stays text, and one file needs no other."""

import base64
import hashlib
import json
import re
import shutil
from html import unescape
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from helpers import board_fixture
from helpers.fake_records import fake_run
from PIL import Image

from robflat_bench.analysis.statistics import compare_methods
from robflat_bench.config.spec import RunSpec
from robflat_bench.leaderboard.build import build_leaderboard
from robflat_bench.leaderboard.comparison import compared_columns, comparisons
from robflat_bench.leaderboard.entry_checks import board_id
from robflat_bench.leaderboard.publish import read_leaderboard
from robflat_bench.leaderboard.rows import group_seeds
from robflat_bench.leaderboard.site import comparing, words
from robflat_bench.leaderboard.site.pages import comparison_page, render_site
from robflat_bench.leaderboard.site.thumbnails import ACROSS, thumbnails
from robflat_bench.records.store import Store

BOARD = "digits-linf-1.0"
ATTACK = "</script ><script >alert(1)</script >\"'&<!--"


@pytest.fixture(scope="module")
def made():
    return board_fixture.make()


@pytest.fixture(scope="module")
def page(made):
    return render_site(*made)[f"compare/{BOARD}/index.html"].decode()


def data(page: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script[ />]', page, re.DOTALL)
    return json.loads(text)


def test_the_data_hold_every_pair_once_in_the_boards_order(made, page):
    (board,), found = made[0].boards, made[1].comparisons[BOARD]
    rows, pairs = data(page)["rows"], data(page)["pairs"]
    assert [row["id"] for row in rows] == [row.id for row in board.rows]
    assert len(pairs) == len(rows) * (len(rows) - 1) / 2
    order = [(a["id"], b["id"]) for k, a in enumerate(rows) for b in rows[k + 1 :]]
    for key, columns in zip(order, pairs, strict=True):
        for column, numbers in zip(compared_columns(board), columns, strict=True):
            one = found.pairs[key][column.id]
            assert numbers[0] == pytest.approx(one.difference, rel=1e-3)
            assert (numbers[1] is None) == (one.high is None)
            if one.high is not None:
                assert numbers[1:] == pytest.approx([one.high - one.difference, one.p, one.detectable], rel=1e-3)


def test_the_data_say_which_images_each_network_gets_wrong(made, page):
    for row in data(page)["rows"]:
        for text, wrong in zip(row["wrong"], made[1].comparisons[BOARD].wrong[row["id"]], strict=True):
            packed = np.frombuffer(base64.b64decode(text), np.uint8)
            assert [*np.unpackbits(packed, bitorder="little")[: len(wrong)]] == [*wrong]


def test_every_method_stands_against_at_with_the_sign_of_the_method_minus_at(made, page):
    (board,), found = made[0].boards, made[1].comparisons[BOARD]
    table = page.split('<h2 id="against">')[1]
    for row in board.rows:
        line = next(line for line in table.splitlines() if f"/{BOARD}/{words.href(row.id)}/index.html" in line)
        cells = [unescape(re.sub("<small>.*?</small>|<.*?>", "", cell)) for cell in line.split("<td")[1:]]
        if row.id == "at":
            assert "baseline" in cells[0]
            continue
        sides = [found.wrong[id].mean() for id in (row.id, "at")]
        assert words.format_value(sides[0] - sides[1], "fraction") in cells[0]


def test_a_board_without_at_is_compared_with_its_first_row(made):
    (board,) = made[0].boards
    rows = tuple(row for row in board.rows if row.label != "at")
    assert comparing.baseline(board).label == "at"
    assert comparing.baseline(board.model_copy(update={"rows": rows})) is rows[0]


def test_text_cannot_leave_the_data():
    page = render_site(*board_fixture.make(hostile=ATTACK, methods=3))[f"compare/{BOARD}/index.html"].decode()
    assert ATTACK in {row["name"] for row in data(page)["rows"]}
    assert "<script >alert" not in page


def test_one_file_trusts_its_own_style_and_script_and_nothing_else(made):
    (board,) = made[0].boards
    page = comparison_page(board, comparing.baseline(board), made[1]).decode()
    for tag, kind in (("style", "style-src"), ("script", "script-src")):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in page
    assert not re.findall(r'(?:src|href)="', page)
    assert data(page)["sheet"]["address"].startswith("data:image/png;base64,")


def test_the_sheet_holds_the_images_in_order_line_by_line():
    images = np.random.default_rng(0).integers(0, 256, (ACROSS + 3, 4, 6, 3), np.uint8)
    made = thumbnails(images, np.arange(ACROSS + 3), "digits")
    sheet = np.asarray(Image.open(BytesIO(made.sheet)))
    assert sheet.shape == (8, 6 * ACROSS, 3)
    for k in (0, 1, ACROSS - 1, ACROSS, ACROSS + 2):
        top, left = 4 * (k // ACROSS), 6 * (k % ACROSS)
        assert (sheet[top : top + 4, left : left + 6] == images[k]).all()
    assert made.labels[-1] == ACROSS + 2
    with pytest.raises(KeyError):
        thumbnails(images, np.arange(ACROSS + 3), "cifar10")


def test_the_pairs_of_a_real_board_are_those_of_its_methods():
    """Signs, columns and rows from records to pairs."""
    root = Path(__file__).parents[2] / "leaderboard"
    runs, problems = read_leaderboard(root, board_fixture.registry())
    assert not problems
    runs = [run for run in runs if board_id(run) == "cifar10-mini" and run.entry.status == "active"]
    groups = group_seeds(runs)
    (board,) = (one for one in build_leaderboard(runs, root, board_fixture.registry()).boards if one.rows)
    found = comparisons(board, {run.record.key: group for group in groups for run in group.runs})
    by_label = {group.label: group for group in groups}
    labels = {row.id: row.label for row in board.rows}
    for (a, b), columns in list(found.pairs.items())[::7]:
        for column, one in columns.items():
            tables = [by_label[labels[row]].compared("last", column) for row in (a, b)]
            assert one == compare_methods(*tables)
            assert one.difference == pytest.approx(tables[0].mean() - tables[1].mean(), abs=1e-12)
    assert {len(columns) for columns in found.pairs.values()} == {5}


# ---------------------------------------------------------------------------------------------------------
# One's own runs
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two methods with three seeds, and one with one."""
    place = tmp_path_factory.mktemp("store")
    for method, seeds in (("trades", 3), ("at", 3), ("mart", 1)):
        for seed in range(1, seeds + 1):
            fake_run(place, method, seed)
    return place


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_a_page_of_ones_own_runs_has_the_numbers_of_the_table(command, store, tmp_path, checkpoint):
    file = tmp_path / "pair.html"
    words = ("results", "compare", "trades", "at", "--store", store, "--checkpoint", checkpoint)
    done = command(*words, "--html", file, "--json")
    assert done.code == 0
    assert f"wrote {file}: open it in a browser" in done.err
    content = file.read_text()
    found, told = data(content), done.document["quantities"]
    assert [row["name"] for row in found["rows"]] == ["TRADES", "AT"]
    sign = 1 if found["rows"][0]["name"] == "TRADES" else -1
    ((error, *_),) = found["pairs"]
    assert sign * error[0] == pytest.approx(told["robust_error"]["difference"], rel=1e-3)
    assert f"at the {checkpoint} checkpoint" in content
    assert any(row["letters"][0] for row in found["rows"]) == (checkpoint == "last"), "boards rank the last one"
    assert command(*words, "--html", file).code == 0, "a page is made anew"


def test_a_page_that_cannot_be_written_is_an_error(command, store, tmp_path):
    done = command("results", "compare", "trades", "at", "--store", store, "--html", tmp_path / "none" / "c.html")
    assert done.code == 2
    assert "name another file with --html" in done.err


def test_one_seed_has_a_page_too(command, store, tmp_path):
    done = command("results", "compare", "mart", "at", "--store", store, "--html", tmp_path / "c.html")
    assert done.code == 0
    assert "one seed" in (tmp_path / "c.html").read_text()


def test_a_method_is_not_compared_with_itself(command, store):
    done = command("results", "compare", "at", "at", "--store", store)
    assert done.code == 2
    assert "A and B are both 'at'" in done.err


def test_methods_on_different_data_are_not_compared(command, store, tmp_path):
    shutil.copytree(store, tmp_path / "mixed")
    for run in Store(tmp_path / "mixed").runs():
        document = json.loads(run.record_file.read_text())
        if document["spec"]["label"] != "mart":
            continue
        for holder in (document, document["spec"]):
            holder["dataset"] |= {"canonical": False, "checksum": "ab" * 32, "origin": "another copy"}
        document["key"] = RunSpec.model_validate(document["spec"]).key
        shutil.copytree(run.path, copy := run.path.parent / f"seed-1-{document['key']}")
        (copy / "record.json").write_text(json.dumps(document))
        shutil.rmtree(run.path)
    done = command("results", "compare", "mart", "at", "--store", tmp_path / "mixed")
    assert done.code == 2
    assert "different data, another copy and" in done.err
