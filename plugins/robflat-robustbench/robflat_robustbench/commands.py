"""`robflat-bench robustbench`: list the models, and write their published numbers as reference rows."""

from __future__ import annotations

import fnmatch
import json
import os
from pathlib import Path
from typing import Any

import rich_click as click

from robflat_robustbench import MODELS, RobustBenchParams
from robflat_robustbench.published import merged, published


@click.group()
def robustbench() -> None:
    """RobustBench's models and published numbers."""


@robustbench.command()
@click.argument("pattern", default="*")
@click.option("--models", envvar=MODELS, help=f"Folder of weights [env: {MODELS}; default: models].")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def models(pattern: str, models: str | None, as_json: bool) -> None:
    """List the models whose name matches PATTERN, with the place of their weights and their published errors."""
    from robflat_robustbench.zoo import files, zoo

    rows: list[dict[str, Any]] = []
    for (dataset, threat), names in zoo().items():
        for name in fnmatch.filter(names, pattern):
            params = RobustBenchParams(name=name, dataset=dataset, threat=threat, models=models)  # type: ignore[arg-type]
            paths = files(params)
            known = published().get(name) if (dataset, threat) == ("cifar10", "Linf") else None
            rows.append(
                {
                    "name": name,
                    "dataset": dataset,
                    "threat": threat,
                    "files": [str(path) for path in paths],
                    "here": all(path.is_file() for path in paths),
                    "clean_error": known.clean_error if known else None,
                    "robust_error": known.robust_error if known else None,
                }
            )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    click.echo(f"{'name':44}{'data set':10}{'threat':13}{'weights':9}{'clean error':>13}{'AutoAttack':>12}")
    for row in rows:
        numbers = ["-" if row[key] is None else f"{row[key]:.2%}" for key in ("clean_error", "robust_error")]
        where = "here" if row["here"] else "-"
        click.echo(f"{row['name']:44}{row['dataset']:10}{row['threat']:13}{where:9}{numbers[0]:>13}{numbers[1]:>12}")


@robustbench.command()
@click.option(
    "--leaderboard",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Folder of the leaderboard.",
)
@click.option("--protocol", default="robustbench-linf", show_default=True, help="Protocol of the board.")
def references(leaderboard: Path, protocol: str) -> None:
    """Write the published numbers into a board's reference rows; other rows stay as they are."""
    path = leaderboard / "references" / f"{protocol}.toml"
    before = path.read_text("utf-8") if path.is_file() else ""
    rows = [known.reference for known in published().values()]
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(merged(before, rows), "utf-8")
    os.replace(temporary, path)
    click.echo(f"{len(rows)} rows: {path}")
