"""The checks, each a few lines: `(component, registry) -> None`, raising where the component breaks its promise.

They run on a network of a few hundred weights and a dozen real digits, so that all of them cost seconds.
"""

from __future__ import annotations

import copy
import inspect
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from robflat_bench.attacks.engine import TrainingAttack
from robflat_bench.backbones.parts import initialize
from robflat_bench.base import (
    Attack,
    Dataset,
    Examples,
    ImageShape,
    Job,
    Joint,
    Kind,
    Launcher,
    Measure,
    Params,
    Resources,
    Threat,
    UsageError,
    Workspace,
)
from robflat_bench.components import Component, Composed, resolve
from robflat_bench.data.digits import load as load_digits
from robflat_bench.method import Batch, Method, Modifier, Moment, Training
from robflat_bench.randomness import generator
from robflat_bench.registry import Registry
from robflat_bench.training.composition import Composition

THREAT = Threat(epsilon=0.1)
TOLERANCE = 1e-6
COUNT = 12


class Skipped(Exception):
    """This check does not apply here, or cannot run; says why."""


class Broken(AssertionError):
    """The component does not keep its promise; says which."""


def expect(promise: bool, text: str) -> None:
    """Broken(text) unless the promise holds."""
    if not promise:
        raise Broken(text)


# ---------------------------------------------------------------------------------------------------------
# A tiny world
# ---------------------------------------------------------------------------------------------------------


