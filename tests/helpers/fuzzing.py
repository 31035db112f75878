"""Fuzzing of a leaderboard: one entry or document is changed, and passes check, build, show and verify or is refused.

    field = Field(folder)
    field.try_mutant(random.Random(7))      # "refused", "built" or the tiers that were granted
    field.try_forgery(random.Random(7))

Any other exception than CheckFailed, a file outside the leaderboard and the site, and a verification of something
untrue are failures. `mutations.py` has the mutants, `forgery.py` and `lies.py` the forgeries.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from jinja2 import Environment

from helpers.board_fixture import FIGURES
from helpers.commands import promised
from helpers.fake_records import REGISTRY, fake_evaluation, fake_run, submitted
from helpers.lies import LIES
from helpers.mutations import MUTATIONS
from robflat_bench.core import CheckFailed
from robflat_bench.front import boards
from robflat_bench.leaderboard.entries import Submission
from robflat_bench.leaderboard.model import Leaderboard
from robflat_bench.leaderboard.publish import BOARD, pages, read_leaderboard, write_site
from robflat_bench.leaderboard.verify import second_look
from robflat_bench.records.record import EvaluationRecord

COMPILE = Environment.compile
COMPILED: dict[str, Any] = {}
TIERS = ("re-evaluated", "reproduced")


def compiled_once(self: Environment, source: str, *options: Any) -> Any:
    """The templates of a site are the same ones each time, and compiling them takes longer than all the rest."""
    if source not in COMPILED:
        COMPILED[source] = COMPILE(self, source, *options)
    return COMPILED[source]


class Field:
    """A leaderboard of two rows, one ranked, and the truth about the entry that is changed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root, self.site = folder, folder / "leaderboard", folder / "site"
        self.outside = folder / "outside"
        self.outside.mkdir(parents=True)
        (self.outside / "secret").write_text("mine")
        runs = [fake_run(folder / "runs", "at", seed) for seed in (1, 2, 3)] + [fake_run(folder / "runs", "trades", 1)]
        fake_evaluation(runs[0], "0" * 16)
        self.entry = submitted(self.root, runs)[0]
        for name, source in (("pages/about.md", b"# About\n"), ("references/digits-linf.toml", REFERENCES)):
            (self.root / name).parent.mkdir()
            (self.root / name).write_bytes(source)
        (self.root / "experiments").mkdir()
        shutil.copyfile(FIGURES / "training.json", self.root / "experiments" / "training.json")
        found, problems = read_leaderboard(self.root, REGISTRY)
        assert problems == []
        self.truth = next(one for one in found if self.root / "records" / one.folder == self.entry)
        write_site(pages(found, self.root, REGISTRY), self.site, self.root)
        self.pristine = {path: path.read_bytes() for path in self.root.rglob("*") if path.is_file()}
        self.counts: Counter[str] = Counter()
        """Reasons of refusals, shortened, and grants by kind."""

    # Trying

    def try_mutant(self, rng: random.Random) -> str:
        """One random mutation through the pipeline; how it ended."""
        return self._try(rng, MUTATIONS)

    def try_forgery(self, rng: random.Random) -> str:
        """One random lie, consistent in itself, through the pipeline; how it ended."""
        return self._try(rng, LIES)

    def _try(self, rng: random.Random, kinds: dict[str, Any]) -> str:
        name = rng.choice([*kinds])
        try:
            kinds[name](self, rng)
            ended = self.pipeline()
        finally:
            self.restore()
        self.counts[f"{name}: {ended}"] += 1
        return ended

    def pipeline(self) -> str:
        found, problems = read_leaderboard(self.root, REGISTRY)
        for place, line in problems:
            assert str(self.root) in str(place)
            assert line.isprintable(), f"not one printable line: {line!r}"
            line.encode()
        if problems:
            self.counts["refused because " + _kind_of(problems[0].line)] += 1
            return "refused"
        with patch.object(Environment, "compile", compiled_once):
            made = pages(found, self.root, REGISTRY)
        write_site(made, self.site, self.root)
        for board in Leaderboard.model_validate_json(made[BOARD]).boards:
            boards.markdown(*boards.board_table(board))
        one = next((one for one in found if one.record.key == self.truth.record.key), None)
        granted = [tier for tier in TIERS if one and self._granted(one, tier)]
        return " and ".join(granted) or "built"

    def _granted(self, one: Submission, tier: str) -> bool:
        """Whether an honest second look agrees with the entry; then the entry must be true."""
        last = self.truth.record.results["last"]
        look: Any = self.truth.record
        if tier == "re-evaluated":
            record = self.truth.record
            look = EvaluationRecord(
                key="0" * 16,
                model="last",
                protocol=record.protocol,
                dataset=record.dataset,
                results={"last": last},
                outcomes="0" * 64,
                environment={},
                provenance={},
            )
        try:
            second_look(one, look, self.truth.outcomes, {})
        except CheckFailed:
            return False
        found = [*lies(one, self.truth, tier)]
        assert not found, f"{tier} is granted to {found[:3]}"
        return True

    # The surroundings

    def restore(self) -> None:
        """Every file of the leaderboard as it was; AssertionError where something outside changed."""
        assert {path.name for path in self.folder.iterdir()} <= {"leaderboard", "site", "outside", "runs"}
        assert [path.name for path in self.outside.iterdir()] == ["secret"]
        assert (self.outside / "secret").read_text() == "mine"
        kept = {parent for path in self.pristine for parent in path.parents}
        for where, folders, files in os.walk(self.root, topdown=False):
            for name in (*folders, *files):
                path = Path(where) / name
                mode = path.lstat().st_mode
                if stat.S_ISDIR(mode):
                    if path not in kept:
                        shutil.rmtree(path)
                elif path not in self.pristine or not stat.S_ISREG(mode):
                    path.unlink()
        for path, raw in self.pristine.items():
            if path.is_dir():
                shutil.rmtree(path)
            if not path.is_file() or path.read_bytes() != raw:
                for parent in reversed(path.parents):
                    if parent.is_symlink():
                        parent.unlink()
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(raw)


