"""`--compile`: torch.compile for the forward passes where a run spends its time, with a fallback to eager mode.

| block           | gradients               | compiled                                                           |
|-----------------|-------------------------|--------------------------------------------------------------------|
| `captured`      | of the images           | on CUDA into graphs (mode "reduce-overhead"), which fix addresses  |
| `fused`         | of the weights          | into fused kernels, without graphs: weights move, gradients persist |
| everywhere else | any, also of gradients  | not: compiled code has no second derivative                        |

Only `forward` is replaced, and only inside the blocks: hooks (pass counters) stay outside, and the names of weights and
saved states are unchanged. Each variant (batch shape, modes, precision, ...) is first tried on zeros while the clock
stands still. After the first failure everything is eager for the rest of the session, with one note. Compilation enters
the record's provenance, never the run's key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from robflat_bench.core import clock
from robflat_bench.numerics.gradients import is_guarded

Region = Literal["captured", "fused"]
State = tuple[Any, ...]
Variant = tuple[Any, ...]

VARIANTS = 32
"""Variants of one network that are compiled; further ones stay eager. A run has a dozen: two or three batch shapes in
each mode."""
TRIALS = 3
"""A CUDA graph is warmed up in the first call, recorded in the second and replayed from the third."""

_NETWORKS: WeakKeyDictionary[nn.Module, Compiled] = WeakKeyDictionary()


class Compilation:
    """torch.compile for the networks of one session, until it fails.

    Parameters
    ----------
    device
        "cpu" or "cuda".
    note
        Shows one line to the user.
    backend
        Backend of torch.compile.
    """

    def __init__(
        self, device: str, note: Callable[[str], None], backend: str | Callable[..., Any] = "inductor"
    ) -> None:
        self.note = note
        self.backend = backend
        self.mode = "reduce-overhead" if device == "cuda" else None
        self.variants = 0
        self.seconds = 0.0
        self.problem = ""

    def add(self, network: nn.Module) -> None:
        """Compile the network's forward inside `captured` and `fused`, unless an instance attribute hides it."""
        if "forward" not in network.__dict__:
            try:
                _NETWORKS[network] = Compiled(self)
            except Exception as error:  # a torch that knows fewer options, a platform without any compiler
                self.give_up(error)

    def give_up(self, error: Exception) -> None:
        """Run all networks eagerly from now on."""
        if not self.problem:
            self.problem = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0][:300]}"
            self.note(f"--compile: {self.problem}; going on without")

    def report(self) -> dict[str, Any]:
        """The entry of the record's environment."""
        backend = self.backend if isinstance(self.backend, str) else "custom"
        return {"backend": backend} | {name: vars(self)[name] for name in ("mode", "variants", "seconds", "problem")}


