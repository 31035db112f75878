"""Forged entries with random amounts: consistent in themselves, and untrue in one thing."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers.forgery import FORGERIES, loss_raised, measure_lowered, turned_robust
from helpers.tampering import rewrite
from robflat_bench.config.spec import RunSpec

if TYPE_CHECKING:
    from helpers.fuzzing import Field

Lie = Callable[["Field", random.Random], None]


def _forged(name: str) -> Lie:
    def lie(field: Field, rng: random.Random) -> None:
        FORGERIES[name](field.entry, np.random.default_rng(rng.randrange(2**32)))

    return lie


def images_robust(field: Field, rng: random.Random) -> None:
    """A random number of broken images withstand every attack."""
    forge = turned_robust(rng.randint(10, 200), rng.choice(("test", "train")))
    forge(field.entry, np.random.default_rng(rng.randrange(2**32)))


def loss_of_an_image(field: Field, rng: random.Random) -> None:
    """The robust loss of one image is far higher."""
    loss_raised(10 ** rng.uniform(2, 20), rng.choice(("test", "train")))(
        field.entry, np.random.default_rng(rng.randrange(2**32))
    )


def flatter(field: Field, rng: random.Random) -> None:
    """A measure is flatter by a few to many of its standard errors."""
    measure_lowered(rng.uniform(2, 200))(field.entry, np.random.default_rng(rng.randrange(2**32)))


def numbers(field: Field, rng: random.Random) -> None:
    """One number of results, history or budget is another one; every hash follows."""

    def change(record: dict[str, Any]) -> None:
        leaves = [leaf for part in ("results", "history", "budget") for leaf in _leaves(record[part])]
        node, key = rng.choice(leaves)
        value = node[key]
        far = [value * 1000 + 1000, -value * 1000 - 1000, 0 if abs(value) > 1e-6 else 1000, value + 10**12]
        node[key] = type(value)(rng.choice(far)) if not isinstance(value, bool) else not value

    rewrite(field.entry, change)


TIMES = ("seconds", "evaluation_seconds", "peak_memory_bytes")
"""What a second look does not compare: another machine is faster."""


def _leaves(node: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every number that a second look vouches for."""
    found: list[tuple[Any, Any]] = []
    for key in node if isinstance(node, dict) else range(len(node)):
        if key in TIMES:
            continue
        if isinstance(node[key], dict | list):
            found += _leaves(node[key])
        elif isinstance(node[key], int | float):
            found.append((node, key))
    return found


def _respelled(field: Field, change: Callable[[dict[str, Any]], None], source: Path | None = None) -> Path | None:
    """An entry of a changed record whose key, folder and hashes all follow; None where no spec is made of it."""
    record = json.loads((field.entry / "record.json").read_bytes())
    change(record)
    for name in ("protocol", "method", "seed", "dataset"):
        record[name] = record["spec"][name]
    try:
        spec = RunSpec.model_validate(record["spec"])
    except ValueError:
        rewrite(field.entry, lambda said: said.update(record))
        return None
    record["key"] = spec.key
    target = field.root / "records" / spec.folder
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(field.entry, target, dirs_exist_ok=True)
    raw = json.dumps(record).encode()
    (target / "record.json").write_bytes(raw)
    said = json.loads((target / "entry.json").read_bytes())
    weights = {name: result["weights"] for name, result in record["results"].items()}
    said |= {"key": spec.key, "record": hashlib.sha256(raw).hexdigest(), "weights": weights}
    (target / "entry.json").write_text(json.dumps(said))
    shutil.rmtree(target / "evaluations", ignore_errors=True)
    return target


def another_seed(field: Field, rng: random.Random) -> None:
    """The network once more, as another seed; perhaps with weights of another name."""

    def change(record: dict[str, Any]) -> None:
        record["spec"]["seed"] = rng.randint(4, 2**40)
        if rng.random() < 0.5:
            for result in record["results"].values():
                result["weights"] = f"{rng.getrandbits(256):064x}"

    _respelled(field, change)


def another_method(field: Field, rng: random.Random) -> None:
    """The network once more, as the network of another method or recipe."""
    method = rng.choice(("mart", "alp", "trades", "at+awp"))

    def change(record: dict[str, Any]) -> None:
        record["spec"] |= {"method": method, "label": method, "seed": rng.randint(4, 99)}

    _respelled(field, change)


def another_name(field: Field, rng: random.Random) -> None:
    """The entry under a label, protocol or key of the forger's choice."""
    name = rng.choice(("my-method", "../../../outside/x", "/etc/x", "..", ".x", "at\n", "AT", "x" * 300, "at\x1b[2J"))
    where = rng.choice(("label", "protocol", "key"))

    def change(record: dict[str, Any]) -> None:
        if where == "label":
            record["spec"]["label"] = name
        elif where == "protocol":
            record["spec"]["protocol"]["name"] = name
        else:
            record["key"] = name

    if where == "key":
        rewrite(field.entry, change)
        return
    target = _respelled(field, change)
    if target is not None and target != field.entry:
        shutil.rmtree(field.entry)


def foreign_data(field: Field, rng: random.Random) -> None:
    """Other data that are called canonical."""

    def change(record: dict[str, Any]) -> None:
        record["spec"]["dataset"]["checksum"] = f"{rng.getrandbits(256):064x}"
        record["spec"]["seed"] = rng.randint(4, 99)

    _respelled(field, change)


def linked(field: Field, rng: random.Random) -> None:
    """A true file, or the whole entry, through a link."""
    path = rng.choice([*field.entry.iterdir(), field.entry, field.entry.parent, field.entry.parents[1]])
    aside = field.root / "pages" / "aside.md" if path.is_file() else field.root / "records" / "aside"
    path.rename(aside)
    path.symlink_to(aside)


def other_evidence(field: Field, rng: random.Random) -> None:
    """Outcomes or results of another, better entry under this entry's spec."""
    other = rng.choice([folder for folder in field.root.glob("records/*/*/seed-*") if folder != field.entry])
    record = json.loads((other / "record.json").read_bytes())
    shutil.copyfile(other / "outcomes.npz", field.entry / "outcomes.npz")
    rewrite(field.entry, lambda mine: mine.update({key: record[key] for key in ("results", "outcomes", "history")}))
    weights = {name: result["weights"] for name, result in record["results"].items()}
    rewrite(field.entry, lambda said: said.update(weights=weights), "entry.json")


LIES: dict[str, Lie] = {
    **{name: _forged(name) for name in FORGERIES},
    **{
        each.__name__: each
        for each in (
            images_robust,
            loss_of_an_image,
            flatter,
            numbers,
            another_seed,
            another_method,
            another_name,
            foreign_data,
            linked,
            other_evidence,
        )
    },
}
