"""`--compile`: the forwards where a run spends its time, by torch.compile, and eager whenever that cannot be had.

| within        | what is differentiated | compiled how                                                      |
|---------------|------------------------|-------------------------------------------------------------------|
| `captured`    | the images             | on CUDA captured in graphs (mode "reduce-overhead"): static memory |
| `fused`       | the weights            | kernels fused, no graphs: weights move, gradients are kept         |
| anywhere else | anything, twice        | not at all: compiled code has no second derivative                 |

Only `forward` is replaced, and only within: hooks (pass counters) stay outside, names of weights and saved states are
untouched. Each variant (batch shape, modes, precision, ...) is tried on zeros first, while the clock stands still. The
first failure ends it for the session, with one note. It is provenance, never identity.
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

Place = Literal["captured", "fused"]
State = tuple[Any, ...]
Variant = tuple[Any, ...]

VARIANTS = 32
"""Of one network; what goes beyond stays eager. A run takes a dozen: two or three batch shapes in each mode."""
TRIALS = 3
"""A CUDA graph is warmed up in the first call, recorded in the second and replayed from the third."""

_NETWORKS: WeakKeyDictionary[nn.Module, Compiled] = WeakKeyDictionary()


class Compilation:
    """torch.compile for the networks of one session, as long as it works; `note` tells the person when it does not."""

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
        """From now on its forwards are compiled within `captured` and `fused`, unless it hides its class's forward."""
        if "forward" not in network.__dict__:
            try:
                _NETWORKS[network] = Compiled(self)
            except Exception as error:  # a torch that knows fewer options, a platform without any compiler
                self.give_up(error)

    def give_up(self, error: Exception) -> None:
        """Eager from now on, all networks."""
        if not self.problem:
            self.problem = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0][:300]}"
            self.note(f"--compile: {self.problem}; going on without")

    def report(self) -> dict[str, Any]:
        """For the record's environment."""
        return {
            "backend": self.backend if isinstance(self.backend, str) else "custom",
            "mode": self.mode,
            "variants": self.variants,
            "seconds": self.seconds,
            "problem": self.problem,
        }


class Compiled:
    """What is kept of one network: its compiled forwards, the variants tried, and where its weights are lent to."""

    def __init__(self, session: Compilation) -> None:
        self.session = session
        modes: dict[Place, str | None] = {"captured": session.mode, "fused": None}
        self.forwards: dict[Place, Callable[[nn.Module, Tensor], Tensor]] = {
            place: torch.compile(  # type: ignore[call-overload]  # whose overloads lack the last two
                _forward,
                backend=session.backend,
                mode=mode,
                dynamic=False,
                recompile_limit=VARIANTS,
                isolate_recompiles=True,
            )
            for place, mode in modes.items()
        }
        self.tried: set[Variant] = set()
        self.lent: dict[Variant, list[Tensor]] = {}

    def __call__(self, place: Place, network: nn.Module, state: State, x: Tensor) -> Tensor:
        if self._sound(_variant(place, state, x), network, x):
            try:
                # A graph's output is overwritten by its next replay, and an objective may keep what it was given. The
                # gradient of the images is not copied: `ascend` has used it up before the next forward.
                return self.forwards[place](network, x).clone()
            except Exception as error:
                self.session.give_up(error)
        return _forward(network, x)

    def _sound(self, variant: Variant, network: nn.Module, x: Tensor) -> bool:
        """Whether this variant is compiled and works; tried once, forward and backward, leaving no trace."""
        if self.session.problem or (variant not in self.tried and len(self.tried) == VARIANTS):
            return False
        if variant not in self.tried:
            self.tried.add(variant)
            self.session.variants += 1
            began = time.perf_counter()
            with clock.standing_still():
                try:
                    self._try(variant[0], network, x)
                except Exception as error:
                    self.session.give_up(error)
            self.session.seconds += time.perf_counter() - began
        return not self.session.problem

    def _try(self, place: Place, network: nn.Module, x: Tensor) -> None:
        buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
        devices = [x.device] if x.is_cuda else []
        try:
            with torch.random.fork_rng(devices):
                for _ in range(TRIALS):
                    zeros = torch.zeros_like(x).requires_grad_(x.requires_grad)
                    logits = self.forwards[place](network, zeros)
                    leaves = [leaf for leaf in (zeros, *network.parameters()) if leaf.requires_grad]
                    if logits.requires_grad:
                        torch.autograd.grad(logits.sum(), leaves, allow_unused=True)
            for device in devices:
                torch.cuda.synchronize(device)
        finally:
            for buffer, copy in buffers:
                buffer.copy_(copy)

    @contextmanager
    def lending(self, network: nn.Module) -> Iterator[None]:
        """The network's weights, folded or not, at addresses that stay: a graph reads where it was recorded, but a
        folded weight is a new tensor in each step, and so is one that a measure has moved. No weight receives a
        gradient within."""
        places = [(module._parameters, name) for module in network.modules() for name in module._parameters]
        own = [(table, name, weight) for table, name in places if (weight := table[name]) is not None]
        key = tuple((weight.shape, weight.stride(), weight.dtype) for _, _, weight in own)
        if key not in self.lent:
            self.lent[key] = [torch.empty_like(weight, requires_grad=False) for _, _, weight in own]
        try:
            with torch.no_grad():
                for (table, name, weight), copy in zip(own, self.lent[key], strict=True):
                    table[name] = copy.copy_(weight)  # type: ignore[assignment]
            yield
        finally:
            for table, name, weight in own:
                table[name] = weight


