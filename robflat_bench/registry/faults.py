"""Faults of components while they work: whatever they raise ends the work as an error that names the component."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator
from types import FrameType

from robflat_bench.core import Interrupted, RunFailed, interruptible, one_line, out_of_memory
from robflat_bench.registry.registry import Offer, Registry


@contextlib.contextmanager
def faults(registry: Registry) -> Iterator[None]:
    """A block that runs components.

    Raises
    ------
    RunFailed
        Memory ran out; or a component raised SystemExit, KeyboardInterrupt, or another exception with which Python or
        click would end the process as if nothing were wrong. The message names the component.
    Interrupted
        Ctrl-C, or another signal that asks the process to end.
    Exception
        Every other exception, unchanged.
    """
    with interruptible():  # around all: in the block, every signal is `Interrupted`
        try:
            yield
        except Interrupted:
            raise
        except BaseException as error:
            if isinstance(error, Exception) and not _ends_quietly(error):
                if (plain := out_of_memory(error)) is None:
                    raise
                raise plain from error
            raise RunFailed(
                f"{culprit(registry, error)} raised {one_line(error)}, which would end the process; "
                "a component that cannot go on must raise an Exception, such as RuntimeError"
            ) from error


def _ends_quietly(error: Exception) -> bool:
    """Whether click would end the process without a traceback: a Ctrl-D, a broken pipe, or an exception of its own."""
    if isinstance(error, EOFError | BrokenPipeError):
        return True
    found = sys.modules.get("click.exceptions")  # who raised one of its exceptions has imported it
    return found is not None and isinstance(error, found.Exit | found.Abort | found.ClickException)


def culprit(registry: Registry, error: BaseException) -> str:
    """The component whose code raised an error, as far as the frames of its traceback say."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][::-1]
    foreign = {_package(offer.code[0]): offer.provider for offer in registry.offers() if not offer.provider.built_in}
    provider = next((foreign[name] for name in map(_package_of, frames) if name in foreign), None)
    if provider is None:
        return "a component"
    offers = [offer for offer in registry.offers() if offer.provider == provider]
    return next((str(offer) for frame in frames for offer in offers if _is_code_of(frame, offer)), f"plugin {provider}")


def _is_code_of(frame: FrameType, offer: Offer) -> bool:
    """Whether a frame is in the class or function of a component."""
    module, attribute = offer.code
    return frame.f_globals.get("__name__") == module and frame.f_code.co_qualname.partition(".")[0] == attribute


def _package_of(frame: FrameType) -> str:
    return _package(str(frame.f_globals.get("__name__")))


def _package(module: str) -> str:
    return module.partition(".")[0]
