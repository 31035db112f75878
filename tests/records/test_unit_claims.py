"""Claims: which process computes a unit of a journal."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from robflat_bench.records import unit_claims
from robflat_bench.records.journal import StoredJournal
from robflat_bench.records.unit_claims import Elsewhere, Filling, Reading


def value(number: float) -> dict[str, np.ndarray]:
    return {"value": np.array(number)}


def test_a_unit_that_another_process_computes_is_left_and_no_later_one_is_computed(tmp_path):
    """Not even by a component that catches everything: its later units may need the one that is missing."""
    claims = Filling(tmp_path)
    journal = StoredJournal(tmp_path, claims=claims)
    with Reading(tmp_path).of(tmp_path / "one.npz"):
        with pytest.raises(Elsewhere):
            journal.unit("one", lambda: value(1))
        with pytest.raises(Elsewhere):
            journal.unit("two", lambda: value(2))
    claims.leaving = False  # the next stage
    assert journal.unit("one", lambda: value(1)) == value(1)
    assert not issubclass(Elsewhere, Exception)


def test_independent_units_are_computed_around_the_one_that_another_process_computes(tmp_path):
    """From the last to the first, and in the order of their numbers for who asks."""
    claims, order = Filling(tmp_path), []
    journal = StoredJournal(tmp_path, claims=claims)

    def unit(number: int) -> float:
        def compute() -> dict[str, np.ndarray]:
            order.append(number)
            return value(number)

        return float(journal.unit(f"unit-{number}", compute)["value"])

    with Reading(tmp_path).of(tmp_path / "unit-1.npz"), pytest.raises(Elsewhere):
        journal.each(3, unit)
    assert order == [2, 0]
    claims.leaving = False
    assert journal.each(3, unit) == [0.0, 1.0, 2.0]
    assert order == [2, 0, 1]


def test_the_process_that_reads_waits_for_a_unit_and_does_not_compute_it(tmp_path):
    claimed = threading.Event()

    def elsewhere() -> None:
        with Filling(tmp_path).of(tmp_path / "one.npz"):
            claimed.set()
            time.sleep(0.2)
            StoredJournal(tmp_path).unit("one", lambda: value(1))

    other = threading.Thread(target=elsewhere)
    other.start()
    claimed.wait()
    assert StoredJournal(tmp_path, claims=Reading(tmp_path)).unit("one", lambda: value(2)) == value(1)
    other.join()


@pytest.fixture
def stopped(monkeypatch):
    """A claim counts as that of a stopped process after 0.3 s; `stopped()` stops the beats of those that begin now."""
    monkeypatch.setattr(unit_claims, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(unit_claims, "BEAT_SECONDS", 0.05)
    return lambda: monkeypatch.setattr(Filling, "_beat", lambda claims: None)


def test_a_unit_of_a_stopped_process_is_computed_by_the_one_that_reads_and_stays_as_it_wrote_it(tmp_path, stopped):
    stopped()
    claimed, reads = threading.Event(), threading.Event()
    written: list[bytes] = []
    later: list[object] = []

    def late() -> dict[str, np.ndarray]:
        claimed.set()
        reads.wait()
        return value(2)

    def elsewhere() -> None:
        later.append(StoredJournal(tmp_path, claims=Filling(tmp_path)).unit("one", late))

    other = threading.Thread(target=elsewhere)
    other.start()
    claimed.wait()
    assert StoredJournal(tmp_path, claims=Reading(tmp_path)).unit("one", lambda: value(1)) == value(1)
    written.append((tmp_path / "one.npz").read_bytes())
    reads.set()
    other.join()
    assert later == [value(1)], "the file that was written first counts"
    assert (tmp_path / "one.npz").read_bytes() == written[0]


def test_a_unit_that_takes_longer_than_the_silence_is_waited_for_while_its_process_beats(tmp_path, stopped):
    claimed = threading.Event()

    def late() -> dict[str, np.ndarray]:
        claimed.set()
        time.sleep(1.0)
        return value(2)

    other = threading.Thread(target=lambda: StoredJournal(tmp_path, claims=Filling(tmp_path)).unit("one", late))
    other.start()
    claimed.wait()
    assert StoredJournal(tmp_path, claims=Reading(tmp_path)).unit("one", lambda: value(1)) == value(2)
    other.join()


def test_the_time_in_which_the_process_that_reads_was_stopped_is_no_silence(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(unit_claims.time, "monotonic", lambda: now[0])
    silence = unit_claims._Silence(tmp_path / "beat")
    now[0] = 3600.0
    assert silence.seconds() == unit_claims.BEAT_SECONDS
    now[0] += 0.25
    assert silence.seconds() == unit_claims.BEAT_SECONDS + 0.25
    (tmp_path / "beat").touch()
    assert silence.seconds() == 0.0


def test_a_damaged_unit_is_computed_again(tmp_path):
    (tmp_path / "one.npz").write_bytes(b"damaged")
    assert StoredJournal(tmp_path).unit("one", lambda: value(1)) == value(1)
    assert StoredJournal(tmp_path).unit("one", lambda: value(2)) == value(1)
