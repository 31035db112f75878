"""Errors that the command line shows as one line: what is wrong, why, and the next command to type."""

from __future__ import annotations


class RobflatError(Exception):
    """Base of every error that the command line shows as one line. `exit_code` is the exit code of the process.

    Its text, which Python prints with a traceback, shows hidden characters as `repr` does: names in it may be a file's.
    """

    exit_code = 1

    def __str__(self) -> str:
        text = super().__str__()
        return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


class NoValue(RobflatError):
    """A measure has no value for this model. The text says why; evaluation goes on, and the record keeps the reason."""


class RunFailed(RobflatError):
    """A run cannot go on: training diverged, another process holds its lock, the disk is full."""


class UsageError(RobflatError):
    """A name does not exist, or a value is out of range."""

    exit_code = 2


class CheckFailed(RobflatError):
    """A check found problems: a record disagrees with its outcomes, a component fails the kit."""

    exit_code = 3


class PluginError(RobflatError):
    """The requested component belongs to a broken plugin, or two plugins offer it."""

    exit_code = 4
