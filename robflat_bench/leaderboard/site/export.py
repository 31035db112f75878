"""What others read by machine: a board as CSV, a row's badge, the changes as an Atom feed."""

from __future__ import annotations

import csv
import hashlib
import io
from typing import Any

from jinja2 import Environment

from robflat_bench.leaderboard.model import Board, Change, Leaderboard, Row
from robflat_bench.leaderboard.site.words import clean, ranks, spread


def written(env: Environment, template: str, **context: Any) -> bytes:
    """A template with its context, free of control characters."""
    return clean(env.get_template(template).render(context)).encode()


def table(board: Board) -> bytes:
    """One line per row; of each quantity mean, sd and interval at both checkpoints, as fractions and nats."""
    parts = ("mean", "sd", "low", "high", "standard_error")
    keys = [(checkpoint, quantity.id) for checkpoint in ("best", "last") for quantity in board.quantities]
    head = ["id", "label", "method", "tier", "extra_data", "seeds", "unranked", "forward", "backward", "seconds"]
    head += [f"rank:{name}:{part}" for name in board.rankings for part in ("rank", "low", "high", "letters")]
    head += [f"{checkpoint}:{name}:{part}" for checkpoint, name in keys for part in parts]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(_harmless, head))
    for row in board.rows:
        cells: list[Any] = [row.id, row.label, row.method, row.tier, row.extra_data, len(row.runs), row.unranked]
        cells += [row.forward, row.backward, row.seconds]
        for name in board.rankings:
            place = row.places.get(name)
            cells += [place.rank, place.low, place.high, place.letters] if place else [None] * 4
        for checkpoint, name in keys:
            value = row.values.get(checkpoint, {}).get(name)  # type: ignore[call-overload]
            cells += [getattr(value, part, None) for part in parts]
        writer.writerow(map(_harmless, cells))
    return out.getvalue().encode()


def _harmless(cell: Any) -> Any:
    """Text of one line that no spreadsheet takes for a formula."""
    if isinstance(cell, str):
        cell = " ".join(clean(cell).split())
        return f"'{cell}" if cell.startswith(("=", "+", "-", "@")) else cell
    return cell


def badge(env: Environment, board: Board, row: Row) -> bytes:
    """A small picture: robust error with its interval, rank with its own."""
    place, value = row.places.get(board.rankings[0]), row.values.get(board.checkpoint, {}).get(board.rankings[0])
    number = f"{spread(value, 'fraction')} %" if value else "no value"
    rank = (
        f"rank {place.rank} ({ranks(place)})"
        if place and place.low != place.high
        else f"rank {place.rank}"
        if place
        else "not ranked"
    )
    name, text = f"{board.protocol} robust error", f"{number} \u00b7 {rank}"
    name = name if len(name) <= 60 else f"{name[:59]}\u2026"
    widths = [round(6.2 * len(part)) + 16 for part in (name, text)]
    return written(env, "badge.svg", name=name, text=text, widths=widths)


def feed(env: Environment, board: Leaderboard, address: str) -> bytes:
    """The changes, newest first; links are relative where the site's address is not known."""
    return written(env, "feed.xml", changes=board.changes, address=address, identity=identity)


def identity(change: Change) -> str:
    """What an entry is called for ever: its day and a hash of what it says."""
    said = "\0".join((change.date, change.title, change.text)).encode()
    return f"{change.date}-{hashlib.sha256(said).hexdigest()[:12]}"
