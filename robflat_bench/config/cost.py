"""What a run will cost, from the formulas that components declare: image passes before a single one is made."""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterator, Mapping

from robflat_bench.config.protocol import Protocol
from robflat_bench.config.recipe import Recipe
from robflat_bench.core import AttackInfo, MeasureInfo, MethodInfo, ModifierInfo, Passes
from robflat_bench.registry.components import Component, Composed, compose, resolve
from robflat_bench.registry.registry import Registry

_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def formula(text: str, values: Mapping[str, object]) -> int:
    """An integer formula of names, numbers, + - * and brackets; ValueError for anything else."""

    def value(node: ast.AST) -> int:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id=name) if isinstance(values.get(name), int):
                return int(values[name])  # type: ignore[call-overload, no-any-return]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return int(_OPERATORS[type(op)](value(left), value(right)))
        raise ValueError(f"'{text}' is no formula of {', '.join(values)}")

    return value(ast.parse(text, mode="eval").body)


def updates_per_batch(composed: Composed) -> int:
    """How many updates are made with each batch."""
    info = composed.method.info
    assert isinstance(info, MethodInfo)
    return formula(info.updates, composed.method.params.model_dump())


def passes_per_image(composed: Composed, steps: int) -> tuple[int, int]:
    """Forward and backward passes of each image of a batch in one update, with `steps` attack steps."""

    def both(part: Component, passes: Passes) -> tuple[int, int]:
        values = {"T": steps, **part.params.model_dump()}
        return formula(passes.forward, values), formula(passes.backward, values)

    method = composed.method.info
    assert isinstance(method, MethodInfo)
    attack, loss, losses = [both(composed.method, method.attack)], [both(composed.method, method.loss)], 1
    for part in composed.modifiers:
        assert isinstance(part.info, ModifierInfo)
        attack.append(both(part, part.info.attack))
        loss.append(both(part, part.info.loss))
        losses += formula(part.info.losses, part.params.model_dump()) - 1
    forward, backward = (sum(row[i] for row in attack) + losses * sum(row[i] for row in loss) for i in (0, 1))
    return forward, backward


def passes_of_training(registry: Registry, composed: Composed, recipe: Recipe, images: int) -> tuple[int, int]:
    """Forward and backward passes of a run's training on so many images, and of its helpers'."""
    count = images * recipe.epochs * updates_per_batch(composed)
    forward, backward = (count * passes for passes in passes_per_image(composed, recipe.attack_steps))
    for text in composed.helpers.values():
        more = passes_of_training(registry, compose(registry, text), recipe, images)
        forward, backward = forward + more[0], backward + more[1]
    return forward, backward


def passes_of_evaluation(registry: Registry, protocol: Protocol) -> tuple[int, int]:
    """Forward and backward passes of a run's checks on held-out images and of the evaluation of its checkpoints, as
    far as attacks and measures declare theirs; the one pass of clean images is left out."""
    forward = backward = 0
    for component, images, plain in _evaluated(registry, protocol):
        declared = passes_of(component) or (0, 0)
        forward, backward = forward + images * (declared[0] + plain), backward + images * declared[1]
    return forward, backward


def undeclared(registry: Registry, protocol: Protocol) -> list[str]:
    """The attacks and measures of a protocol that declare no passes."""
    rows = _evaluated(registry, protocol)
    return list(dict.fromkeys(component.brief for component, _, _ in rows if passes_of(component) is None))


def _evaluated(registry: Registry, protocol: Protocol) -> Iterator[tuple[Component, int, int]]:
    """Every attack and measure, how many images it sees in all, and their plain forward passes beside it."""
    fixed, epochs = protocol.fixed, protocol.recipe.epochs
    checks = -(-epochs // fixed.selection.every)
    yield resolve(registry, "attack", fixed.selection.attack), checks * fixed.data.heldout.count, 2
    for row in fixed.attacks:
        yield resolve(registry, "attack", row.attack), len(row.checkpoints) * (row.test + row.train), 1
    for measured in fixed.measures:
        images = len(measured.checkpoints) * (measured.test + measured.train)
        yield resolve(registry, "measure", measured.measure), images, 0


def passes_of(component: Component) -> tuple[int, int] | None:
    """Of an attack or a measure."""
    return passes_of_attack(component) if isinstance(component.info, AttackInfo) else passes_of_measure(component)


def passes_of_attack(attack: Component) -> tuple[int, int] | None:
    """Forward and backward passes of each image; None where a search decides how many."""
    info, values = attack.info, attack.params.model_dump()
    assert isinstance(info, AttackInfo)
    if info.passes is None:
        return None
    return formula(info.passes.forward, values), formula(info.passes.backward, values)


def passes_of_measure(measure: Component) -> tuple[int, int] | None:
    """Forward and backward passes of each image; None where a search decides how many."""
    values, declared = measure.params.model_dump(), declared_by_measure(measure)
    if declared is None:
        return None
    steps, restarts = values.get("steps", 0), values.get("restarts", 1)
    values |= {"A": restarts * (steps + 1), "B": restarts * steps}
    return formula(declared.forward, values), formula(declared.backward, values)


def declared_by_measure(measure: Component) -> Passes | None:
    """The formulas under the coupling that its parameters choose."""
    info = measure.info
    assert isinstance(info, MeasureInfo)
    return info.passes.get(getattr(measure.params, "coupling", "clean" if "clean" in info.couplings else ""))
