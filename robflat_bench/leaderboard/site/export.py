"""Machine-readable files: a board as CSV, a row's badge, the changes as an Atom feed."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from robflat_bench.leaderboard.model import Board, BoardRow, Change, Leaderboard
from robflat_bench.leaderboard.site.words import clean, rank_interval, spread

RANK_FIELDS = ("rank", "low", "high", "letters", "lead")
VALUE_FIELDS = ("mean", "sd", "low", "high", "standard_error")


def render_template(env: Environment, template: str, **context: Any) -> bytes:
    """A template with its context, free of control characters."""
    return clean(env.get_template(template).render(context)).encode()


def embedded(data: Any) -> Markup:
    """Data for a page's script, as JSON that no HTML can end."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def board_csv(board: Board) -> bytes:
    """One line per row. Every quantity at both checkpoints: errors as fractions, losses in nats."""
    keys = [(checkpoint, column.id) for checkpoint in ("best", "last") for column in board.quantities]
    head = ["id", "label", "method", "tier", "extra_data", "seeds", "unranked", "forward", "backward", "seconds"]
    head += [f"rank:{name}:{field}" for name in board.rankings for field in RANK_FIELDS]
    head += [f"{checkpoint}:{name}:{field}" for checkpoint, name in keys for field in VALUE_FIELDS]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(harmless, head))
    for row in board.rows:
        cells: list[Any] = [row.id, row.label, row.method, row.tier, row.extra_data, len(row.runs), row.unranked]
        cells += [row.forward, row.backward, row.seconds]
        cells += [getattr(row.places.get(name), field, None) for name in board.rankings for field in RANK_FIELDS]
        cells += [getattr(row.value(*key), field, None) for key in keys for field in VALUE_FIELDS]
        writer.writerow(map(harmless, cells))
    return out.getvalue().encode()


def harmless(cell: Any) -> Any:
    """Text on one line that no spreadsheet reads as a formula; other cells as they are."""
    if isinstance(cell, str):
        cell = " ".join(clean(cell).split())
        return f"'{cell}" if cell.startswith(("=", "+", "-", "@")) else cell
    return cell


def badge(env: Environment, board: Board, row: BoardRow) -> bytes:
    """An SVG with robust error and rank, each with its interval."""
    place, value = row.places.get(board.rankings[0]), row.value(board.checkpoint, board.rankings[0])
    rank = f"rank {place.rank}" if place else "not ranked"
    if place and place.low != place.high:
        rank += f" ({rank_interval(place)})"
    name = f"{board.protocol} robust error"
    name = name if len(name) <= 60 else f"{name[:59]}\u2026"
    error = f"{spread(value, 'fraction')} %" if value else "no value"
    text = f"{error} \u00b7 {rank}"
    widths = [round(6.2 * len(part)) + 16 for part in (name, text)]
    return render_template(env, "badge.svg", name=name, text=text, widths=widths)


def feed(env: Environment, board: Leaderboard, address: str) -> bytes:
    """The changes as Atom, newest first; links are relative where the site's address is unknown."""
    return render_template(env, "feed.xml", changes=board.changes, address=address, identity=identity)


def identity(change: Change) -> str:
    """The permanent identifier of a change: its day and a hash of its text."""
    said = "\0".join((change.date, change.title, change.text)).encode()
    return f"{change.date}-{hashlib.sha256(said).hexdigest()[:12]}"
