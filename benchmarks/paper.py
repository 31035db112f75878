"""A board beside the paper's own numbers, method by method: agreement in sign, rank and size.

    uv run python benchmarks/paper.py --board cifar10-mini --output benchmarks/records/paper-cifar10-mini.json

Robust loss on test images and average-case flatness of the last checkpoint, of the methods that have three seeds on the
board and a row in `paper.toml`. Against AT, a method's effect is log(value / AT's value).

sign: methods whose effect has the paper's sign. rank: Spearman's rho and Kendall's tau of the values. size: the slope
of our effects on the paper's, least squares through the origin: 1 is the paper's size, 0 no effect.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau, spearmanr

from robflat_bench.analysis.statistics import RANKED_SEEDS
from robflat_bench.registry.components import compose
from robflat_bench.registry.registry import Registry, discover

HERE = Path(__file__).parent
SHOWN = {"robust_loss": "robust loss", "flatness": "average-case flatness"}


def paired(board: dict[str, Any], registry: Registry) -> list[dict[str, Any]]:
    """The methods that board and paper have, AT first: our means and standard deviations, and the paper's values."""
    names = (c["id"] for c in board["quantities"])
    flatness = next(n for n in names if n.startswith("measure:average-case(") and 'coupling="reattack"' in n)
    columns = {"robust_loss": "robust_loss", "flatness": flatness}
    found = {(row["method"], json.dumps(row["changes"], sort_keys=True)): row for row in board["rows"]}
    rows = []
    for paper in tomllib.loads((HERE / "paper.toml").read_text("utf-8"))["rows"]:
        method = compose(registry, paper["method"]).canonical
        row = found.get((method, json.dumps(paper.get("recipe", {}), sort_keys=True)))
        values = row and {name: row["values"]["last"].get(column) for name, column in columns.items()}
        if values and all(value and value["seeds"] >= RANKED_SEEDS for value in values.values()):
            ours = {name: {key: value[key] for key in ("mean", "sd", "seeds")} for name, value in values.items()}
            rows.append({"label": row["label"], "ours": ours, "paper": paper})
    return rows


def agreement(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sign, rank and size of both values, and how flatness goes with robust loss, here and there."""
    ours, paper = (
        {name: np.array([of(row, name) for row in rows]) for name in SHOWN}
        for of in (lambda row, name: row["ours"][name]["mean"], lambda row, name: row["paper"][name])
    )
    found: dict[str, Any] = {"methods": len(rows)}
    for name in SHOWN:
        mine, theirs = (np.log(values[name][1:] / values[name][0]) for values in (ours, paper))
        found[name] = {
            "same sign": int((np.sign(mine) == np.sign(theirs)).sum()),
            "of": len(mine),
            "spearman": float(spearmanr(ours[name], paper[name]).statistic),
            "kendall": float(kendalltau(ours[name], paper[name]).statistic),
            "slope": float((mine * theirs).sum() / (theirs * theirs).sum()),
        }
    for place, values in (("ours", ours), ("paper", paper)):
        found[f"spearman of flatness with robust loss, {place}"] = float(spearmanr(*values.values()).statistic)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    heads = [f"{title}, {place}" for title in SHOWN.values() for place in ("here", "paper")]
    lines = [f"| method | {' | '.join(heads)} |", "|---" * 5 + "|"]
    for row in rows:
        cells = [
            cell
            for name in SHOWN
            for cell in (
                "{mean:.2f} ± {sd:.2f}".format(**row["ours"][name]),
                f"{row['paper'][name]:.2f}{'?' if row['paper'].get('unsure') else ''}",
            )
        ]
        lines.append(f"| {row['label']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--board", default="cifar10-mini", help="id of a board")
    parser.add_argument("--output", type=Path, help="file of the record")
    arguments = parser.parse_args()
    boards = json.loads((HERE.parent / "leaderboard" / "board.json").read_text("utf-8"))["boards"]
    board = next(board for board in boards if board["id"] == arguments.board)
    rows = paired(board, discover())
    found = agreement(rows)
    sys.stdout.write(f"{table(rows)}\n{json.dumps(found, indent=1)}\n")
    if arguments.output:
        document = {"board": arguments.board, **found, "rows": rows}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
