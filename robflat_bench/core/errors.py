"""Errors that the command line shows as one line: what is wrong, why, and the next command to type."""

from __future__ import annotations


class RobflatError(Exception):
    """Base of every error the command line shows as one line. `exit_code` is the process's."""

    exit_code = 1


class NoValue(RobflatError):
    """A measure has no value for this model; says why. The evaluation goes on, and its record keeps the reason."""


class RunFailed(RobflatError):
    """A run cannot go on: diverged, locked by another process, disk full."""


class UsageError(RobflatError):
    """What was asked for does not exist or is out of range."""

    exit_code = 2


class CheckFailed(RobflatError):
    """A check found problems: a record that disagrees with its outcomes, a component that fails the kit."""

    exit_code = 3


class PluginError(RobflatError):
    """The requested component belongs to a plugin that is broken, or is offered twice."""

    exit_code = 4
