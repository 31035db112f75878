"""The card of a run on the Hugging Face hub: metadata that the hub reads, then what a person wants to know.

It follows from the record alone, so the same run has the same card, byte by byte.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from robflat_bench.config.protocol import Protocol
from robflat_bench.config.spec import run_options
from robflat_bench.front.boards import markdown
from robflat_bench.front.text import number, percent, visible
from robflat_bench.leaderboard.site.cards import method_card
from robflat_bench.records.hub import HubName
from robflat_bench.records.quantities import (
    Outcomes,
    QuantityValue,
    quantity_label,
    quantity_unit,
    quantity_values,
)
from robflat_bench.records.record import RunRecord
from robflat_bench.registry.registry import Registry

ACCURACIES = ("worst_case", "clean_error", "robust_error")
"""Quantities that the hub's metadata have as accuracies, 1 - error: it knows no metric of errors."""
TAGS = ["robflat-bench", "adversarial-robustness", "flat-minima"]


def model_card(
    registry: Registry,
    name: HubName,
    record: RunRecord,
    outcomes: Outcomes,
    protocol: Protocol,
    known: str,
    licence: str,
) -> str:
    """The card in Markdown, below its metadata in YAML.

    Parameters
    ----------
    registry : Registry
        Names attacks and measures.
    name : HubName
        Where the card goes.
    record, outcomes
        The run, and the outcome of every image.
    protocol : Protocol
        The run's.
    known : str
        What `--protocol` takes for it.
    licence : str
        Of the weights.
    """
    values = [
        (point, value) for point in record.results for value in quantity_values(point, record.results[point], outcomes)
    ]
    parts = [
        f"# {_plain(record.spec.label)} under {protocol.name}, seed {record.seed}",
        "One network, trained, attacked, and measured for the flatness of its loss by `robflat-bench`. "
        "Images in [0,1] go in; the normalisation is part of the network.",
        *_commands(name, record, protocol, known),
        *_numbers(registry, record, protocol, values),
        *_method(registry, record),
        *_origin(record, protocol, licence),
    ]
    return f"---\n{_metadata(registry, name, record, protocol, values, licence)}---\n\n" + "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """Text on one line that ends no code span and no cell."""
    return " ".join(visible(text).replace("`", "'").split())


def _fenced(text: str) -> str:
    """Text as it is."""
    return "```text\n" + visible(text).replace("```", "'''") + "\n```"


def _metadata(
    registry: Registry,
    name: HubName,
    record: RunRecord,
    protocol: Protocol,
    values: Sequence[tuple[str, QuantityValue]],
    licence: str,
) -> str:
    """What the hub reads: licence, tags, and results as a `model-index`."""
    from huggingface_hub import EvalResult, ModelCardData

    def result(point: str, value: QuantityValue) -> EvalResult:
        accuracy = value.quantity in ACCURACIES
        title = quantity_label(registry, value)
        args: dict[str, Any] = {"checkpoint": point, "n": value.n, "standard_error": _rounded(value.standard_error)}
        args |= {"epsilon": protocol.fixed.threat.epsilon, "of": value.of} if value.of else {}
        return EvalResult(
            task_type="image-classification",
            dataset_type=record.dataset.name.partition("(")[0],
            dataset_name=_plain(record.dataset.origin),
            dataset_split="test",
            metric_type="accuracy" if accuracy else _kind(value),
            metric_name=f"{point}: {f'1 - {title}' if accuracy else title}",
            metric_value=_rounded(1 - (value.value or 0.0) if accuracy else value.value),
            metric_args={key: each for key, each in args.items() if each is not None},
        )

    shown = [result(*each) for each in values if each[1].split != "train" and each[1].value is not None]
    data = ModelCardData(
        license=licence,
        library_name="robflat-bench",
        pipeline_tag="image-classification",
        tags=TAGS,
        model_name=name.name,
        eval_results=shown,
    )
    return data.to_yaml() + "\n"


def _kind(value: QuantityValue) -> str:
    """The quantity; of a measure, its name."""
    return value.of.partition("(")[0] if value.quantity == "measure" else value.quantity


def _rounded(value: float | None) -> float | None:
    """Ten digits, so that 1 - 0.668 is written 0.332."""
    return None if value is None else float(f"{value:.10g}")


def _commands(name: HubName, record: RunRecord, protocol: Protocol, known: str) -> Iterator[str]:
    run = shlex.join(["robflat-bench", "run", *run_options(record.spec, protocol, known)])
    at = ["robflat-bench", "evaluate"]
    last, best = (
        shlex.join([*at, f"hf://{name.repo}{file}", "--protocol", known]) for file in ("", "/best.safetensors")
    )
    file = f" `{known}` is a file of this model: download it first." if known.endswith(".toml") else ""
    yield f"## Use\n\nEvaluate the last and the best checkpoint, which downloads safetensors only:{file}"
    yield f"```sh\n{last}\n{best}\n```"
    yield f"Train it again:\n\n```sh\n{run}\n```"


def _numbers(
    registry: Registry, record: RunRecord, protocol: Protocol, values: Sequence[tuple[str, QuantityValue]]
) -> Iterator[str]:
    ref, epsilon = record.protocol, protocol.fixed.threat.epsilon
    yield (
        f"## Numbers\n\nProtocol {ref.name} {ref.version} (SHA-256 `{ref.hash}`); l-infinity attacks with epsilon "
        f"{epsilon:g} of pixels in [0,1]. Lower is more robust, or flatter. ± is the standard error over the n "
        "examples, of this one network: another seed may differ by more."
    )
    for point in record.results:
        rows = [
            [_plain(quantity_label(registry, value)), _written(value), str(value.n)]
            for place, value in values
            if place == point
        ]
        epoch = record.results[point].epoch
        yield f"**{point}.safetensors**, epoch {epoch}\n\n{markdown(['quantity', 'value', 'n'], rows)}"


def _written(value: QuantityValue) -> str:
    fraction = quantity_unit(value.quantity, value.of) == "fraction"
    return (percent if fraction else number)(value.value, value.standard_error)


def _method(registry: Registry, record: RunRecord) -> Iterator[str]:
    yield f"## Method\n\n`{_plain(record.method)}`"
    for part in method_card(registry, record.method):
        cited = f" {_plain(part.citation)}." if part.citation else ""
        yield f"**{part.name}** ({part.kind}): {_plain(part.summary)}.{cited} More: `robflat-bench info {part.name}`"
        if part.equation:
            yield _fenced(part.equation)


def _origin(record: RunRecord, protocol: Protocol, licence: str) -> Iterator[str]:
    """Data, machine, versions, licence."""
    place, budget, data = record.environment, record.budget, record.dataset
    canonical = "the canonical copy" if data.canonical else "not the canonical copy"
    packages = place.get("packages")
    versions = packages if isinstance(packages, dict) else {}
    rows = [
        ["run", f"{record.key}, numerics {record.spec.numerics}"],
        ["data", f"{_plain(data.origin)}, {canonical}; SHA-256 {data.checksum}"],
        ["backbone", f"{protocol.fixed.backbone}, {record.spec.recipe.activation}"],
        ["machine", f"{place.get('cpu')}, device {place.get('device_name')}, threads {place.get('threads')}"],
        ["software", ", ".join(f"{each} {versions[each]}" for each in ("torch", "numpy") if versions.get(each))],
        ["code", f"robflat-bench {record.provenance.get('robflat_bench')}, source {record.provenance.get('source')}"],
        ["training", f"{budget.forward:,} image passes forward, {budget.backward:,} backward"],
        ["time", f"{budget.seconds:.0f} s, of which evaluation {budget.evaluation_seconds:.0f} s"],
        ["licence of the weights", licence],
    ]
    yield "## Where it comes from\n\n" + markdown(["", ""], [[name, _plain(text)] for name, text in rows])
    yield (
        "`record.json` has every number, the recipe and the history of training; `outcomes.npz` the outcome of every "
        "image, from which every total of the record is computed again when it is read."
    )
