"""The site: a pure function from the leaderboard, and what its pages cite, to files. No clock, network or script.

`columns` makes the table, `figures` the pictures, `cards` what is said of methods, `export` what machines read; the
templates say how it looks. Every text is escaped where it is written, and every address is made of slugs.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from robflat_bench.config.protocol import Protocol
from robflat_bench.core import LeaderboardColumn
from robflat_bench.leaderboard.model import Board, Leaderboard, Row, Run, Withdrawn
from robflat_bench.leaderboard.site import columns, curves, export, figures, words
from robflat_bench.leaderboard.site.cards import Card, equation
from robflat_bench.results.record import Number, RunRecord


@dataclass(frozen=True)
class Sources:
    """What the pages show beside the leaderboard.

    records: by run key, of every run it names (and of withdrawn ones, where they are kept). numbers: by run key and
    checkpoint, what its outcomes give with standard errors. cards: by canonical method.
    protocols: by board. pages: name -> Markdown of the site's text ("rules", "submit", ...; "about" opens the site).
    trainings: documents of `experiment training`, shown on the board of their protocol. columns: by board, those that
    plugins add to its table. address: where the site will
    lie, if that is known; only the feed asks for it.
    """

    records: Mapping[str, RunRecord]
    numbers: Mapping[str, Mapping[str, Sequence[Number]]] = field(default_factory=dict)
    cards: Mapping[str, Card] = field(default_factory=dict)
    protocols: Mapping[str, Protocol] = field(default_factory=dict)
    pages: Mapping[str, str] = field(default_factory=dict)
    trainings: tuple[curves.Training, ...] = ()
    columns: Mapping[str, Sequence[LeaderboardColumn]] = field(default_factory=dict)
    address: str = ""


def render(board: Leaderboard, sources: Sources) -> dict[str, bytes]:
    """Every file of the site: path -> content. ValueError for a name that is no slug, for two pages of one path, and
    for a run without its record."""
    site = _Site(board, sources)
    for one in board.boards:
        site.board(one)
    site.page(("index.html",), "index.html", title="robflat-bench", about=site.markdown(sources.pages.get("about", "")))
    site.page(("changes", "index.html"), "changes.html", title="Changes", identity=export.identity)
    for name, text in sources.pages.items():
        if name != "about":
            site.page(
                (name, "index.html"), "page.html", title=name.replace("-", " ").capitalize(), body=site.markdown(text)
            )
    site.add(("data", "board.json"), (board.model_dump_json(indent=1) + "\n").encode())
    site.add(("feed.xml",), export.feed(site.env, board, sources.address))
    for entry in sorted((resources.files(__package__) / "static").iterdir(), key=lambda entry: entry.name):
        site.add(("static", entry.name), entry.read_bytes())
    return site.files


class _Site:
    """The files so far, and what every page needs."""

    def __init__(self, leaderboard: Leaderboard, sources: Sources) -> None:
        self.leaderboard, self.sources = leaderboard, sources
        self.files: dict[str, bytes] = {}
        self.md = _markdown()
        self.drawn = {board.id: figures.of_board(board) for board in leaderboard.boards}
        self.env = Environment(
            loader=PackageLoader("robflat_bench.leaderboard.site"),
            autoescape=True,
            auto_reload=False,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.env.filters |= {
            "amount": words.amount,
            "equation": equation,
            "flat": lambda tree: list(words.flat(tree)),
            "href": words.href,
            "number": words.number,
            "ranks": words.ranks,
            "seconds": words.seconds,
            "shade": figures.shade,
            "spread": words.spread,
        }
        self.env.globals |= {
            "leaderboard": leaderboard,
            "drawn": self.drawn,
            "find": figures.find,
            "groups": columns.GROUPS,
            "icons": columns.ICONS,
            "interval": words.interval,
            "pages": [name for name in sources.pages if name != "about"],
        }

    def add(self, segments: tuple[str, ...], content: bytes) -> None:
        """One file; ValueError where another has its path."""
        path = words.path(*segments)
        if path in self.files:
            raise ValueError(f"two pages want the path {path}")
        self.files[path] = content

    def page(self, segments: tuple[str, ...], template: str, **context: Any) -> None:
        """One page; `root` leads from it to the site's first."""
        root = "../" * (len(segments) - 1)
        self.add(segments, export.written(self.env, template, root=root, path=segments, **context))

    def markdown(self, text: str) -> Markup:
        return Markup(self.md.render(text))

    def board(self, board: Board) -> None:
        """The board with its rows, its runs, its protocol and its data."""
        gone = [one for one in self.leaderboard.withdrawn if one.board == board.id]
        documents = [doc for doc in self.sources.trainings if doc.protocol.hash == board.hash]
        training = [f for k, doc in enumerate(documents) for f in curves.training(doc, f"{board.id}-training-{k}")]
        self.page(
            (board.id, "index.html"),
            "board.html",
            title=board.id,
            board=board,
            columns=columns.columns(board, self.sources.columns.get(board.id, ())),
            training=training,
            heat=figures.heat(board),
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
        self.add(("data", f"{board.id}.csv"), export.table(board))
        for row in board.rows:
            self.method(board, row, [one for one in gone if one.label == row.label])
        for one in gone:
            if one.key in self.sources.records:
                self.run(board, one.label, self.sources.records[one.key], one)

    def method(self, board: Board, row: Row, gone: list[Withdrawn]) -> None:
        """A row's page and badge, and the pages of its runs."""
        records = [self.record(run) for run in row.runs]
        self.page(
            ("m", board.id, row.id, "index.html"),
            "method.html",
            title=row.label,
            board=board,
            row=row,
            card=self.sources.cards.get(row.method, ()),
            results=columns.results(board, row),
            curves=curves.histories(records, "history"),
            command=command(row, board),
            withdrawn=gone,
        )
        self.add(("badge", board.id, f"{row.id}.svg"), export.badge(self.env, board, row))
        for run, record in zip(row.runs, records, strict=True):
            self.run(board, row.label, record, run, row.id)

    def record(self, run: Run) -> RunRecord:
        if run.key not in self.sources.records:
            raise ValueError(f"the board names run {run.key!r:.120}, and there is no record of it")
        return self.sources.records[run.key]

    def run(self, board: Board, label: str, record: RunRecord, run: Run | Withdrawn, row: str = "") -> None:
        """A run's page, and its record as it came."""
        raw = record.model_dump(mode="json")
        self.page(
            ("r", run.key, "index.html"),
            "run.html",
            title=f"{label}, seed {run.seed}",
            board=board,
            quantities={quantity.id: quantity for quantity in board.quantities},
            label=label,
            row=row,
            run=run,
            record=record,
            numbers={
                checkpoint: {found[:3]: found for found in numbers}
                for checkpoint, numbers in self.sources.numbers.get(run.key, {}).items()
            },
            raw=raw,
            curves=curves.histories([record], "history"),
        )
        self.add(("r", run.key, "record.json"), (record.model_dump_json(indent=1) + "\n").encode())


def command(row: Row, board: Board) -> str:
    """How anyone installs a row's plugins (or names their files) and trains its first seed."""
    plugins = [name.rpartition(" ") for name in row.plugins]
    wanted = [part for name, _, version in plugins if version != "file" for part in ("--with", f"{name}=={version}")]
    files = [part for name, _, version in plugins if version == "file" for part in ("--plugin", name)]
    changes = [part for key, value in row.changes.items() for part in ("--set", f"recipe.{key}={value}")]
    method = ["--method", row.label.partition(" [")[0], "--protocol", board.protocol]
    return shlex.join(["uv", "run", *wanted, "robflat-bench", "run", *method, *changes, "--seed", "1", *files])


def _markdown() -> MarkdownIt:
    """Markdown without HTML and without pictures, whose links leave the site only when followed."""
    md = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")

    def link(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
        if "://" in str(tokens[index].attrGet("href")):
            tokens[index].attrSet("rel", "external noopener")
        return str(self.renderToken(tokens, index, options, env))

    md.add_render_rule("link_open", link)
    wrap = '<div class="scroll" role="region" tabindex="0" aria-label="Table">'
    md.add_render_rule("table_open", lambda *_: f"{wrap}<table>\n")
    md.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return md
