"""The site as a pure function from the leaderboard and its sources to files; no clock and no network.

`columns` makes the table, `figures` and `curves` the pictures, `cards` describes methods, `export` writes data files;
the templates hold the layout. Jinja escapes every text where it is written, and every address is made of slugs.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from robflat_bench import __version__
from robflat_bench.config.protocol import Protocol
from robflat_bench.core import LeaderboardColumn
from robflat_bench.leaderboard import tidy
from robflat_bench.leaderboard.claims import LEGEND
from robflat_bench.leaderboard.comparison import Comparisons
from robflat_bench.leaderboard.croissant import croissant
from robflat_bench.leaderboard.headline import elsewhere, headline, limits
from robflat_bench.leaderboard.links import Links
from robflat_bench.leaderboard.model import Board, BoardRow, BoardRun, Leaderboard, Withdrawn
from robflat_bench.leaderboard.site import cite, columns, comparing, curves, export, families, figures, names, words
from robflat_bench.leaderboard.site.cards import Card, equation
from robflat_bench.leaderboard.site.central import central
from robflat_bench.leaderboard.site.thumbnails import Thumbnails
from robflat_bench.records.quantities import QuantityValue
from robflat_bench.records.record import RunRecord

RESERVED = ("changes", "compare", "data", "pictures", "static")
"""Addresses of the site; a board, and every page of the leaderboard's own, has another."""
TABLE = "board.rows.csv"
"""Name of the tidy table; no board has it, since their names have no dot."""
STATIC = resources.files(__package__) / "static"
SHEET = "images.png"
"""Name of the sheet of test images, beside the page that shows them."""
FILTERS = {
    "amount": words.format_count,
    "equation": equation,
    "flags": lambda row: sorted({flag for run in row.runs for flag in run.flags}),
    "href": words.href,
    "full_name": names.full_name,
    "name": names.name,
    "leaves": lambda tree: list(words.leaves(tree)),
    "number": words.format_value,
    "ranks": words.rank_interval,
    "seconds": words.format_seconds,
    "shade": figures.shade,
    "spread": words.spread,
    "threat": words.threat,
    "unit_and_n": words.unit_and_n,
}


@dataclass(frozen=True)
class Sources:
    """What the pages show besides the leaderboard.

    Attributes
    ----------
    records : run key -> record, for every run of the leaderboard, and for withdrawn runs whose record is kept.
    outcomes : run key -> the file with the outcome of every image.
    values : run key -> checkpoint -> the numbers of that network with standard errors.
    cards : canonical method -> its card.
    protocols : board -> protocol.
    pages : name -> Markdown ("rules", "submit", ...); "about" opens the first page.
    trainings : documents of `experiment training`, shown on the board of their protocol.
    columns : board -> columns of plugins in its table.
    comparisons : board -> its rows in pairs; boards with one have a page that compares.
    images : board -> its test images, where they may be shown.
    links : the address of the site, and of pages elsewhere.
    titles : column -> title of every number of a run; the board of a later version of its protocol may lack some.
    commit : of the repository that the site is built from, "" if it is not known.
    """

    records: Mapping[str, RunRecord]
    outcomes: Mapping[str, Path] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, Sequence[QuantityValue]]] = field(default_factory=dict)
    cards: Mapping[str, Card] = field(default_factory=dict)
    protocols: Mapping[str, Protocol] = field(default_factory=dict)
    pages: Mapping[str, str] = field(default_factory=dict)
    trainings: tuple[curves.TrainingDocument, ...] = ()
    columns: Mapping[str, Sequence[LeaderboardColumn]] = field(default_factory=dict)
    comparisons: Mapping[str, Comparisons] = field(default_factory=dict)
    images: Mapping[str, Thumbnails] = field(default_factory=dict)
    links: Links = field(default_factory=Links)
    titles: Mapping[str, str] = field(default_factory=dict)
    commit: str = ""


def render_site(leaderboard: Leaderboard, sources: Sources) -> dict[str, bytes]:
    """Every file of the site: path -> content.

    Raises ValueError for a name that is not a slug, for two pages with one path, and for a run without its record.
    """
    site = _Site(leaderboard, sources)
    for board in leaderboard.boards:
        site.board(board)
    site.first()
    site.page(("changes", "index.html"), "changes.html", title="Changes", identity=export.identity)
    site.page(("data", "index.html"), "data.html", title="Data and citation", entries=cite.entries(sources.links.base))
    for name, text in sources.pages.items():
        if name != "about":
            title = name.replace("-", " ").capitalize()
            site.page((name, "index.html"), "page.html", title=title, body=site.markdown(text))
    site.add(("data", "board.json"), site.document)
    rows = tidy.tidy_rows(leaderboard)
    site.add(("data", TABLE), table := tidy.tidy_csv(rows))
    site.add(("data", "board.rows.parquet"), tidy.tidy_parquet(rows))
    site.add(("data", "croissant.json"), croissant(leaderboard, TABLE, table, sources.links.base))
    site.add(("feed.xml",), export.feed(site.env, leaderboard, sources.links.base))
    for entry in sorted(STATIC.iterdir(), key=lambda entry: entry.name):
        site.add(("static", entry.name), entry.read_bytes())
    return site.files


