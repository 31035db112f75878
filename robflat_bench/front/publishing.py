"""Runs on the Hugging Face hub: what is sent of a run, and the push, which sends only what is not there yet."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robflat_bench.config.protocol import MAX_BYTES, Protocol, load, named
from robflat_bench.core import CheckFailed, UsageError
from robflat_bench.core.archives import MAX_UNPACKED
from robflat_bench.front.arguments import checked
from robflat_bench.front.grids import Grid, grid
from robflat_bench.front.model_card import model_card
from robflat_bench.front.runs import Run
from robflat_bench.front.sessions import open_registry
from robflat_bench.records import record as records
from robflat_bench.records.hub import HubName, hub_errors
from robflat_bench.records.record import RunRecord
from robflat_bench.records.store import RunFolder, Store, regular_bytes

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

    from robflat_bench.registry.registry import Registry

CARD, CONFIG, RECORD, OUTCOMES = "README.md", "config.json", "record.json", "outcomes.npz"
CHECKPOINTS = ("best", "last")
NO_LICENCE = "unknown"
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}")
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{20,}|\bapi_org_[A-Za-z0-9]{20,}")
"""What tokens of the hub look like."""


@dataclass(frozen=True)
class Parcel:
    """What a push sends.

    Parameters
    ----------
    name : HubName
        The model that it becomes.
    record : RunRecord
        The run's.
    files : dict of str to Path or bytes
        Name on the hub -> the file here, or its content.
    """

    name: HubName
    record: RunRecord
    files: dict[str, Path | bytes]

    @property
    def sizes(self) -> dict[str, int]:
        """Name -> bytes."""
        return {
            name: len(_content(file)) if isinstance(file, bytes) else file.stat().st_size
            for name, file in self.files.items()
        }


@dataclass(frozen=True)
class Pushed:
    """How a push ended.

    Parameters
    ----------
    model : str
        Name of the model with its commit, as `evaluate` takes it.
    url : str
        Its page.
    private : bool
        Whether only you, or your organisation, can see it.
    sent : tuple of str
        The files that were sent; empty where all were there already, and no commit was made.
    """

    model: str
    url: str
    private: bool
    sent: tuple[str, ...]


# ---------------------------------------------------------------------------------------------------------
# What is sent
# ---------------------------------------------------------------------------------------------------------


def parcel(registry: Registry, folder: RunFolder, to: str, protocol: str = "", licence: str = NO_LICENCE) -> Parcel:
    """What a push of a finished run sends; nothing leaves this machine.

    Parameters
    ----------
    registry : Registry
        Knows the run's components and its protocol.
    folder : RunFolder
        The run.
    to : str
        hf://OWNER/NAME.
    protocol : str
        The run's protocol, where it is a file; "" for an installed one.
    licence : str
        Identifier of the licence of the weights, as the hub writes it.

    Raises
    ------
    UsageError
        The name is none, the run is not finished or has no weights, or its protocol is not known here.
    CheckFailed
        The record is damaged, the weights are not those of the record, or a text holds a token.
    """
    name = HubName.parse(to)
    if name.revision or name.file:
        raise UsageError(f"a push makes a whole model: write hf://{name.repo}")
    if not _LICENCE.fullmatch(licence):
        raise UsageError(f"'{licence:.100}' is no licence that the hub knows; write its identifier, e.g. apache-2.0")
    if folder.state != "done":
        raise UsageError(f"{folder.path} is not finished; type its `robflat-bench run` again and it resumes")
    record, outcomes = folder.evidence()
    own, known, text = _protocol(registry, record, protocol)
    weights = {f"{point}.safetensors": _weights(folder, record, point) for point in CHECKPOINTS}
    network = {"backbone": own.fixed.backbone, "activation": record.spec.recipe.activation}
    config = {"model_type": "robflat-bench", "robflat_bench": network}
    files: dict[str, Path | bytes] = {
        **weights,
        OUTCOMES: regular_bytes(folder.outcomes_file, MAX_UNPACKED),
        RECORD: regular_bytes(folder.record_file, records.MAX_BYTES),
        CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
        **({known: text} if text else {}),
        CARD: model_card(registry, name, record, outcomes, own, known, licence).encode(),
    }
    for file, content in files.items():
        if isinstance(content, bytes) and _TOKEN.search(content):
            raise CheckFailed(
                f"{file} would hold what looks like a token of the hub; nothing was sent. Remove it there"
            )
    return Parcel(name, record, files)


def _protocol(registry: Registry, record: RunRecord, given: str) -> tuple[Protocol, str, bytes]:
    """The protocol of a record, what `--protocol` takes for it, and its text where it is a file."""
    ref = record.protocol
    known = given or named(registry, ref.name, ref.version)
    if not known:
        raise UsageError(f"{ref.name} {ref.version} is not installed here; pass its file: --protocol FILE.toml")
    own = load(registry, known)
    if own.hash != ref.hash:
        raise UsageError(
            f"the run was made under {ref.name} {ref.version} (hash {ref.hash[:8]}), but {known} has the hash "
            f"{own.hash[:8]}; pass the original file: --protocol FILE.toml"
        )
    if registry.has_protocol(known):
        return own, known, b""
    return own, f"{own.name}.toml", regular_bytes(Path(known), MAX_BYTES)


def _weights(folder: RunFolder, record: RunRecord, checkpoint: str) -> Path:
    """The file of a checkpoint; CheckFailed where its weights are not those that the record was made of."""
    from robflat_bench.numerics.weights import digest, read_weights

    file = folder.weights(checkpoint)
    if not file.is_file():
        raise UsageError(f"there is no {file}; train the run again: `robflat-bench run ... --fresh`")
    if digest(read_weights(file)) != record.results[checkpoint].weights:  # type: ignore[index]
        raise CheckFailed(f"{file} is not of this record: its tensors have another SHA-256; train the run again")
    return file


def parcel_plan(made: Parcel, public: bool) -> tuple[dict[str, Any], Grid]:
    """What a push would send, as a document and as a grid."""
    sizes = made.sizes
    total = sum(sizes.values())
    document = {"model": str(made.name), "public": public, "files": sizes, "bytes": total}
    rows = [[name, f"{size:,}"] for name, size in (sizes | {"total": total}).items()]
    seen = "everyone sees it" if public else "only you see it, if it is new"
    return document, grid(f"{made.name}: {seen}", ["file", "bytes"], rows, right=1)


# ---------------------------------------------------------------------------------------------------------
# Sending
# ---------------------------------------------------------------------------------------------------------


def send(made: Parcel, public: bool = False, replace: bool = False) -> Pushed:
    """Send a parcel in one commit. Files that are there already are not sent; a push of the same again makes no commit.

    Parameters
    ----------
    made : Parcel
        Of `parcel`.
    public : bool
        A new model is public, not private; a model that is public already is written to.
    replace : bool
        Write over a model that holds something else.

    Raises
    ------
    UsageError
        No token, no right to write there, a public model without `public`, or one that holds something else.
    Unreachable
        No network, or a failure of the hub.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    repo, api = made.name.repo, HfApi(token=True)  # without a token it raises
    with hub_errors(made.name, "write"):
        try:
            found = api.model_info(repo, files_metadata=True)
        except RepositoryNotFoundError as error:
            if error.response.status_code == 401:
                raise
            api.create_repo(repo, private=not public, exist_ok=True)
            found = api.model_info(repo, files_metadata=True)
        _check_place(made, found, public, replace)
        new = [name for name in made.files if not _is_there(made.files[name], name, found)]
        commit = found.sha
        if new:
            add = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=made.files[name]) for name in new]
            said = f"{made.record.spec.label}, seed {made.record.seed}: run {made.record.key}"
            commit = api.create_commit(repo, add, commit_message=said, parent_commit=found.sha).oid
    return Pushed(f"{made.name}@{commit}", _page(api, repo), bool(found.private), tuple(new))


