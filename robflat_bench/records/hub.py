"""The Hugging Face hub: names of models and their files, and one line for everything that goes wrong there.

    hf://OWNER/NAME[@REVISION][/FILE.safetensors]     REVISION: a commit, a branch, a tag, or refs/pr/N

No token passes through this package. `huggingface_hub` reads it and sends it, so no file and no message can hold it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from robflat_bench.core import RobflatError, RunFailed, UsageError, one_line

PREFIX = "hf://"
FILE = re.compile(r"(?=.{1,200}$)(?:[A-Za-z0-9_][\w.+=-]*/)*[A-Za-z0-9_][\w.+=-]*\.safetensors", re.ASCII)
"""A file of weights that may be named: no part of its path is hidden, empty or "..", and no character needs quoting."""
COMMIT = re.compile(r"[0-9a-f]{40}")

_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?"
_NAME = re.compile(
    rf"{PREFIX}(?P<owner>{_PART})/(?P<name>{_PART})"
    r"(?:@(?P<revision>refs/pr/\d{1,9}|[A-Za-z0-9][\w.-]{0,99}))?(?:/(?P<file>.+))?",
    re.ASCII,
)


@dataclass(frozen=True)
class HubName:
    """A model on the hub, or one file of it.

    Parameters
    ----------
    owner, name : str
        Its user or organisation, and its own name.
    revision : str
        Commit, branch or tag; "" for the default branch.
    file : str
        Path of a file of weights in it; "" for the model.
    """

    owner: str
    name: str
    revision: str = ""
    file: str = ""

    @classmethod
    def parse(cls, text: str) -> HubName:
        """The name that a person writes; UsageError where it is none."""
        found = _NAME.fullmatch(text)
        if found is None or ".." in found["owner"] + found["name"]:
            raise UsageError(f"{text!r:.200} names no model of the hub; write hf://OWNER/NAME[@REVISION][/FILE]")
        name = cls(**{part: value or "" for part, value in found.groupdict().items()})
        if name.file and not FILE.fullmatch(name.file):
            raise UsageError(
                f"{name.file!r:.200} is no .safetensors file; nothing else is read from the hub. Leave it out, or name "
                f"another: {PREFIX}{name.repo}/FILE.safetensors"
            )
        return name

    @property
    def repo(self) -> str:
        """OWNER/NAME."""
        return f"{self.owner}/{self.name}"

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return bool(COMMIT.fullmatch(self.revision))

    def __str__(self) -> str:
        revision, file = f"@{self.revision}" * bool(self.revision), f"/{self.file}" * bool(self.file)
        return f"{PREFIX}{self.repo}{revision}{file}"


class Unreachable(RunFailed):
    """The hub did not answer, or failed."""


_TOKEN = "`hf auth login` keeps it on this machine; or set HF_TOKEN"
_MISSING = "there is no model {repo} on the hub, or it is private; check the name, or log in: `hf auth login`"
_REFUSED = {
    ("read", 401): _MISSING,
    ("read", 403): "{repo} is not open to you; ask for access on its page, then log in: `hf auth login`",
    ("read", 404): _MISSING,
    ("write", 401): f"the hub does not accept your token; make a new one that may write in its settings. {_TOKEN}",
    ("write", 403): f"your token may not write to {{repo}}; make one that may in the hub's settings. {_TOKEN}",
    ("write", 404): "the hub has no '{owner}' to write to, or no {repo}; `hf auth whoami` shows your own name",
}
"""(what was asked, HTTP status) -> what is wrong, and the next thing to type."""
_CHANGED = (409, 412)
"""Statuses of a commit on top of another one than expected."""


@contextmanager
def hub_errors(name: HubName, asked: str) -> Iterator[None]:
    """Turn every error of the hub's client into one line with the next thing to type.

    Parameters
    ----------
    name : HubName
        The model in question.
    asked : {"read", "write"}
        What is done there.

    Raises
    ------
    UsageError
        No token, no such model or revision, or no right to it.
    Unreachable
        No network, offline mode, or a failure of the hub; the same command can succeed later.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        with _bars():
            yield
    except RobflatError:
        raise
    except LocalTokenNotFoundError:
        raise UsageError(
            f"no token of the hub is known here, and {name.repo} needs one to be written. {_TOKEN}"
        ) from None
    except OfflineModeIsEnabled:
        raise Unreachable("HF_HUB_OFFLINE forbids network access; unset it, and type the same command again") from None
    except Exception as error:  # the client raises whatever its network layer raises, within its own errors
        causes = [*_causes(error)]
        answer = next((cause for cause in causes if isinstance(cause, HfHubHTTPError)), None)
        if answer is not None:
            raise _answered(answer, name, asked) from None
        raise Unreachable(
            f"the hub cannot be reached ({one_line(causes[-1]):.200}); type the same command again with a network"
        ) from None


@contextmanager
def _bars() -> Iterator[None]:
    """The client's progress bars in a terminal only: elsewhere each of their updates is a line."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _answered(error: Any, name: HubName, asked: str) -> RobflatError:
    """What an HTTP status of the hub means here."""
    from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

    status: int = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return UsageError(f"{name.repo} has no revision '{name.revision or 'main'}'; name a commit, a branch or a tag")
    if isinstance(error, EntryNotFoundError):
        return UsageError(f"{name.repo} has no such file; leave the file out, or name another")
    if text := _REFUSED.get((asked, status)):
        return UsageError(text.format(repo=name.repo, owner=name.owner))
    if status in _CHANGED:
        return RunFailed(f"{name.repo} was changed meanwhile ({status}); type the same command again")
    if status == 429 or status >= 500:
        return Unreachable(f"the hub fails or is busy ({status}); type the same command again later: it sends the rest")
    said = " ".join((error.server_message or "no reason given").split())
    return UsageError(f"the hub refuses {name.repo} ({status}: {said:.200}); change what it names, and try again")