@dataclass
class World:
    """A network and digits, made anew for each use, always the same."""

    registry: Registry
    model: nn.Module
    examples: Examples
    batch: Batch

    @property
    def state(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


SHAPE = ImageShape(channels=1, size=8, classes=10, mean=(0.3,), std=(0.4,))


def network(registry: Registry) -> nn.Module:
    """resnet8(width=2), always with the same weights."""
    model: nn.Module = resolve(registry, "backbone", "resnet8(width=2)").build(SHAPE, "relu")
    initialize(model, generator("kit"))
    return model


def world(registry: Registry) -> World:
    """A network and twelve digits."""
    model = network(registry)
    pool = load_digits().pools["train"]
    x = torch.from_numpy(pool.x[:COUNT].transpose(0, 3, 1, 2).astype(np.float32) / 255)
    y = torch.from_numpy(pool.y[:COUNT].astype(np.int64))
    index = torch.arange(COUNT)
    target = nn.functional.one_hot(y, 10).float()
    return World(registry, model, Examples(x, y, index), Batch(index, x.clone(), y.clone(), target, torch.ones(COUNT)))


def inner() -> TrainingAttack:
    """A training attack of two steps."""
    return TrainingAttack(epsilon=0.1, step=0.05, steps=2, start="uniform", bn="eval", source=generator("kit"))


def use(component: Component, place: World) -> list[Tensor]:
    """Use the component as the harness would; the tensors it produced."""
    return _USES[component.info.kind](component, place)


def _training(component: Component, place: World) -> Training:
    helper = network(place.registry)
    return Training(
        model=place.model,
        shape=SHAPE,
        count=COUNT,
        epsilon=THREAT.epsilon,
        helpers={name: helper.eval().requires_grad_(False) for name in component.info.helpers},  # type: ignore[attr-defined]
        images=lambda: iter([place.examples.x]),
        spare=lambda: (255 * place.examples.x.flip(0)).to(torch.uint8),
    )


def _use_method(component: Component, place: World) -> list[Tensor]:
    """An attack and the loss of each example; of a method that moves its images in the backward pass, the second."""
    method: Method = component.build()
    method.setup(_training(component, place))
    place.model.train()
    x_adv = method.attack(place.model, place.batch, inner())
    if x_adv.requires_grad:
        method.loss(place.model, place.batch, x_adv).mean().backward(inputs=[x_adv])
        x_adv = method.attack(place.model, place.batch, inner())
    return [x_adv.detach(), method.loss(place.model, place.batch, x_adv)]


def _use_modifier(component: Component, place: World) -> list[Tensor]:
    """Three updates of AT with it, on a copy of the network: the evaluated weights."""
    composition = Composition(Composed(resolve(place.registry, "method", "at"), (component,)))
    model = copy.deepcopy(place.model)
    composition.setup(replace(_training(component, place), model=model))
    optimizer = torch.optim.SGD(composition.parameters(model), lr=0.05)
    batch, source = place.batch, generator("kit augment")
    images = composition.augment((255 * batch.x).to(torch.uint8), source)
    expect(images.shape == batch.x.shape and images.dtype == torch.uint8, "augmented images are uint8 [B,C,H,W]")
    for update in range(3):
        now = Moment(seed=0, epoch=0, update=update, progress=update / 3)
        composition.update(model, composition.prepare(replace(batch, moment=now)), inner(), optimizer)
    return [images, *composition.evaluated(model, Moment(update=3, progress=1.0)).values()]


def _use_attack(component: Component, place: World) -> list[Tensor]:
    attack: Attack = component.build(THREAT)
    place.model.eval()
    return [attack.run(place.model, place.examples, Workspace(batch=8))]


def _use_measure(component: Component, place: World) -> list[Tensor]:
    measure: Measure = component.build(THREAT)
    place.model.eval()
    found = measure.measure(place.model, place.examples, Workspace(batch=8, initial=place.state))
    arrays = [torch.from_numpy(np.asarray(array)) for _, array in sorted(found.arrays.items())]
    return [torch.tensor(found.value, dtype=torch.float64), *arrays]


def _use_backbone(component: Component, place: World) -> list[Tensor]:
    shape = ImageShape(channels=3, size=32, classes=10, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    model: nn.Module = component.build(shape, "relu")
    initialize(model, generator("kit"))
    with torch.no_grad():
        return [model.eval()(torch.rand(2, 3, 32, 32, generator=generator("kit")))]


def _use_dataset(component: Component, place: World) -> list[Tensor]:
    dataset: Dataset = component.build()
    try:
        source = dataset.sources(None, download=False)[0]()
    except UsageError as error:
        raise Skipped(str(error)) from None
    return [torch.from_numpy(array) for pool in source.pools.values() for array in (pool.x, pool.y, pool.index)]


def _use_launcher(component: Component, place: World) -> list[Tensor]:
    """Processes that end with 0, with 3 and by a signal, one after the other: what is reported of each."""
    launcher: Launcher = component.build(Resources())
    codes = []
    with tempfile.TemporaryDirectory() as folder:
        for name, ending in EXITS.items():
            launcher.start(Job(name, (sys.executable, "-c", ending[0]), Path(folder) / f"{name}.txt"))
            while not (ended := launcher.wait(1.0)):
                pass
            expect(list(ended) == [name], f"what ended is '{name}', not {list(ended)}")
            codes.append(torch.tensor(ended[name]))
    return codes


EXITS = {
    "good": ("pass", (0,)),
    "bad": ("raise SystemExit(3)", (3,)),
    "killed": ("import os; os.kill(os.getpid(), 9)", (-9, 128 + 9)),
}
"""Name -> a program, and the exit codes that may be reported of it."""

_USES: dict[Kind, Callable[[Component, World], list[Tensor]]] = {
    "method": _use_method,
    "modifier": _use_modifier,
    "attack": _use_attack,
    "measure": _use_measure,
    "backbone": _use_backbone,
    "dataset": _use_dataset,
    "launcher": _use_launcher,
}


# ---------------------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------------------


def check_description(component: Component, registry: Registry) -> None:
    """One line of summary, a title that its parameters fill, and a factory of the right class."""
    info = component.info
    expect(bool(info.summary) and "\n" not in info.summary, "the summary is one line")
    expect(issubclass(info.params, Params), "the parameter model derives from Params")
    expect("{" not in info.title.format(**component.params.model_dump()), "the title names parameters only")
    bases: dict[Kind, type] = {
        **{"method": Method, "modifier": Modifier, "attack": Attack, "measure": Measure, "dataset": Dataset},
        "launcher": Launcher,
    }
    factory = component.offer.load()
    base = bases.get(info.kind)
    expect(
        callable(factory) if base is None else inspect.isclass(factory) and issubclass(factory, base),
        f"the factory is a {base.__name__ if base else 'function'}",
    )


def check_parameters(component: Component, registry: Registry) -> None:
    """The canonical text gives the same parameters back; an unknown one is refused; values cannot change."""
    again = resolve(registry, component.info.kind, component.canonical)
    expect(again.params == component.params, f"'{component.canonical}' does not give its parameters back")
    try:
        component.info.params(**component.params.model_dump(), surely_unknown=1)  # type: ignore[call-arg]
    except ValidationError:
        pass
    else:
        raise Broken("an unknown parameter is accepted")
    for name in component.info.params.model_fields:
        try:
            setattr(component.params, name, None)
        except ValidationError:
            continue
        raise Broken(f"parameter '{name}' can be changed after validation")


def check_contract(component: Component, registry: Registry) -> None:
    """What its kind promises: shapes, ranges, ball and box, finite numbers, gradients that reach every weight."""
    place = world(registry)
    made = use(component, place)
    _CONTRACTS[component.info.kind](component, made, place)


def _method_contract(component: Component, made: list[Tensor], place: World) -> None:
    x_adv, loss = made
    radius = component.build().radius(THREAT.epsilon)
    expect(x_adv.shape == place.batch.x.shape, "x_adv has the shape of x")
    expect(bool((x_adv >= 0).all() and (x_adv <= 1).all()), "x_adv lies in [0,1]")
    expect(float((x_adv - place.batch.x).abs().max()) <= radius + TOLERANCE, "x_adv lies within the training radius")
    expect(loss.shape == (COUNT,) and bool(torch.isfinite(loss).all()), "the loss of each example is finite, [B]")
    loss.mean().backward()
    blind = [name for name, p in place.model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    expect(not blind, f"no gradient reaches {', '.join(blind[:3])}")


def _modifier_contract(component: Component, made: list[Tensor], place: World) -> None:
    weights = dict(zip(place.model.state_dict(), made[1:], strict=True))
    expect(all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()), "the evaluated weights are finite")
    shapes = {name: tensor.shape for name, tensor in place.model.state_dict().items()}
    expect({name: tensor.shape for name, tensor in weights.items()} == shapes, "the evaluated weights fit the network")
    joints = {joint for joint in get_args(Joint) if _overrides(component, joint)}
    expect(joints == {*component.info.joints}, f"it takes hold at {sorted(joints)}")  # type: ignore[attr-defined]


def _overrides(component: Component, joint: str) -> bool:
    return getattr(component.offer.load(), joint) is not getattr(Modifier, joint)


def _attack_contract(component: Component, made: list[Tensor], place: World) -> None:
    x, x_adv = place.examples.x, made[0]
    expect(x_adv.shape == x.shape and x_adv.dtype == x.dtype, "x_adv has the shape and dtype of x")
    expect(not x_adv.requires_grad, "x_adv carries no graph")
    expect(float((x_adv - x).abs().max()) <= THREAT.epsilon + TOLERANCE, "x_adv lies in the ball")
    expect(bool((x_adv >= 0).all() and (x_adv <= 1).all()), "x_adv lies in [0,1]")


def _measure_contract(component: Component, made: list[Tensor], place: World) -> None:
    expect(bool(torch.isfinite(made[0])), "the value is finite")


def _backbone_contract(component: Component, made: list[Tensor], place: World) -> None:
    expect(made[0].shape == (2, 10) and bool(torch.isfinite(made[0]).all()), "logits are finite [B,K]")


def _dataset_contract(component: Component, made: list[Tensor], place: World) -> None:
    x, y, index = made[:3]
    expect(x.dtype == torch.uint8 and x.ndim == 4, "images are uint8 [N,H,W,C]")
    expect(len(x) == len(y) == len(index), "images, labels and indices are as many")


def _launcher_contract(component: Component, made: list[Tensor], place: World) -> None:
    for (name, (_, allowed)), code in zip(EXITS.items(), made, strict=True):
        expect(int(code) in allowed, f"the exit of '{name}' is one of {allowed}, not {int(code)}")


_CONTRACTS: dict[Kind, Callable[[Component, list[Tensor], World], None]] = {
    "method": _method_contract,
    "modifier": _modifier_contract,
    "attack": _attack_contract,
    "measure": _measure_contract,
    "backbone": _backbone_contract,
    "dataset": _dataset_contract,
    "launcher": _launcher_contract,
}


def check_leaves_no_trace(component: Component, registry: Registry) -> None:
    """Weights, modes, gradients, inputs and the global random state are as before (a method's forward in train
    mode moves running statistics, and only those)."""
    place = world(registry)
    state, fresh = place.state, world(registry)
    random_state = torch.get_rng_state()
    use(component, place)
    expect(torch.equal(torch.get_rng_state(), random_state), "the global random state is untouched")
    for name, parameter in place.model.named_parameters():
        expect(torch.equal(parameter, state[name]), f"weight '{name}' is unchanged")
        expect(parameter.requires_grad and parameter.grad is None, f"'{name}' has no gradient left")
    if component.info.kind != "method":
        for name, buffer in place.model.named_buffers():
            expect(torch.equal(buffer, state[name]), f"buffer '{name}' is unchanged")
    modes = {module.training for module in place.model.modules()}
    expect(len(modes) == 1, "all modules are in one mode, as before")
    for given, before in ((place.examples, fresh.examples), (place.batch, fresh.batch)):
        tensors = {name: value for name, value in vars(before).items() if isinstance(value, Tensor)}
        for name, tensor in tensors.items():
            expect(torch.equal(getattr(given, name), tensor), f"'{name}' of the images it was given is unchanged")


def check_same_inputs_same_result(component: Component, registry: Registry) -> None:
    """Used twice on equal inputs, it gives the same bits, whatever the global random state."""
    results: list[list[Any]] = []
    with torch.random.fork_rng():
        for seed in (1, 2):
            torch.default_generator.manual_seed(seed)
            results.append([tensor.detach() for tensor in use(component, world(registry))])
    same = all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in zip(*results, strict=True))
    expect(same, "two uses differ")
