"""Weights on the Hugging Face hub: the commit is pinned, the size said and limited, then one file is downloaded.

Everything there is foreign: only safetensors are read, never a pickle; a listed file whose name is not plain is
passed over; the network that `config.json` names must be a built-in one. What was downloaded once is read from the
cache of `huggingface_hub`, without a network.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from robflat_bench.core import CheckFailed, Strict, UsageError
from robflat_bench.core.files import read_regular
from robflat_bench.evaluation.inspection import MAX_BYTES, inspect
from robflat_bench.records.hub import COMMIT, FILE, HubName, Unreachable, hub_errors
from robflat_bench.registry.components import resolve
from robflat_bench.registry.registry import Registry
from robflat_bench.registry.validation import explain

CONFIG, ENTRY = "config.json", "robflat_bench"
"""The file that names the network of a pushed run, and its entry."""
USUAL_FILE = "last.safetensors"
MAX_CONFIG = 64 * 1024
SECONDS = 10.0
"""The listing of a model is waited for so long."""


class Architecture(Strict):
    """The network of a pushed run."""

    backbone: str = Field(max_length=1000, description="The backbone with its parameters.")
    activation: str = Field(max_length=100, description="Its activation function.")


@dataclass(frozen=True)
class HubWeights:
    """A downloaded file of weights.

    Parameters
    ----------
    name : HubName
        With its commit and its file.
    path : Path
        The file in the cache.
    architecture : Architecture or None
        What the model's `config.json` says of its network; None where it says nothing.
    """

    name: HubName
    path: Path
    architecture: Architecture | None

    def network(self, registry: Registry) -> Architecture | None:
        """The architecture; UsageError where it is no built-in backbone, because others may run or fetch anything."""
        if self.architecture and not resolve(registry, "backbone", self.architecture.backbone).offer.provider.built_in:
            named = self.architecture.backbone
            raise UsageError(
                f"{self.name.repo} asks for the backbone {named}, which a plugin offers; if you trust it, name it "
                f"yourself: --backbone '{named}'"
            )
        return self.architecture


def fetched(text: str, say: Callable[[str], None] = lambda note: None) -> HubWeights:
    """The weights that a name of the hub names, downloaded where they are not in the cache.

    Parameters
    ----------
    text : str
        hf://OWNER/NAME[@REVISION][/FILE]. Without a file: last.safetensors, else the only safetensors file.
    say : callable
        Called with the size before a download, and with the commit where there is no network.

    Raises
    ------
    UsageError
        There is no such model, revision or file, it needs a login, or several files could be meant.
    CheckFailed
        The file is too large or no safetensors file, or the hub's answer is none.
    Unreachable
        There is no network, and the cache lacks the file.
    """
    name = HubName.parse(text)
    if name.pinned and name.file and (path := _cached(name)):
        return _read(name, path)
    try:
        return _download(name, say)
    except Unreachable as error:
        return _offline(name, error, say)


def _download(name: HubName, say: Callable[[str], None]) -> HubWeights:
    from huggingface_hub import HfApi, hf_hub_download

    with hub_errors(name, "read"):
        listed = HfApi().model_info(name.repo, revision=name.revision or None, files_metadata=True, timeout=SECONDS)
        sizes = {each.rfilename: each.size for each in listed.siblings or () if isinstance(each.size, int)}
        if not COMMIT.fullmatch(listed.sha or ""):
            raise CheckFailed(f"the hub names no commit of {name.repo}; name one: hf://{name.repo}@COMMIT")
        found = replace(name, revision=listed.sha or "", file=_chosen(name, sizes))
        _check_size(found, sizes)
        path = _cached(found)
        if path is None:
            say(f"{found}: {sizes[found.file] / 1e6:,.1f} MB from the hub")
        if sizes.get(CONFIG, MAX_CONFIG + 1) <= MAX_CONFIG:
            hf_hub_download(found.repo, CONFIG, revision=found.revision)
        return _read(found, path or Path(hf_hub_download(found.repo, found.file, revision=found.revision)))


def _offline(name: HubName, error: Unreachable, say: Callable[[str], None]) -> HubWeights:
    """The weights in the cache, if these can only be of one commit."""
    commits = [folder.name for folder in _snapshots(name).glob("*") if COMMIT.fullmatch(folder.name)]
    if name.revision:
        commits = [commit for commit in commits if commit == name.revision]
    if not commits:
        raise Unreachable(f"{error}. The cache of this machine does not have {name} either") from None
    if len(commits) > 1:
        raise UsageError(
            f"{error}. The cache has {len(commits)} commits of {name.repo}; name one: "
            f"{replace(name, revision=min(commits))}"
        )
    files = [file.relative_to(_snapshots(name) / commits[0]).as_posix() for file in _weights(name, commits[0])]
    found = replace(name, revision=commits[0], file=_chosen(name, files))
    say(f"there is no network; from the cache: {found}")
    return _read(found, _snapshots(name) / found.revision / found.file)


def _chosen(name: HubName, files: Iterable[str]) -> str:
    """The file that is meant: the named one, the usual one, or the only one."""
    weights = sorted(file for file in files if FILE.fullmatch(file))
    wanted = name.file or (USUAL_FILE if USUAL_FILE in weights or len(weights) != 1 else weights[0])
    if wanted in weights:
        return wanted
    if not weights:
        raise UsageError(
            f"{name.repo} has no safetensors file, and nothing else is read from the hub; download a file that you "
            "trust, and name it: `evaluate FILE.pt`"
        )
    known = ", ".join(weights[:5]) + ", ..." * (len(weights) > 5)
    raise UsageError(f"{name.repo} has the files {known}; name one: {replace(name, file=weights[0])}")


def _check_size(name: HubName, sizes: Mapping[str, int]) -> None:
    if sizes[name.file] > MAX_BYTES:
        raise CheckFailed(
            f"{name} has {sizes[name.file]:,} bytes, and files of weights may have {MAX_BYTES:,}; name a smaller file"
        )


def _snapshots(name: HubName) -> Path:
    """The folder of the model's commits in the cache of `huggingface_hub`."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name.repo, repo_type="model") / "snapshots"


def _weights(name: HubName, commit: str) -> list[Path]:
    return sorted((_snapshots(name) / commit).rglob("*.safetensors"))


def _cached(name: HubName) -> Path | None:
    path = _snapshots(name) / name.revision / name.file
    return path if path.is_file() else None


def _read(name: HubName, path: Path) -> HubWeights:
    """The downloaded file with its architecture; CheckFailed where it is no safetensors file."""
    if inspect(path) != "safetensors":
        raise CheckFailed(f"{name} is no safetensors file, whatever its name says; do not use it")
    return HubWeights(name, path, _architecture(name, _snapshots(name) / name.revision / CONFIG))


def _architecture(name: HubName, file: Path) -> Architecture | None:
    """What a `config.json` says of the network; None for that of another program, or none."""
    try:
        document: Any = json.loads(read_regular(file, MAX_CONFIG))
        said = document[ENTRY]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, IndexError):
        return None
    try:
        return Architecture.model_validate(said)
    except ValidationError as error:
        raise CheckFailed(
            f"{name.repo}/{CONFIG}: {explain(error, Architecture)}; name the network: --backbone"
        ) from None