def _page(api: HfApi, repo: str) -> str:
    return f"{api.endpoint}/{repo}"


def _check_place(made: Parcel, found: ModelInfo, public: bool, replace: bool) -> None:
    """UsageError where a push would show something, or write over something, that its caller may not know of."""
    if not found.private and not public:
        raise UsageError(f"{made.name} is public, and a push shows the run to everyone; add --public, or name another")
    names = {each.rfilename for each in found.siblings or ()}
    if replace or names.isdisjoint(made.files) or _is_there(made.files[RECORD], RECORD, found):
        return
    raise UsageError(f"{made.name} holds another model; name a new one, or write over it with --replace")


def _is_there(file: Path | bytes, name: str, found: ModelInfo) -> bool:
    """Whether the hub has this file with this content."""
    there = next((each for each in found.siblings or () if each.rfilename == name), None)
    if there is None:
        return False
    content = _content(file)
    if there.lfs is not None:
        return bool(there.lfs.sha256 == hashlib.sha256(content).hexdigest())
    return bool(there.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())  # Git's own hash


def _content(file: Path | bytes) -> bytes:
    return file if isinstance(file, bytes) else file.read_bytes()


@checked
def push(
    run: Run | str | Path,
    to: str,
    *,
    public: bool = False,
    replace: bool = False,
    licence: str = NO_LICENCE,
    protocol: str | None = None,
    store: str | Path = "runs",
    plugins: Sequence[str | Path] = (),
) -> Pushed:
    """Put a finished run on the Hugging Face hub: weights, record, outcomes and a card. `results push` does the same.

    A push of the same run again makes no commit. `evaluate(to)` evaluates it anywhere.

    Parameters
    ----------
    run : Run, str or Path
        A run, its folder, or its key or the beginning of its key.
    to : str
        hf://OWNER/NAME.
    public : bool
        Everyone sees it. By default a new model is private, and one that is public already is not written to.
    replace : bool
        Write over a model that holds something else.
    licence : str
        Licence of the weights, as the hub writes it: "apache-2.0".
    protocol : str or None
        Of a run whose protocol is no installed one: its file.
    store : str or Path
        Folder of the runs, where a key is looked up.
    plugins
        As in `run`.

    Returns
    -------
    Pushed
        The model with its commit, its page, and the files that were sent.

    Raises
    ------
    UsageError
        There is no such run, no token, or no right to write there.
    CheckFailed
        The record or the weights are damaged.
    RunFailed
        The hub cannot be reached.
    """
    known = run if isinstance(run, Run) else None
    registry = known.registry if known else open_registry(plugins)
    folder = Store(Path(store)).find(str(known.folder if known else run))
    return send(parcel(registry, folder, to, protocol or "", licence), public, replace)