REFERENCES = b"""[[rows]]
label = "AT"
clean_error = 0.15
robust_error = 0.54
attack = "PGD-10"
source = "a paper"
"""


def _kind_of(line: str) -> str:
    """The part of a refusal that many refusals share."""
    for sign in SIGNS:
        if sign in line:
            return sign
    return "another check"


SIGNS = (
    "does not belong",
    "cannot be read",
    "larger than",
    "there twice",
    "not valid JSON",
    "not valid TOML",
    "unknown key",
    "is missing",
    "SHA-256 differs",
    "unpacks to more",
    "members",
    "neither stored nor deflated",
    "damaged",
    "is no array",
    "no outcome",
    "its outcomes give",
    "history",
    "differs from the",
    "lies in",
    "entry.json",
    "made under",
    "is not of",
    "its attacks and measures",
    "calls its data",
    "has the",
    "is called",
    "evaluation",
    "passes",
    "' = ",
)


def lies(one: Submission, truth: Submission, tier: str) -> Iterator[str]:
    """The numbers of an entry that are not true, as far as a tier vouches for them."""
    mine, real = (promised(each.record.model_dump(mode="json")) for each in (one, truth))
    if tier == "re-evaluated":
        mine, real = ({"last": each["results"]["last"]} for each in (mine, real))
    else:
        for column in mine["history"][0]:
            pairs = [(a[column], b[column]) for a, b in zip(mine["history"], real["history"], strict=True)]
            apart = sum(abs(a - b) for a, b in pairs if a is not None and b is not None)
            if apart > 0.02 * sum(abs(b) for _, b in pairs if b is not None):
                yield f"history: {column}"
        for each in (mine, real):
            del each["history"], each["outcomes"]
            for part in (each["dataset"], each["spec"]["dataset"]):
                del part["origin"]
    for result in (*mine.get("results", mine).values(), *real.get("results", real).values()):
        for split in ("measures", "measures_train"):
            for measure in result[split].values():
                for cost in ("seconds", "reason", "forward", "backward"):  # a second look does not compare these
                    measure.pop(cost, None)
        result.pop("seconds", None)
    yield from _differences(mine, real, "")
    for name, array in truth.outcomes.items():
        vouched = tier == "reproduced" or name.startswith("last/")
        if vouched and name.endswith(("error", "loss", "per_example")) and not _alike(one.outcomes.get(name), array):
            yield name


def _alike(mine: np.ndarray | None, real: np.ndarray) -> bool:
    """Whether an array is true but for rounding: at most 0.5 % other bits, a mean within 10 %."""
    if mine is None or mine.shape != real.shape:
        return False
    if real.dtype.kind == "b":
        return int((mine != real).sum()) <= max(1, 0.005 * len(real))
    return abs(float(mine.mean()) - float(real.mean())) <= 0.1 * abs(float(real.mean())) + 1e-9


def _differences(mine: Any, real: Any, path: str) -> Iterator[str]:
    if isinstance(real, dict) and isinstance(mine, dict):
        for name in {*mine, *real}:
            if name in mine and name in real:
                yield from _differences(mine[name], real[name], f"{path}.{name}")
            else:
                yield f"{path}.{name}"
    elif isinstance(real, list) and isinstance(mine, list) and len(real) == len(mine):
        for k, (a, b) in enumerate(zip(mine, real, strict=True)):
            yield from _differences(a, b, f"{path}[{k}]")
    elif isinstance(real, int | float) and isinstance(mine, int | float) and not isinstance(real, bool):
        if abs(mine - real) > 0.1 * max(abs(mine), abs(real)):
            yield f"{path}: {mine} for {real}"
    elif mine != real:
        yield f"{path}: {json.dumps(mine):.100} for {json.dumps(real):.100}"
