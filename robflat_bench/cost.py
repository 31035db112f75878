"""What a step will cost, from the formulas that components declare: image passes before a single one is made."""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping

from robflat_bench.base import MeasureInfo, MethodInfo, ModifierInfo, Passes
from robflat_bench.components import Component, Composed

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


def passes_of_measure(measure: Component) -> tuple[int, int] | None:
    """Forward and backward passes of each image; None where a search decides how many."""
    info, values = measure.info, measure.params.model_dump()
    assert isinstance(info, MeasureInfo)
    declared = info.passes.get(values.get("coupling", "clean" if "clean" in info.couplings else ""))
    if declared is None:
        return None
    steps, restarts = values.get("steps", 0), values.get("restarts", 1)
    values |= {"A": restarts * (steps + 1), "B": restarts * steps}
    return formula(declared.forward, values), formula(declared.backward, values)