def _forward(network: nn.Module, x: Tensor) -> Tensor:
    """Its class's forward: without hooks, and whatever stands in for it at the moment."""
    logits: Tensor = type(network).forward(network, x)
    return logits


def _state(network: nn.Module) -> State:
    """What of a network makes torch.compile compile anew; slow to tell, beside a pass on a GPU."""
    modes = tuple(
        (module.training, getattr(module, "track_running_stats", None), "forward" in module.__dict__)
        for module in network.modules()
    )
    return modes, tuple((weight.dtype, weight.requires_grad) for weight in network.parameters())


def _variant(place: Place, state: State, x: Tensor) -> Variant:
    """The same of everything: place, network, images, and what torch is set to."""
    device = x.device.type
    precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    switches = (torch.is_grad_enabled(), torch.is_autocast_cache_enabled(), precision)
    return (place, state, x.shape, x.stride(), x.dtype, x.requires_grad, switches)


@contextmanager
def captured(network: nn.Module) -> Iterator[None]:
    """Within, gradients are taken of the images alone, once, before the network's weights move again."""
    compiled = _NETWORKS.get(network)
    if compiled is None or compiled.session.problem:
        yield
    else:
        with compiled.lending(network):
            state = _state(network)  # which stays: an attack changes neither modes nor weights
            with _standing_in(network, lambda x: compiled("captured", network, state, x)):
                yield


@contextmanager
def fused(network: nn.Module) -> Iterator[None]:
    """Within, gradients are taken of the weights, once. Where images ask for one, too, the forward is eager: such
    losses (gradient alignment) tend to differentiate it again."""
    compiled = _NETWORKS.get(network)
    if compiled is None or compiled.session.problem:
        yield
    else:

        def forward(x: Tensor) -> Tensor:
            looked_into = any(module._forward_hooks for module in network.modules() if module is not network)
            eager = x.requires_grad or looked_into
            return _forward(network, x) if eager else compiled("fused", network, _state(network), x)

        with _standing_in(network, forward):
            yield


@contextmanager
def _standing_in(network: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    before = network.__dict__.get("forward")
    try:
        network.__dict__["forward"] = forward
        yield
    finally:
        network.__dict__.pop("forward")
        if before is not None:
            network.__dict__["forward"] = before
