"""From models to a document and its figure. Each model is read once; every figure reuses its values.

<store>/experiments/models/<name>-<key>/   row.json, or work/ (units of an unfinished reading)
<store>/experiments/<name>-<key>/          <name>.json  <name>.png  <name>.svg

The key hashes everything that can change the values of a model: the experiment's text, weights, network, protocol,
data and NUMERICS. A figure with one more model reads that model only.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from robflat_bench import NUMERICS
from robflat_bench.config.protocol import content_hash
from robflat_bench.config.spec import ProtocolRef
from robflat_bench.core import CheckFailed, Observer
from robflat_bench.evaluation.session import configure
from robflat_bench.experiments import Chosen, choose
from robflat_bench.experiments.document import Document, Experiment, Heading, distinct, parsed, read_bytes
from robflat_bench.experiments.trained_model import TrainedModel
from robflat_bench.records.journal import StoredJournal
from robflat_bench.records.store import RunFolder, Store, write_atomically


def document_model(chosen: Chosen) -> type[Document[Any]]:
    """The model of the experiment's JSON."""
    return Document.__class_getitem__(chosen.experiment)  # type: ignore[return-value]


def run_experiment(chosen: Chosen, models: list[TrainedModel], store: Store, observer: Observer) -> Document[Any]:
    """Read every model and return the document; values that an earlier process read are reused bit for bit."""
    first = models[0]
    configure(first.fixed)
    if chosen.experiment.compares:
        among = distinct([model.ref for model in models])
        models = [replace(model, among=dict(zip(among, models, strict=True))) for model in models]
    stages = [f"{model.ref.label}, {model.ref.checkpoint}: {chosen.experiment.name}" for model in models]
    observer.evaluation_starts(stages)
    readings: list[Any] = []
    for model, stage in zip(models, stages, strict=True):
        values = _read_once(chosen, model, store, observer)
        readings.append({"model": model.ref.model_dump(), "values": values.model_dump()})
        observer.stage_ends(stage)
    protocol, data = first.found.protocol, first.session.splits.ref
    return document_model(chosen)(
        experiment=chosen.canonical,
        protocol=ProtocolRef(name=protocol.name, version=protocol.version, hash=protocol.hash),
        dataset=data.name,
        dataset_checksum=data.checksum,
        canonical_data=data.canonical,
        epsilon=first.threat.epsilon,
        norm=first.threat.norm,
        evaluation_seed=first.fixed.seed,
        numerics=NUMERICS,
        readings=tuple(readings),
    )


def _read_once(chosen: Chosen, model: TrainedModel, store: Store, observer: Observer) -> Experiment:
    """The values of one model: from their file if it is there, otherwise from the unit where a process stopped."""
    identity: dict[str, Any] = {
        "experiment": chosen.canonical,
        "weights": model.weights,
        "initial": model.initial is not None,
        "network": [*model.network],
        "protocol": model.found.protocol.hash,
        "dataset": model.session.splits.ref.checksum,
        "numerics": NUMERICS,
    }
    if model.among:
        identity["among"] = [[name, other.weights, *other.network] for name, other in model.among.items()]
    name = f"{chosen.experiment.name}-{content_hash(identity)[:16]}"
    folder = RunFolder(store.root / "experiments" / "models" / name)
    path = folder.path / "row.json"
    with folder.locked(told=observer.note):
        if path.is_file():
            return parsed(path.read_bytes(), chosen.experiment, path)  # type: ignore[no-any-return]
        values = chosen.experiment.read(model, chosen.params, StoredJournal(folder.work, observer.unit_ends))
        write_atomically(path, values.model_dump_json(indent=2).encode())
        shutil.rmtree(folder.work, ignore_errors=True)
        return values


def write_document(document: Document[Any], store: Store, out: Path | None) -> list[Path]:
    """Write data and figure into the store, or into `out`; returns the files."""
    name = choose(document.experiment).experiment.name
    folder = out or store.root / "experiments" / f"{name}-{content_hash(document.model_dump(mode='json'))[:16]}"
    data = folder / f"{name}.json"
    write_atomically(data, (document.model_dump_json(indent=2) + "\n").encode())
    return [data, *write_figure(document, folder)]


def write_figure(document: Document[Any], folder: Path) -> list[Path]:
    """Write the figure as PNG and SVG, named after the experiment; returns the files."""
    from robflat_bench.experiments.figures import figure_files

    experiment = choose(document.experiment).experiment
    files = {folder / f"{experiment.name}.{suffix}": raw for suffix, raw in figure_files(document).items()}
    for path, raw in files.items():
        write_atomically(path, raw)
    return list(files)


def redraw(file: Path, out: Path | None) -> list[Path]:
    """Draw the figure of a document again, beside it or in `out`; CheckFailed where the document is invalid."""
    raw = read_bytes(file)
    document = parsed(raw, document_model(choose(parsed(raw, Heading, file).experiment)), file)
    try:
        return write_figure(document, out or file.parent)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise CheckFailed(f"{file} cannot be drawn: {error}; make it anew with `robflat-bench experiment`") from None
