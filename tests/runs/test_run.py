"""One run in this process: what it loads, what it parses, and who observes it."""

from __future__ import annotations

import pytest

from robflat_bench.config.protocol import load
from robflat_bench.core import Observer, Observers, Spent
from robflat_bench.evaluation import session as sessions
from robflat_bench.evaluation.session import Session
from robflat_bench.records.store import Store
from robflat_bench.registry import components
from robflat_bench.runs.run import PlannedRun, execute

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def session(registry, tiny, tmp_path) -> Session:
    return Session(registry, load(registry, str(tiny)), None, Store(tmp_path), "cpu")


def test_a_run_parses_its_method_once(session, monkeypatch):
    composed, parsed = components.compose(session.registry, "at+ema"), []
    original = components.members
    monkeypatch.setattr(components, "members", lambda text: parsed.append(text) or original(text))
    record = execute(PlannedRun(session, composed, 1))
    assert record.method == composed.canonical
    assert parsed == []


def test_a_session_loads_the_examples_of_its_protocol_once(session, registry, tiny, monkeypatch):
    loaded = []
    original = sessions.load_splits
    monkeypatch.setattr(sessions, "load_splits", lambda *given: loaded.append(given[1]) or original(*given))
    assert loaded == [], "not before they are needed"
    assert session.splits is session.under(load(registry, str(tiny))).splits
    other = session.under(load(registry))
    assert len(other.splits.pools["train"].y) > len(session.splits.pools["train"].y) == 60
    assert loaded == [session.protocol, other.protocol]


def test_examples_that_were_passed_in_are_not_those_of_another_protocol(session, registry):
    given = Session(registry, session.protocol, session.splits, session.store, "cpu")
    assert given.splits is session.splits
    assert given.under(load(registry)).splits.ref != session.splits.ref


def test_every_event_reaches_every_observer_in_order():
    class Writing(Observer):
        def __init__(self, name: str) -> None:
            for event in vars(Observer):
                if not event.startswith("_"):
                    setattr(self, event, lambda *given, event=event, **_: seen.append((name, event, given)))

    seen: list[tuple] = []
    both = Observers(Writing("one"), Writing("two"))
    both.begins("at")
    both.training_starts(2, 6, 0)
    both.step_ends(done=1)
    both.epoch_ends([])
    both.evaluation_starts(["clean"])
    both.work_starts([0], 2, Spent)
    both.work_ends_elsewhere(0, 12, False)
    both.unit_ends()
    both.stage_ends("clean")
    both.note("text")
    assert [row[0] for row in seen] == ["one", "two"] * 10
    assert [row[1] for row in seen[::2]] == [name for name in vars(Observer) if not name.startswith("_")]
    assert seen[2][2] == (2, 6, 0)