def comparison_page(board: Board, base: BoardRow, sources: Sources) -> bytes:
    """The comparison of a board's rows as one file that needs no other. base: the row that others are compared with."""
    site, images = _Site(Leaderboard(boards=(board,)), sources), sources.images.get(board.id)
    style, script = ((STATIC / name).read_text("utf-8") for name in ("site.css", "compare.js"))
    sheet = f"data:image/png;base64,{base64.b64encode(images.sheet).decode()}" if images else ""
    content = comparing.content(board, sources.comparisons[board.id], sources.records, base, images, sheet)
    return export.render_template(
        site.env,
        "compare.html",
        base="alone.html",
        title=f"Compare on {board.id}",
        root=None,
        others=(),
        style=Markup(style),
        script=Markup(script),
        trusted=[base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)],
        **content,
    )


class _Site:
    """The files so far, and what every page needs."""

    def __init__(self, leaderboard: Leaderboard, sources: Sources) -> None:
        self.leaderboard, self.sources = leaderboard, sources
        self.document = (leaderboard.model_dump_json(indent=1) + "\n").encode()
        self.files: dict[str, bytes] = {}
        self.md = words.markdown()
        self.env = Environment(
            loader=PackageLoader("robflat_bench.leaderboard.site"),
            autoescape=True,
            auto_reload=False,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.env.filters |= FILTERS
        self.env.globals |= {
            "leaderboard": leaderboard,
            "groups": columns.GROUPS,
            "icons": columns.ICONS,
            "interval": words.interval,
            "compared": [*sources.comparisons],
            "legend": LEGEND,
            "pages": [name for name in sources.pages if name != "about"],
            "digest": hashlib.sha256(self.document).hexdigest()[:12],
            "links": sources.links.titled,
            "base_address": sources.links.base or "ADDRESS-OF-THIS-SITE/",
            "commit": sources.commit,
            "mark": families.mark,
            "units": words.UNITS,
            "version": __version__,
        }

    def add(self, segments: tuple[str, ...], content: bytes) -> None:
        """One file; ValueError where another file has its path."""
        path = words.site_path(*segments)
        if path in self.files:
            raise ValueError(f"two pages want the path {path}")
        self.files[path] = content

    def page(self, segments: tuple[str, ...], template: str, **context: Any) -> None:
        """One page. Its `root` is the relative path to the site's first page."""
        root = "../" * (len(segments) - 1)
        self.add(segments, export.render_template(self.env, template, root=root, path=segments, **context))

    def markdown(self, text: str) -> Markup:
        return Markup(self.md.render(text))

    def first(self) -> None:
        """The first page: what the first board with a headline shows, its picture, then all boards."""
        boards = [(board, said) for board in self.leaderboard.boards if (said := headline(board))]
        board, said = boards[0] if boards else (next(iter(self.leaderboard.boards), None), "")
        self.page(
            ("index.html",),
            "index.html",
            title="robflat-bench",
            about=self.markdown(self.sources.pages.get("about", "")),
            first=board,
            said=said,
            within=limits(board) if said and board else "",
            elsewhere=elsewhere(board, self.leaderboard.boards) if said and board else "",
            shown=central(board, "", 640.0) if board else None,
        )

    def board(self, board: Board) -> None:
        """The board with its rows, its runs, its protocol and its data."""
        gone = [one for one in self.leaderboard.withdrawn if one.board == board.id]
        more = self.pictures(board)
        cards = [self.sources.cards.get(row.method, ()) for row in board.rows]
        self.page(
            (board.id, "index.html"),
            "board.html",
            title=board.id,
            board=board,
            columns=columns.table_columns(board, self.sources.columns.get(board.id, ())),
            cards=self.sources.cards,
            works=export.embedded(sorted({(part.name, part.citation) for card in cards for part in card})),
            short=words.short_titles(board.quantities, board.primary),
            shown=central(board, "../"),
            said=headline(board),
            more=more,
            heat=figures.heat_maps(board),
            withdrawn=[(one, one.key in self.sources.records) for one in gone],
        )
        protocol = self.sources.protocols.get(board.id)
        self.page(
            ("protocol", board.id, "index.html"),
            "protocol.html",
            title=f"Protocol {board.protocol} {board.version}",
            board=board,
            fixed=protocol.fixed.model_dump(mode="json") if protocol else {},
            recipe=protocol.defaults.model_dump(mode="json") if protocol else {},
        )
        self.add(("data", f"{board.id}.csv"), export.board_csv(board))
        for row in board.rows:
            self.method(board, row, [one for one in gone if one.label == row.label])
        if len(board.rows) > 1 and board.id in self.sources.comparisons:
            self.compare(board)
        for one in gone:
            if one.key in self.sources.records:
                self.run(board, one.label, self.sources.records[one.key], one)

    def pictures(self, board: Board) -> str:
        """The page of ranks, costs and training; returns what it shows in words, "" where there is nothing."""
        documents = [doc for doc in self.sources.trainings if doc.protocol.hash == board.hash]
        trained = (curves.training_figures(doc, f"{board.id}-training-{k}") for k, doc in enumerate(documents))
        drawn = {**figures.board_figures(board), "training": list(chain(*trained))}
        more = ", ".join(topic for topic, found in drawn.items() if found)
        if more:
            title = f"Pictures of {board.id}"
            path = ("pictures", board.id, "index.html")
            self.page(
                path,
                "pictures.html",
                title=title,
                board=board,
                more=more,
                drawn=drawn,
                families=families.present(board.rows),
            )
        return more

    def compare(self, board: Board) -> None:
        """Every method against adversarial training, and the data of every pair."""
        images = self.sources.images.get(board.id)
        if images:
            self.add(("compare", board.id, SHEET), images.sheet)
        found, records = self.sources.comparisons, self.sources.records
        self.page(
            ("compare", board.id, "index.html"),
            "compare.html",
            base="base.html",
            title=f"Compare on {board.id}",
            others=[one for one in found if one != board.id],
            **comparing.content(board, found[board.id], records, comparing.baseline(board), images, SHEET),
        )

    def method(self, board: Board, row: BoardRow, gone: list[Withdrawn]) -> None:
        """A row's page and badge, and the pages of its runs."""
        records = [self.record(run) for run in row.runs]
        self.page(
            ("m", board.id, row.id, "index.html"),
            "method.html",
            title=row.label,
            board=board,
            row=row,
            card=self.sources.cards.get(row.method, ()),
            base_row=comparing.baseline(board),
            results=columns.method_results(board, row),
            curves=curves.history_figures(records, "history"),
            short=words.short_titles(board.quantities, board.primary),
            command=command(row, board),
            withdrawn=[(one, one.key in self.sources.records) for one in gone],
        )
        self.add(("badge", board.id, f"{row.id}.svg"), export.badge(self.env, board, row))
        for run, record in zip(row.runs, records, strict=True):
            self.run(board, row.label, record, run, row.id)

    def record(self, run: BoardRun) -> RunRecord:
        if run.key not in self.sources.records:
            raise ValueError(f"the board names run {run.key!r:.120}, and there is no record of it")
        return self.sources.records[run.key]

    def run(self, board: Board, label: str, record: RunRecord, run: BoardRun | Withdrawn, row: str = "") -> None:
        """A run's page, and its record and outcomes as they were submitted."""
        values = self.sources.values.get(run.key, {})
        self.page(
            ("r", run.key, "index.html"),
            "run.html",
            title=f"{label}, seed {run.seed}",
            board=board,
            label=label,
            row=row,
            run=run,
            record=record,
            results={name: columns.run_results(board, found, self.sources.titles) for name, found in values.items()},
            outcomes=run.key in self.sources.outcomes,
            raw=record.model_dump(mode="json"),
            curves=curves.history_figures([record], "history"),
        )
        if run.key in self.sources.outcomes:
            self.add(("r", run.key, "outcomes.npz"), self.sources.outcomes[run.key].read_bytes())
        self.add(("r", run.key, "record.json"), (record.model_dump_json(indent=1) + "\n").encode())


def command(row: BoardRow, board: Board) -> str:
    """The command line that trains a row's first seed, with its plugins installed or its plugin files named."""
    plugins = [name.rpartition(" ") for name in row.plugins]
    wanted = [part for name, _, version in plugins if version != "file" for part in ("--with", f"{name}=={version}")]
    files = [part for name, _, version in plugins if version == "file" for part in ("--plugin", name)]
    changes = [part for key, value in row.changes.items() for part in ("--set", f"recipe.{key}={value}")]
    method = ["--method", row.label.partition(" [")[0], "--protocol", board.protocol]
    return shlex.join(["uv", "run", *wanted, "robflat-bench", "run", *method, *changes, "--seed", "1", *files])
