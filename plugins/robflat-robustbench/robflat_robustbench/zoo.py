"""RobustBench's architectures as a backbone, with weights from local files.

RobustBench knows the architecture of each published name. Its side effects are kept out: printing, warnings of
setuptools, draws from the global random state, and downloads. Weights are read without unpickling, and are taken only
if all of them fit.
"""

from __future__ import annotations

import base64
import contextlib
import difflib
import fnmatch
import hashlib
import importlib.util
import io
import os
import pickle
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pyautoattack
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from robflat_bench.api import ImageShape, PluginError, UsageError
from robflat_robustbench import CLASSES, MODELS, RobustBenchParams

WRAPPERS = ("last", "state_dict", "model_state_dict", "net", "model")
"""Keys under which checkpoints keep the weights. If a checkpoint has the best and the last, RobustBench evaluates the
last."""

PREFIXES = ("module.", "model.")
"""Prefixes that data parallelism and wrappers add to names."""

COUNTERS = ("*num_batches_tracked",)
"""Buffers that evaluation never reads and that checkpoints of old releases of torch lack."""

CONSTANTS = ("mu", "sigma")
"""Buffers of some architectures, the normalisation of images, that their published checkpoints lack."""

LACKING_CONSTANTS = (
    "Augustin2020Adversarial*",
    "Chen2020Efficient",
    "Diffenderfer2021Winning_*",
    "Engstrom2019Robustness",
    "Hendrycks2020AugMix_*",
    "Kireev2021Effectiveness_*",
    "Pang2020Boosting",
    "Rice2020Overfitting",
    "Rony2019Decoupling",
    "Wong2020Fast",
    "Wu2020Adversarial",
)
LEFT_OVER = {"Pang2020Boosting": ("model_preact_hl1.*",), "Diffenderfer2021Winning_*": ("*.scores",)}
"""Model -> tensors of training in its published checkpoint that no forward pass reads."""


# ---------------------------------------------------------------------------------------------------------
# The zoo
# ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress what libraries print and warn of inside the block."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def autoattack_by_its_old_name() -> Iterator[None]:
    """Let `import autoattack` give pyautoattack, the same code under its name on the package index.

    robustbench 1.1 imports `autoattack` without depending on it. An installed `autoattack` is used as it is.
    """
    if importlib.util.find_spec("autoattack"):
        yield
        return
    lent = {"autoattack": pyautoattack, "autoattack.state": pyautoattack.state}
    sys.modules.update(lent)
    try:
        yield
    finally:
        for name in lent:
            del sys.modules[name]


def overwritten() -> list[str]:
    """Modules of the installed robustbench that differ from its release, by the hashes that the release recorded.

    torchattacks 3.5 installs an older copy in the same place, so either of the two may be there.
    """
    changed = []
    for file in metadata.files("robustbench") or ():
        if file.suffix == ".py" and file.parts[0] == "robustbench" and file.hash:
            found = hashlib.new(file.hash.mode, Path(file.locate()).read_bytes()).digest()
            if base64.urlsafe_b64encode(found).decode().rstrip("=") != file.hash.value:
                changed.append(str(file))
    return changed


@cache
def zoo() -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """(dataset, threat) -> name -> RobustBench's entry; PluginError if RobustBench cannot be imported."""
    if changed := overwritten():
        raise PluginError(
            f"the installed robustbench is not its release: {len(changed)} of its files were overwritten "
            f"({changed[0]}, ...), as installing torchattacks does with an older copy; put it back: "
            'pip install --force-reinstall --no-deps "robustbench>=1.1,<1.2"'
        )
    try:
        with quiet(), autoattack_by_its_old_name():
            from robustbench.model_zoo import model_dicts
    except Exception as error:  # its dependencies break in their own ways
        raise PluginError(
            f"robustbench cannot be imported: {type(error).__name__}: {error}; it needs pkg_resources, which "
            'setuptools has up to 80: pip install "setuptools<81" "robustbench>=1.1,<1.2"'
        ) from error
    return {
        (dataset.value, threat.value): dict(models)
        for dataset, threats in model_dicts.items()
        for threat, models in threats.items()
        if dataset.value in CLASSES
    }


