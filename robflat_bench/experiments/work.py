"""From models to a document and its figure: rows are read once per model, kept, and shared by every figure.

<store>/experiments/models/<name>-<key>/   row.json, or work/ (units of an unfinished reading)
<store>/experiments/<name>-<key>/          <name>.json  <name>.png  <name>.svg

A row's key hashes all that can change its numbers (the experiment's text, weights, network, protocol, data, NUMERICS),
so one more model in a figure costs the reading of that model.
"""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

from robflat_bench import NUMERICS
from robflat_bench.config.protocol import content_hash
from robflat_bench.config.spec import ProtocolRef
from robflat_bench.core import CheckFailed, Observer
from robflat_bench.evaluation.session import configure
from robflat_bench.experiments import Chosen, choose
from robflat_bench.experiments.document import Document, Headed, Row, parsed, read_document
from robflat_bench.experiments.subject import Subject
from robflat_bench.results.store import RunFolder, Store, StoredJournal, write_atomically


def module_of(chosen: Chosen) -> Any:
    """The experiment's file: `Row`, `read` and `draw`."""
    return importlib.import_module(chosen.experiment.module)


def document_of(chosen: Chosen) -> type[Document[Any]]:
    """The model of its JSON."""
    return Document.__class_getitem__(module_of(chosen).Row)  # type: ignore[return-value]


def conduct(chosen: Chosen, subjects: list[Subject], store: Store, observer: Observer) -> Document[Any]:
    """The experiment's document. What an earlier process read is taken as it is, bit for bit."""
    first = subjects[0]
    configure(first.fixed)
    observer.evaluation_starts([f"{s.about.label}, {s.about.checkpoint}: {chosen.experiment.name}" for s in subjects])
    readings: list[Any] = []
    for subject in subjects:
        about = subject.about
        readings.append({"model": about.model_dump(), "values": _row(chosen, subject, store, observer).model_dump()})
        observer.stage_ends(f"{about.label}, {about.checkpoint}: {chosen.experiment.name}")
    protocol, data = first.protocol, first.splits.ref
    return document_of(chosen)(
        experiment=chosen.canonical,
        protocol=ProtocolRef(name=protocol.name, version=protocol.version, hash=protocol.hash),
        dataset=data.name,
        dataset_checksum=data.checksum,
        canonical_data=data.canonical,
        epsilon=first.threat.epsilon,
        evaluation_seed=first.fixed.seed,
        numerics=NUMERICS,
        readings=tuple(readings),
    )


def _row(chosen: Chosen, subject: Subject, store: Store, observer: Observer) -> Row:
    """What is read from one model: from its file if that is finished, otherwise from wherever a process stopped."""
    module = module_of(chosen)
    identity = {
        "experiment": chosen.canonical,
        "weights": subject.weights,
        "initial": subject.initial is not None,
        "network": [subject.found.backbone, subject.found.activation],
        "protocol": subject.protocol.hash,
        "dataset": subject.splits.ref.checksum,
        "numerics": NUMERICS,
    }
    name = f"{chosen.experiment.name}-{content_hash(identity)[:16]}"
    folder = RunFolder(store.root / "experiments" / "models" / name)
    path = folder.path / "row.json"
    with folder.locked():
        if path.is_file():
            return parsed(path.read_bytes(), module.Row, str(path))  # type: ignore[no-any-return]
        row: Row = module.read(subject, chosen.params, StoredJournal(folder.work, observer.unit_ends))
        write_atomically(path, row.model_dump_json(indent=2).encode())
        shutil.rmtree(folder.work, ignore_errors=True)
        return row


def publish(document: Document[Any], store: Store, out: Path | None) -> list[Path]:
    """Data and figure in the store, or in `out`: the files written."""
    name = choose(document.experiment).experiment.name
    content = document.model_dump(mode="json")
    folder = out or store.root / "experiments" / f"{name}-{content_hash(content)[:16]}"
    data = folder / f"{name}.json"
    write_atomically(data, (document.model_dump_json(indent=2) + "\n").encode())
    return [data, *picture(document, folder)]


def picture(document: Document[Any], folder: Path) -> list[Path]:
    """The figure as PNG and SVG in a folder, named after the experiment."""
    from robflat_bench.experiments import figures

    chosen = choose(document.experiment)
    paths = []
    for suffix, data in figures.rendered(module_of(chosen).draw, document).items():
        paths.append(folder / f"{chosen.experiment.name}.{suffix}")
        write_atomically(paths[-1], data)
    return paths


def redraw(file: Path, out: Path | None) -> list[Path]:
    """The figure of a document that anyone may have written, beside it or in `out`; CheckFailed where it is not one."""
    raw = read_document(file)
    chosen = choose(parsed(raw, Headed, str(file)).experiment)
    document = parsed(raw, document_of(chosen), str(file))
    try:
        return picture(document, out or file.parent)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise CheckFailed(f"{file} cannot be drawn: {error}; make it anew with `robflat-bench experiment`") from None
