"""What a run will cost: image passes from the formulas that components declare, before the first pass is made.

A pass is one image through the network, forward or backward.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterator, Mapping
from typing import Any

from robflat_bench.config.protocol import Protocol
from robflat_bench.config.recipe import Recipe
from robflat_bench.core import AttackInfo, MeasureInfo, Passes
from robflat_bench.registry.components import Component, Composed, compose, resolve
from robflat_bench.registry.registry import Registry

Evaluated = Component[AttackInfo | MeasureInfo]
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def formula(text: str, values: Mapping[str, object]) -> int:
    """Evaluate a formula such as "T + 2": integers, names of integer values, + - * and brackets, // (division,
    rounded down) by a positive integer, and (name == 0), which is 1 where the named number is 0, and 0 elsewhere.

    Raises
    ------
    ValueError
        The text holds anything else.
    """

    def value(node: ast.AST) -> int:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id=name) if isinstance(found := values.get(name), int):
                return found
            case ast.BinOp(left=left, op=ast.FloorDiv(), right=ast.Constant(value=int(number))) if number > 0:
                return value(left) // number
            case ast.Compare(left=ast.Name(id=name), ops=[ast.Eq()], comparators=[ast.Constant(value=0)]) if isinstance(
                found := values.get(name), int | float
            ):
                return int(found == 0)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return int(_OPERATORS[type(op)](value(left), value(right)))
        raise ValueError(
            f"'{text}' is not a formula of {', '.join(values)}: write integers, names, + - * // == 0 and brackets"
        )

    return value(ast.parse(text, mode="eval").body)


def _both(passes: Passes, values: Mapping[str, object], least: bool = False) -> tuple[int, int]:
    """Forward and backward passes. least: those that are made at least, where the others are an upper bound."""
    forward, backward = passes.least if least and passes.at_most else (passes.forward, passes.backward)
    return formula(forward, values), formula(backward, values)


def updates_per_batch(composed: Composed) -> int:
    """How many updates are made with each batch."""
    return formula(composed.method.info.updates, composed.method.params.model_dump())


def passes_per_image(composed: Composed, steps: int, least: bool = False) -> tuple[int, int]:
    """Forward and backward passes of each image of a batch in one update.

    Parameters
    ----------
    composed : Composed
        The method with its modifiers.
    steps : int
        T, the recipe's attack steps.
    least : bool
        The passes that every update makes, where others are made by some updates only.

    Notes
    -----
    The sum of all members' attack passes, plus the sum of all members' loss passes times the number of evaluations of
    the loss in one update: 1, plus what each modifier adds (`losses - 1`).
    """
    losses = 1
    for part in composed.modifiers:
        text = part.info.least_losses if least and part.info.least_losses else part.info.losses
        losses += formula(text, part.params.model_dump()) - 1
    counts = []
    for member in composed.members:
        values = {"T": steps, **member.params.model_dump()}
        counts += [_both(member.info.attack, values, least), *losses * [_both(member.info.loss, values, least)]]
    return sum(forward for forward, _ in counts), sum(backward for _, backward in counts)


def passes_of_training(
    registry: Registry, composed: Composed, recipe: Recipe, images: int, least: bool = False
) -> tuple[int, int]:
    """Forward and backward passes of a run's training on so many images, its helpers' training included. least: as in
    `passes_per_image`."""
    count = images * recipe.epochs * updates_per_batch(composed)
    forward, backward = (count * passes for passes in passes_per_image(composed, recipe.attack_steps, least))
    for text in composed.helpers.values():
        more = passes_of_training(registry, compose(registry, text), recipe, images, least)
        forward, backward = forward + more[0], backward + more[1]
    return forward, backward


def passes_of_evaluation(registry: Registry, protocol: Protocol) -> tuple[int, int]:
    """Forward and backward passes of the checks on held-out images and of the evaluation of both checkpoints.

    Attacks and measures that declare no passes, and the pass of clean images, are left out.
    """
    forward = backward = 0
    for component, images, plain in _evaluated(registry, protocol):
        more = passes_of(component) or (0, 0)
        forward, backward = forward + images * (more[0] + plain), backward + images * more[1]
    return forward, backward


def undeclared(registry: Registry, protocol: Protocol) -> list[str]:
    """The attacks and measures of a protocol that declare no passes."""
    rows = _evaluated(registry, protocol)
    return list(dict.fromkeys(component.brief for component, _, _ in rows if passes_of(component) is None))


def _evaluated(registry: Registry, protocol: Protocol) -> Iterator[tuple[Evaluated, int, int]]:
    """Every attack and measure, the number of images it sees in all, and the plain forward passes beside each."""
    fixed, epochs = protocol.fixed, protocol.recipe.epochs
    checks = -(-epochs // fixed.selection.every)
    yield resolve(registry, "attack", fixed.selection.attack), checks * fixed.data.heldout.count, 2
    for row in fixed.attacks:
        yield resolve(registry, "attack", row.attack), len(row.checkpoints) * (row.test + row.train), 1
    for measured in fixed.measures:
        images = len(measured.checkpoints) * (measured.test + measured.train)
        yield resolve(registry, "measure", measured.measure), images, 0


def passes_of(component: Evaluated, least: bool = False) -> tuple[int, int] | None:
    """Forward and backward passes of each image in an attack or a measure. least: those that are made at least.

    Returns
    -------
    tuple of int or None
        None where the component declares none, for a search decides how many passes it makes.

    Notes
    -----
    A measure's formulas know the names of `_passes_of_attacks`.
    """
    declared, values = declared_passes(component), component.params.model_dump()
    if declared is None:
        return None
    if isinstance(component.info, MeasureInfo):
        values |= _passes_of_attacks(values)
    return _both(declared, values, least)


def _passes_of_attacks(values: Mapping[str, Any]) -> dict[str, int]:
    """What the formulas of a measure with these parameters know besides them; forward and backward passes.

    A, B   of the attack at w: restarts * (steps + 1) and restarts * steps
    C, D   of an attack of `reattack`: with `warm`, one start more, and `warm_steps` steps where they are given
    F      draws that this attack sees
    S, T   of the short attacks at all draws, where the attack of `reattack` sees some draws only (`full_draws`)
    N      1 where logits are normalised, so that the loss takes a pass after each attack (C and S hold it); else 0
    P, Q   of the attacks of reference=paper; else 0
    """
    steps, restarts, warm = values.get("steps", 0), values.get("restarts", 1), values.get("warm", False)
    starts, again = restarts + warm, (warm and values.get("warm_steps")) or steps
    draws = values.get("draws", 0)
    full = min(draws, values.get("full_draws") or draws)
    short, shortened = -(-steps // 4), draws * (full < draws)
    paper = values.get("reference_restarts", 0) * (values.get("reference") == "paper")
    reading = int(values.get("logits") == "normalised")
    return {
        "A": restarts * (steps + 1),
        "B": restarts * steps,
        "C": starts * (again + 1) + reading,
        "D": starts * again,
        "F": full,
        "S": shortened * (restarts * (short + 1) + reading),
        "T": shortened * restarts * short,
        "N": reading,
        "P": paper * (steps + 2),
        "Q": paper * steps,
    }


def declared_passes(component: Evaluated) -> Passes | None:
    """The formulas of an attack, or those of a measure under the coupling that its parameters choose."""
    info = component.info
    if isinstance(info, AttackInfo):
        return info.passes
    return info.passes.get(getattr(component.params, "coupling", "clean" if "clean" in info.couplings else ""))