def entry(params: RobustBenchParams) -> dict[str, Any]:
    """RobustBench's entry for a model; UsageError with the nearest names if it has none."""
    models = zoo().get((params.dataset, params.threat), {})
    if params.name not in models:
        close = difflib.get_close_matches(params.name, models, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "see `robflat-bench robustbench models`"
        raise UsageError(f"robustbench has no {params.dataset} {params.threat} model named '{params.name}'; {hint}")
    return models[params.name]


def files(params: RobustBenchParams) -> tuple[Path, ...]:
    """The paths of a model's weights, existing or not, in RobustBench's layout; an ensemble has one for each member."""
    if params.weights != "published":
        return (Path(params.weights),)
    folder = Path(params.models or os.environ.get(MODELS, "models")) / params.dataset / params.threat
    source = entry(params)["gdrive_id"]
    members = [f"_m{number}" for number in range(len(source))] if isinstance(source, list) else [""]
    paths = [folder / f"{params.name}{member}" for member in members]
    own = [path.with_name(f"{path.name}.safetensors") for path in paths]
    return tuple(own if all(path.is_file() for path in own) else [path.with_name(f"{path.name}.pt") for path in paths])


def robustbench_model(params: RobustBenchParams, shape: ImageShape, activation: str) -> nn.Module:
    """The architecture of a published name with its weights. `activation` is ignored, because the model has its own.

    Raises
    ------
    UsageError
        For an unknown name, for images of another shape, and for weights that are missing, need unpickling or do not
        fit.
    """
    wanted = (3, 32, CLASSES[params.dataset])
    if (shape.channels, shape.size, shape.classes) != wanted:
        raise UsageError(
            f"robustbench's {params.dataset} models read 3x32x32 images of {wanted[2]} classes; this protocol has "
            f"{shape.channels}x{shape.size}x{shape.size} images of {shape.classes}: choose another with --protocol, "
            "e.g. robustbench-linf"
        )
    found = entry(params)
    paths = () if params.weights == "random" else files(params)
    for path in paths:
        if not path.is_file():
            raise UsageError(_missing(params, path))
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model: nn.Module = found["model"]()
    parts: Sequence[nn.Module] = [model] if len(paths) < 2 else list(model.models)  # type: ignore[arg-type]
    for path, part in zip(paths, parts, strict=False):
        part.load_state_dict(fitted(read(path), part, params.name, path), strict=True)
    return model


def _missing(params: RobustBenchParams, path: Path) -> str:
    if params.weights != "published":
        return f"{path}: no such file"
    where = f"model_dir={str(path.parents[2])!r}, dataset={params.dataset!r}, threat_model={params.threat!r}"
    return (
        f"the weights of robustbench's {params.name} are not here: looked for {path}. Nothing is downloaded; where "
        f'there is a network, RobustBench itself fetches them: python -c "from robustbench import load_model; '
        f'load_model({params.name!r}, {where})". Another folder: models=DIR or ${MODELS}; untrained: weights=random'
    )


# ---------------------------------------------------------------------------------------------------------
# Untrusted checkpoints
# ---------------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pt file, without wrappers; nothing is unpickled.

    Raises
    ------
    UsageError
        If the file is damaged, is not a checkpoint, or would run code to load.
    """
    try:
        with quiet():
            if path.suffix == ".safetensors":
                return load_file(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage raises nearly anything
        raise UsageError(f"{path} is refused: {_reason(path, error)}") from None
    while wrapper := next((key for key in WRAPPERS if isinstance(_item(content, key), Mapping)), None):
        content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
        raise UsageError(f"{path} is refused: no weights under {', '.join(WRAPPERS)}; it holds {keys}")
    return dict(content)


def _item(content: object, key: str) -> object:
    return content.get(key) if isinstance(content, Mapping) else None


def _reason(path: Path, error: Exception) -> str:
    """Why a file does not load. torch's own message advises to unpickle it, so it is not shown."""
    if path.read_bytes()[:256].lstrip()[:1] == b"<":
        return "it is a web page, so its download failed; delete it and fetch it again"
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL (\S+)", str(error))
        asked = f" (it asks for {named[1]})" if named else ""
        return f"loading it would run code of its own{asked}; where you trust it, save its weights as .safetensors"
    return f"it is damaged ({type(error).__name__} {str(error).partition('. ')[0]})"


def fitted(tensors: Mapping[str, Tensor], model: nn.Module, name: str, path: Path) -> dict[str, Tensor]:
    """A complete state dict of the model from a checkpoint's tensors.

    Only the differences listed above are allowed: prefixes, counters, and for published names constants and left-over
    tensors.

    Raises
    ------
    UsageError
        With the first three tensors that do not fit.
    """
    expected: dict[str, Tensor] = model.state_dict()
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        own = key
        while own not in expected and (prefix := next(filter(own.startswith, PREFIXES), "")):
            own = own.removeprefix(prefix)
        if own in found:
            raise UsageError(
                f"{path} does not fit robustbench's {name}: it holds '{own}' twice, with and without prefix"
            )
        found[own] = tensor
    absent = (*COUNTERS, *(CONSTANTS if _any(name, LACKING_CONSTANTS) else ()))
    unread = [pattern for names, patterns in LEFT_OVER.items() if _any(name, [names]) for pattern in patterns]
    problems = [
        *(f"'{key}' is missing" for key in expected if key not in found and not _any(key, absent)),
        *(f"'{key}' is unknown here" for key in found if key not in expected and not _any(key, unread)),
        *(
            f"'{key}' is {tuple(found[key].shape)} there and {tuple(tensor.shape)} here"
            for key, tensor in expected.items()
            if key in found and found[key].shape != tensor.shape
        ),
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UsageError(f"{path} does not fit robustbench's {name}: {'; '.join(problems[:3])}{more}")
    return {key: found.get(key, tensor) for key, tensor in expected.items()}


def _any(text: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns)
