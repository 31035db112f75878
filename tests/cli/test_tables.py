"""Tables of the terminal at the widths of terminals: lines fit, numbers are whole, names stay apart, the next line is
there."""

import re
import shlex
from collections import Counter

import pytest
from helpers.commands import REPOSITORY, run_here
from helpers.fake_records import REGISTRY, fake_run, league
from rich.cells import cell_len

from robflat_bench import cli
from robflat_bench.front.boards import Standings
from robflat_bench.leaderboard.model import Leaderboard
from robflat_bench.records.store import read_record

WIDTHS = (80, 100, 140)
WHOLE = 5000
"""A width at which nothing is left out."""
LEAGUE = {
    "at": 0.0,
    "trades": 0.3,
    "at+label-noise(tau=0.3)": 0.1,
    "at+label-noise(tau=0.5)": 0.2,
    "mart+ema+label-smoothing(tau=0.1)": 0.4,
}
OWN = (
    "results ls --store STORE",
    "list methods",
    "list protocols",
    "info awp",
    "doctor --store STORE",
    "sweep paper-digits --plan --store STORE",
    "leaderboard show --leaderboard BOARD --store STORE",
)
LINES = (*OWN, "results compare at trades --store STORE", "results correlate --store STORE")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:[.,]\d+)*(?:e[+-]?\d+)?(?![\w])")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Runs of several methods, one with other settings and one that is not finished."""
    made = tmp_path_factory.mktemp("runs")
    league(made, LEAGUE, seeds=2)
    fake_run(made, "at", settings=("recipe.epochs=9", "recipe.weight_decay=0.01"))
    fake_run(made, "at+awp").record_file.unlink()
    return made


@pytest.fixture(scope="module")
def board():
    """What `leaderboard show` shows of the committed entries, from the committed board instead of all entries."""
    root = REPOSITORY / "leaderboard"
    committed = read_record(root / "board.json", Leaderboard)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Standings, "of", lambda *_: Standings(committed, committed.boards, frozenset()))
        yield root


