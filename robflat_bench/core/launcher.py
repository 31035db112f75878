"""The interface of launchers: where the process of each run starts, on this machine or through a scheduler."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Resources:
    """The resources of a launcher: `jobs` slots, each with `threads` CPU threads, and a GPU where `device` is cuda."""

    jobs: int = 1
    threads: int = 1
    device: str = "cpu"


@dataclass(frozen=True)
class Job:
    """A command line for a launcher, and what it is expected to need.

    Parameters
    ----------
    name : str
        Letters, digits and dashes. Whichever process starts the run, its job has this name, and no other run of any
        store has it.
    command : tuple of str
        Program and arguments.
    log : Path
        File that receives the process's stderr; a job that is started again appends to it.
    seconds : float or None
        Estimated wall time; None if nothing like it was run yet.
    memory : int or None
        Estimated peak memory in bytes; None if nothing like it was run yet.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    seconds: float | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Exit:
    """How a job ended, as far as its launcher can know. What counts is what the run left in its folder.

    Parameters
    ----------
    code : int or None
        Exit code; -n, or 128 + n as shells write it, where signal n ended the process. None if nobody saw it.
    cause : str
        What ended it from outside, in the launcher's words, such as "time limit" or "node lost"; "" if nothing did.
    """

    code: int | None
    cause: str = ""


class Launcher(ABC):
    """Runs each job in a process of its own and reports how it ended. One thread calls it."""

    foreground: ClassVar[bool] = False
    """Whether its processes write to this terminal instead of to their logs; then nothing else should draw there."""

    outlives: ClassVar[bool] = False
    """Whether its jobs go on when this process is killed, and a later one can `adopt` them."""

    detached: ClassVar[bool] = False
    """Whether Ctrl-C leaves its jobs where they are, as users of a queue expect. Otherwise they save and end."""

    pace: ClassVar[float] = 1.0
    """Seconds between two looks of its own at its jobs, and of a sweep at the runs' folders: many where a look burdens
    a scheduler. `wait` is called at least every second, so that Ctrl-C is heard; it looks no more often than this."""

    def __init__(self, params: Any, resources: Resources) -> None:
        self.params = params
        self.resources = resources

    @abstractmethod
    def start(self, job: Job) -> str:
        """Start or queue a job and return. At most `resources.jobs` jobs are unended at a time.

        Returns
        -------
        str
            An id by which a later process can find the job; "" if none can.

        Raises
        ------
        UsageError
            It cannot start any job here, such as where a command is missing; the text says what to do.
        """

    def adopt(self, job: Job, known: str) -> bool:
        """Take on a job that an earlier process started, if it has not ended; then `wait` reports its end.

        Parameters
        ----------
        job : Job
            The job as this process would start it.
        known : str
            The id that `start` returned; "" if the earlier process ended before it could keep one.

        Returns
        -------
        bool
            Whether the job waits or runs. A launcher whose jobs do not outlive it has none to adopt.
        """
        return False

    @abstractmethod
    def wait(self, seconds: float) -> Mapping[str, Exit]:
        """Report the jobs that ended since the last call; if there are none, wait for the first one.

        Parameters
        ----------
        seconds : float
            The longest wait.

        Returns
        -------
        Mapping of str to Exit
            Name -> how it ended.
        """

    def standings(self) -> Mapping[str, str]:
        """Name -> where each unended job stands, as of the last look: "queued" or "running", then a few more words, as
        in "queued (Priority)"."""
        return {}

    @abstractmethod
    def interrupt(self) -> None:
        """Send SIGINT, or SIGTERM, to all running jobs: they save their state and end. Jobs that wait in a queue leave
        it. `wait` reports the end of both."""