class Compiled:
    """The compiled forwards of one network, the variants tried, and copies of its weights at fixed addresses."""

    def __init__(self, session: Compilation) -> None:
        self.session = session
        modes: dict[Region, str | None] = {"captured": session.mode, "fused": None}
        options: dict[str, Any] = {"dynamic": False, "recompile_limit": VARIANTS, "isolate_recompiles": True}
        self.forwards: dict[Region, Callable[[nn.Module, Tensor], Tensor]] = {
            region: torch.compile(_forward, backend=session.backend, mode=mode, **options)
            for region, mode in modes.items()
        }
        self.tried: set[Variant] = set()
        self.copies: dict[tuple[Any, ...], list[Tensor]] = {}

    def __call__(self, region: Region, network: nn.Module, state: State, x: Tensor) -> Tensor:
        if self._works(_variant(region, state, x), network, x):
            try:
                # The next replay of a graph overwrites its output, which an objective may keep: it gets a copy. The
                # gradient of the images is not copied, because `ascend` has used it before the next forward.
                return self.forwards[region](network, x).clone()
            except Exception as error:
                self.session.give_up(error)
        return _forward(network, x)

    def _works(self, variant: Variant, network: nn.Module, x: Tensor) -> bool:
        """Whether the variant is compiled and works. Its first use tries it, forward and backward."""
        if not self.session.problem and variant not in self.tried and len(self.tried) < VARIANTS:
            self.tried.add(variant)
            self.session.variants += 1
            began = time.perf_counter()
            with clock.standing_still():
                try:
                    self._try(variant[0], network, x)
                except Exception as error:
                    self.session.give_up(error)
            self.session.seconds += time.perf_counter() - began
        return variant in self.tried and not self.session.problem

    def _try(self, region: Region, network: nn.Module, x: Tensor) -> None:
        """Run a variant on zeros; statistics, gradients and random numbers stay as they are."""
        buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
        devices = [x.device] if x.is_cuda else []
        try:
            with torch.random.fork_rng(devices):
                for _ in range(TRIALS):
                    zeros = torch.zeros_like(x).requires_grad_(x.requires_grad)
                    logits = self.forwards[region](network, zeros)
                    leaves = [leaf for leaf in (zeros, *network.parameters()) if leaf.requires_grad]
                    if logits.requires_grad:
                        torch.autograd.grad(logits.sum(), leaves, allow_unused=True)
            for device in devices:
                torch.cuda.synchronize(device)
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)

    @contextmanager
    def weights_in_place(self, network: nn.Module) -> Iterator[None]:
        """Copy the network's weights, folded or not, to fixed addresses and use them there.

        A graph reads the addresses at which it was recorded, but a folded weight is a new tensor in each step, and so
        is a weight that a measure has moved. Inside the block no weight receives a gradient.
        """
        tables = [module._parameters for module in network.modules()]
        own = [(table, name, weight) for table in tables for name, weight in table.items() if weight is not None]
        key = tuple((weight.shape, weight.stride(), weight.dtype) for _, _, weight in own)
        if key not in self.copies:
            self.copies[key] = [torch.empty_like(weight, requires_grad=False) for _, _, weight in own]
        try:
            with torch.no_grad():
                for (table, name, weight), copy in zip(own, self.copies[key], strict=True):
                    table[name] = copy.copy_(weight)  # type: ignore[assignment]
            yield
        finally:
            for table, name, weight in own:
                table[name] = weight


def _forward(network: nn.Module, x: Tensor) -> Tensor:
    """The forward of the network's class, without hooks and without any replacement."""
    logits: Tensor = type(network).forward(network, x)
    return logits


def _state(network: nn.Module) -> State:
    """The properties of a network that make torch.compile compile anew. Collecting them is slow next to a pass."""
    modes = tuple(
        (module.training, getattr(module, "track_running_stats", None), "forward" in module.__dict__)
        for module in network.modules()
    )
    return modes, tuple((weight.dtype, weight.requires_grad) for weight in network.parameters())


def _variant(region: Region, state: State, x: Tensor) -> Variant:
    """Region, network's state, properties of the images, and torch's switches: equal variants share compiled code."""
    device = x.device.type
    precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    switches = (torch.is_grad_enabled(), torch.is_autocast_cache_enabled(), precision)
    return (region, state, x.shape, x.stride(), x.dtype, x.requires_grad, switches)


# ---------------------------------------------------------------------------------------------------------
# The blocks
# ---------------------------------------------------------------------------------------------------------


@contextmanager
def captured(network: nn.Module) -> Iterator[None]:
    """A block that takes gradients of the images alone, once each, while the network's weights do not move."""
    if not (compiled := _working(network)):
        yield
        return
    with compiled.weights_in_place(network):
        state = _state(network)  # an attack changes neither modes nor weights
        with _replaced_forward(network, lambda x: compiled("captured", network, state, x)):
            yield


@contextmanager
def fused(network: nn.Module) -> Iterator[None]:
    """A block that takes gradients of the weights, once each.

    Where images require a gradient the forward is eager, because such losses (gradient alignment) tend to differentiate
    it again; and where a submodule has hooks, because compiled code would not call them.
    """
    if not (compiled := _working(network)):
        yield
        return

    def forward(x: Tensor) -> Tensor:
        hooked = any(module._forward_hooks for module in network.modules() if module is not network)
        return _forward(network, x) if x.requires_grad or hooked else compiled("fused", network, _state(network), x)

    with _replaced_forward(network, forward):
        yield


def _working(network: nn.Module) -> Compiled | None:
    compiled = _NETWORKS.get(network)
    return compiled if compiled and not compiled.session.problem and not is_guarded(network) else None


@contextmanager
def _replaced_forward(network: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    before = {"forward": network.__dict__["forward"]} if "forward" in network.__dict__ else {}
    network.__dict__["forward"] = forward
    try:
        yield
    finally:
        del network.__dict__["forward"]
        network.__dict__.update(before)