def shown(line, store, board, width, monkeypatch):
    """What a command prints at a width; the store has a short name, as it does in practice."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(store.parent)
    places = {"STORE": store.name, "BOARD": str(board)}
    done = run_here(*(places.get(word, word) for word in shlex.split(line)))
    assert done.code == 0, done.err
    return done.out


@pytest.mark.parametrize("line", LINES)
def test_a_table_fits_without_cutting_numbers_or_names(line, store, board, monkeypatch):
    whole = shown(line, store, board, WHOLE, monkeypatch)
    assert "no room" not in whole
    assert "\u2026" not in whole
    for width in WIDTHS:
        text = shown(line, store, board, width, monkeypatch)
        assert max(map(cell_len, text.splitlines())) <= width
        text = re.sub(r"(?s)no room for .*?or add\s--json", "", text)
        assert not Counter(NUMBER.findall(text)) - Counter(NUMBER.findall(whole)), "a part of a number"
        for short in {word for word in text.split() if "\u2026" in word}:
            parts = ".+".join(map(re.escape, short.split("\u2026")))
            assert len({word for word in whole.split() if re.fullmatch(parts, word)}) == 1, short


@pytest.mark.parametrize("line", OWN)
def test_the_last_line_names_the_next_command(line, store, board, monkeypatch):
    last = shown(line, store, board, WHOLE, monkeypatch).splitlines()[-1]
    command = re.search(r"^next: `robflat-bench ([^`]+)`", last)[1]
    assert "{" not in command
    assert run_here(*shlex.split(command)[:1], "--help").code == 0


def test_results_ls_names_quantity_unit_checkpoint_and_n(store, board, monkeypatch):
    text = shown("results ls --store STORE", store, board, WHOLE, monkeypatch)
    heading, *lines = [line.strip() for line in text.splitlines() if line.strip()]
    assert heading == f"{store.name}: runs under digits-linf; last checkpoint, test images"
    columns = re.split(r"\s{3,}", lines[0])
    assert columns[:6] == ["key", "run", "seed", "state", "robust error, %, n=250", "clean error, %, n=500"]
    assert all(re.search(r", (%|nats), n=\d+$", column) for column in columns[4:])
    assert text.count("Lower is better") == 1


def test_results_ls_shows_the_numbers_of_its_document(store, board, monkeypatch):
    text = shown("results ls --store STORE", store, board, WHOLE, monkeypatch)
    rows = run_here("results", "ls", "--store", store, "--json").document
    for row in rows:
        cells = next(re.split(r"\s{3,}", line.strip()) for line in text.splitlines() if row["key"][:8] in line)
        if row["state"] != "done":
            assert set(cells[4:]) == {"-"}
            continue
        errors = [row["worst_case"], row["clean_error"]]
        assert cells[1:6] == [row["run"], str(row["seed"]), "done", *(f"{100 * value:.1f}" for value in errors)]
        assert row["worst_case"] >= max(row["robust_error"].values())
        assert row["n"] == {
            "worst_case": 250,
            "clean_error": 500,
            "robust_error": {name: 500 if name.startswith("pgd") else 250 for name in row["robust_error"]},
            "measures": dict.fromkeys(row["measures"], 250),
        }


def test_an_empty_store_names_the_line_that_fills_it(tmp_path):
    done = run_here("results", "ls", "--store", tmp_path)
    first, *_, last = done.out.splitlines()
    assert first == f"no runs in {tmp_path}"
    assert last == f"next: `robflat-bench run --method at --store {tmp_path}`"


def test_keys_are_shown_as_far_as_they_differ(store):
    from robflat_bench.front.shown import store_parts
    from robflat_bench.records.overview import overview
    from robflat_bench.records.store import Store

    rows, _ = overview(Store(store))
    alike = [{**row, "key": f"{'0' * 11}{k}abcd"} for k, row in enumerate(rows[:3])]
    table, *_ = store_parts(REGISTRY, Store(store), alike)
    assert [row[0] for row in table.rows] == ["0" * 11 + str(k) for k in range(3)]


def test_doctor_shows_sizes_in_gb_and_keeps_bytes_in_its_document(tmp_path):
    text = run_here("doctor", "--store", tmp_path).out
    found = run_here("doctor", "--store", tmp_path, "--json").document
    sizes = {"memory": found["environment"]["memory_bytes"], "store: disk": found["store"]["disk_bytes"]}
    assert all(isinstance(size, int) and size > 10**8 for size in sizes.values())
    for name, size in sizes.items():
        assert re.search(rf"(?m)^ *{name} +{size / 1e9:.1f} GB *$", text)
    assert re.search(r"(?m)^ *store: free +\d+\.\d GB *$", text)
    assert "_bytes" not in text


# ---------------------------------------------------------------------------------------------------------
# Widths
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", ["", "0", "wide", "-5"])
def test_columns_that_name_no_width_are_200_in_a_pipe(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    lines = run_here("list", "measures").out.splitlines()
    assert 140 < max(map(len, lines)) <= 200


def test_lines_in_a_pipe_of_unknown_width_stay_whole(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = run_here("sweep", "paper-digits", "--plan").out.splitlines()
    assert any(line.startswith("training, evaluation: 10^6") and line.endswith("varies") for line in lines)


def test_a_text_to_paste_is_not_wrapped(store, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    for line in (["results", "export"], ["results", "report"], ["results", "report", "--format", "latex"]):
        narrow = run_here(*line, "--store", store).out
        monkeypatch.delenv("COLUMNS")
        assert narrow == run_here(*line, "--store", store).out
        assert max(map(len, narrow.splitlines())) > 60
        monkeypatch.setenv("COLUMNS", "60")


def test_a_command_that_is_wider_than_the_terminal_stays_on_one_line(store, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    place = store / ("x" * 60)
    last = run_here("doctor", "--store", place).out.splitlines()[-1]
    assert last == f"`robflat-bench run --method at --store {place}`"


# ---------------------------------------------------------------------------------------------------------
# Brackets
# ---------------------------------------------------------------------------------------------------------

BRACKETS = """
import rich_click as click
from robflat_bench.api import hookimpl

@click.command("brackets")
@click.option("--radius", help="Radius in [0,1] of [bold]each[/bold] layer [red].")
def brackets(radius):
    "Runs [epochs=9] of [/] a plugin."

@hookimpl
def robflat_bench_commands():
    return [brackets]
"""


@pytest.fixture
def offered():
    """Plugins' commands are looked for once per process; here anew."""
    cli.cli._offered.cache_clear()
    yield
    cli.cli._offered.cache_clear()


@pytest.mark.usefixtures("offered")
def test_brackets_of_a_plugins_help_are_text(site, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    site.install("brackets", {"brackets.py": BRACKETS})
    words = " ".join(run_here("brackets", "--help").out.replace("\u2502", " ").split())
    assert "Radius in [0,1] of [bold]each[/bold] layer [red]." in words
    assert "Runs [epochs=9] of [/] a plugin." in words


def test_brackets_of_a_name_are_text(store, board, monkeypatch):
    text = shown("results ls --store STORE", store, board, WHOLE, monkeypatch)
    assert "at [epochs=9 weight_decay=0.01]" in text
