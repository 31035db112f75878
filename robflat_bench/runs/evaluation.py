"""One evaluation from a found model to its record, which is added to the model's folder; `evaluate` calls it."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from robflat_bench import NUMERICS
from robflat_bench.config.protocol import content_hash
from robflat_bench.config.spec import ProtocolRef, plugin_sources
from robflat_bench.core import Kind
from robflat_bench.data.own import OwnSplits
from robflat_bench.evaluation.evaluate import EvaluatedModel, evaluate
from robflat_bench.evaluation.model import FoundModel, find_model, initial_weights, load_model
from robflat_bench.evaluation.network import behaviour, check_network
from robflat_bench.evaluation.plan import Plan
from robflat_bench.evaluation.session import Session, configure
from robflat_bench.evaluation.workers import ahead
from robflat_bench.numerics.weights import digest
from robflat_bench.records.journal import StoredJournal
from robflat_bench.records.record import EvaluationRecord
from robflat_bench.records.store import RunFolder, outcomes_bytes
from robflat_bench.registry.components import Component, resolve
from robflat_bench.runs import environment


def evaluate_model(session: Session, model: FoundModel | nn.Module | str, plan: Plan) -> tuple[EvaluationRecord, Path]:
    """Attack and measure a model, and add the result to its run's folder, or to `external/` for a model without a run.

    Parameters
    ----------
    session : Session
        Store, device, observer, and the data if the model is evaluated under the session's protocol.
    model : FoundModel, nn.Module or str
        A found model, or what `find_model` finds it by. A live module is evaluated as a copy: in eval mode, in the
        protocol's precision, on the session's device.
    plan : Plan
        Attacks and measures.

    Returns
    -------
    EvaluationRecord
        Read from its file if the same network was evaluated under the same plan, on the same data, by the same code.
    Path
        The record's file; its outcomes lie beside it, as `.npz`.

    Raises
    ------
    UsageError
        If there is no such model, or `check_network` refuses it.
    """
    found = model if isinstance(model, FoundModel) else find_model(session, model)
    session = session.under(found.protocol)
    protocol, observer = session.protocol, session.observer
    subject = loaded(session, found)
    used = _components(session, found, plan)
    identity = _identity(session, found, subject, plan, used)
    key = content_hash(identity)[:16]
    home = None if isinstance(session.splits, OwnSplits) else found.home  # a run's folder holds its protocol's data
    folder = RunFolder(home or session.store.root / protocol.name / "external" / identity["weights"][:16])
    path = folder.evaluation_file(key)
    if path.is_file():
        return folder.evaluation(key), path  # without the lock: the store may be read-only
    with folder.locked(told=observer.note):
        if path.is_file():
            return folder.evaluation(key), path
        observer.evaluation_starts(plan.stage_names(session.registry, found.name))
        journal = StoredJournal(path.with_name(f"work-{key}"), observer.unit_ends)
        with ahead(session, [(plan, subject)], journal):
            result, outcomes = evaluate(session, plan, subject, journal)
        raw = outcomes_bytes({found.name: result}, outcomes)
        record = EvaluationRecord(
            key=key,
            model=found.name,
            protocol=ProtocolRef(name=protocol.name, version=protocol.version, hash=protocol.hash),
            dataset=session.splits.ref,
            results={found.name: result},
            outcomes=hashlib.sha256(raw).hexdigest(),
            environment=environment.of(session),
            provenance=environment.provenance(used)
            | ({"notes": [*found.notes]} if found.notes else {})
            | ({"hub": found.origin} if found.origin else {}),
        )
        folder.add(record, raw)
        shutil.rmtree(journal.folder, ignore_errors=True)
        return record, path


def loaded(session: Session, found: FoundModel) -> EvaluatedModel:
    """The network with its weights, ready to be evaluated; UsageError where `check_network` refuses it."""
    configure(session.fixed)
    subject = EvaluatedModel(load_model(session, found), found.name, found.epoch, initial_weights(found.initial))
    check_network(session, subject.model, found.name, found.classes)
    return subject


def _components(session: Session, found: FoundModel, plan: Plan) -> list[Component]:
    """Every component that the evaluation uses."""
    texts: list[tuple[Kind, str]] = [("backbone", found.backbone)] if found.module is None else []
    if not isinstance(session.splits, OwnSplits):
        texts.append(("dataset", session.fixed.data.dataset))
    texts += [(stage.kind, stage.text) for stage in plan.stages]
    return [resolve(session.registry, kind, text) for kind, text in dict.fromkeys(texts)]


def _identity(
    session: Session, found: FoundModel, subject: EvaluatedModel, plan: Plan, used: list[Component]
) -> dict[str, Any]:
    """Everything that can change a number of the evaluation; the key hashes it.

    The code of a live module is unknown, so its `behaviour` stands for it.
    """
    if found.module is None:
        backbone = resolve(session.registry, "backbone", found.backbone).canonical
        network = {"backbone": backbone, "activation": found.activation}
    else:
        network = {"module": found.name, "behaviour": behaviour(session, subject.model)}
        network |= {"source": found.source} if found.source else {}
    initial = subject.initial if plan.measures else None  # attacks do not read them
    return network | {
        "name": found.name,
        "weights": digest(subject.model.state_dict()),
        "initial": digest(initial) if initial else None,
        "attacks": [row.model_dump(mode="json") for row in plan.attacks],
        "measures": [row.model_dump(mode="json") for row in plan.measures],
        "protocol": session.protocol.hash,
        "dataset": session.splits.ref.checksum,
        "numerics": NUMERICS,
        "plugins": plugin_sources(used),
    }
