"""A signal takes effect between two updates: a half-applied update must not be saved."""

from __future__ import annotations

from typing import Any

from robflat_bench.core import Interrupted
from robflat_bench.core.signals import answered


class Interrupt:
    """A block in which the first signal that would raise `Interrupted` waits for `check`; a second one raises it.

    Parameters
    ----------
    waits : bool
        Whether the first signal waits. While nothing changes that is not saved, it need not.
    requested : int or None
        The signal that waits.
    """

    def __init__(self) -> None:
        self.waits = True
        self.requested: int | None = None
        self._answered = answered(self._on_signal)

    def __enter__(self) -> Interrupt:
        self._answered.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._answered.__exit__(*error)

    def check(self) -> None:
        """Raise `Interrupted` if a signal waits."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    def _on_signal(self, number: int) -> None:
        self.check()
        self.requested = number
        if not self.waits:
            self.check()
