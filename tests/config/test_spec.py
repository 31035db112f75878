"""Run keys: equal runs share one however they were written, and whatever can change a number changes it."""

import functools
import itertools
import json
import types
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from robflat_bench.config import spec as specs
from robflat_bench.config.protocol import Fixed, Protocol, load
from robflat_bench.config.spec import DatasetRef, RunSpec, make_spec
from robflat_bench.records.record import RunRecord
from robflat_bench.registry.components import compose

DATA = DatasetRef(name="digits", checksum="a" * 64, canonical=True, origin="a test")
Recipe = RunSpec.model_fields["recipe"].annotation


def key(registry, protocol: Protocol, method: str = "at", data: DatasetRef = DATA, seed: int = 1) -> str:
    return make_spec(registry, protocol, compose(registry, method), data, seed).key


@pytest.fixture(scope="module")
def protocol(registry, tiny):
    """The tiny protocol with every optional leaf present."""
    return load(registry, str(tiny), (f"fixed.data.pixels={{train = '{'0' * 64}'}}", "fixed.data.train.modulo=60"))


# ---------------------------------------------------------------------------------------------------------
# Every leaf of [fixed] and [recipe]
# ---------------------------------------------------------------------------------------------------------


def leaves(model: type[BaseModel], above: tuple = ()):
    """(path, annotation) of every field that holds a value, the first item of lists standing for all."""
    for name, field in model.model_fields.items():
        yield from _leaves(field.annotation, (*above, name))


def _leaves(annotation, path):
    inner = typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from leaves(annotation, path)
    elif typing.get_origin(annotation) is tuple:
        yield from _leaves(inner[0], (*path, 0))
    elif typing.get_origin(annotation) is dict:
        yield from _leaves(inner[1], (*path, typing.get_args(inner[0])[0]))
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
        (given,) = (option for option in inner if option is not type(None))
        yield from _leaves(given, path)
    else:
        yield path, annotation


OTHER_COMPONENTS = {
    "backbone": "resnet8(width=5)",
    "dataset": "cifar10",
    "attack": "fgsm(loss=margin)",
    "measure": "average-case(draws=9)",
    "optimizer": "sgd(momentum=0.5, nesterov=true)",
    "schedule": "one-cycle(rise=0.4)",
}
LEAVES = [("fixed", *path) for path, _ in leaves(Fixed)] + [("recipe", *path) for path, _ in leaves(Recipe)]
ANNOTATIONS = dict(
    [(("fixed", *path), kind) for path, kind in leaves(Fixed)]
    + [(("recipe", *path), kind) for path, kind in leaves(Recipe)]
)


def another(path, value):
    """A value that differs; models are not validated here, for one field may bound another."""
    if value is None:
        return 7
    options = [option for option in typing.get_args(ANNOTATIONS[path]) if isinstance(option, str)]
    if options:
        return next((option for option in options if option != value), "the only option so far")
    if isinstance(value, str):
        return OTHER_COMPONENTS.get(path[-1], "f" * 64)
    assert isinstance(value, int | float)
    assert not isinstance(value, bool)
    return value + 1 if isinstance(value, int) else value / 2


def replaced(model, path, change):
    """A copy of the frozen model (or tuple, or dict) with `change` applied at `path`."""
    if not path:
        return change(model)
    step, rest = path[0], path[1:]
    if isinstance(model, BaseModel):
        return model.model_copy(update={step: replaced(getattr(model, step), rest, change)})
    if isinstance(model, tuple):
        return (*model[:step], replaced(model[step], rest, change), *model[step + 1 :])
    return {**model, step: replaced(model[step], rest, change)}


def test_the_walk_meets_every_kind_of_leaf():
    paths = {".".join(map(str, path)) for path in LEAVES}
    assert {
        "fixed.backbone",
        "fixed.precision",
        "fixed.threads",
        "fixed.seed",
        "fixed.data.train.modulo",
        "fixed.data.pixels.train",
        "fixed.threat.epsilon",
        "fixed.selection.every",
        "fixed.attacks.0.checkpoints.0",
        "fixed.measures.0.measure",
        "recipe.epochs",
        "recipe.optimizer",
        "recipe.attack_bn",
    } <= paths
    assert len(paths) == len(LEAVES) >= 40


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: ".".join(map(str, path)))
def test_every_leaf_changes_the_key(registry, protocol, path):
    before = make_spec(registry, protocol, compose(registry, "at"), DATA, 1)
    part, rest = path[0], path[1:]
    content = replaced(getattr(protocol, part), rest, lambda value: another(path, value))
    assert content != getattr(protocol, part)
    changed = Protocol(**{**vars(protocol), part: content})
    if part == "recipe":
        after = before.model_copy(update={"recipe": content})
        assert changed.hash == protocol.hash
        assert str(path[1]) in changed.overrides
    else:
        after = before.model_copy(update={"protocol": before.protocol.model_copy(update={"hash": changed.hash})})
        assert changed.hash != protocol.hash
    assert after.key != before.key


@pytest.mark.parametrize("name", ["attacks", "measures"])
def test_more_fewer_or_reordered_rows_change_the_key(registry, protocol, name):
    rows = getattr(protocol.fixed, name)
    hashes = {protocol.hash}
    for other in (rows[:-1], (*rows, rows[0]), rows[::-1]):
        fixed = protocol.fixed.model_copy(update={name: other})
        hashes.add(Protocol(**{**vars(protocol), "fixed": fixed}).hash)
    assert len(hashes) == 4


# ---------------------------------------------------------------------------------------------------------
# What else is identity, and what is not
# ---------------------------------------------------------------------------------------------------------


def test_method_parameters_seed_and_data_change_the_key(registry, protocol, monkeypatch):
    made = functools.partial(key, registry, protocol)
    keys = [
        made(),
        made(method="standard"),
        made(method="trades"),
        made(method="trades(beta=5.999)"),
        made(seed=2),
        made(seed=0),
        made(data=DATA.model_copy(update={"checksum": "b" * 64})),
    ]
    monkeypatch.setattr(specs, "NUMERICS", specs.NUMERICS + 1)
    keys.append(made())
    assert all(one != other for one, other in itertools.combinations(keys, 2))


def test_plugins_change_the_key(registry, protocol):
    plain = make_spec(registry, protocol, compose(registry, "at"), DATA, 1)
    keys = {
        plain.model_copy(update={"plugins": plugins}).key
        for plugins in ({}, {"mine 1.0": "a"}, {"mine 1.1": "a"}, {"mine 1.0": "b"}, {"mine 1.0": "a", "other 1": "c"})
    }
    assert len(keys) == 5


def test_names_labels_and_origins_are_no_identity(registry, protocol):
    plain = make_spec(registry, protocol, compose(registry, "at"), DATA, 1)
    board = plain.protocol.model_copy(update={"name": "renamed", "version": "9.9"})
    copy = DATA.model_copy(update={"name": "other", "canonical": False, "origin": "elsewhere"})
    for update in ({"protocol": board}, {"dataset": copy}, {"label": "another row"}):
        other = plain.model_copy(update=update)
        assert other != plain
        assert other.key == plain.key


def test_every_field_of_a_spec_but_its_label_is_part_of_the_key():
    """A new field must enter `identity`, or the exceptions here."""
    exceptions = {"label"}
    assert set(RunSpec.model_fields) - exceptions == {
        "protocol",
        "recipe",
        "method",
        "dataset",
        "seed",
        "numerics",
        "plugins",
        "helpers",
        "extra_data",
    }


def test_a_key_is_16_hex_digits_and_ends_the_folder(registry, protocol):
    made = make_spec(registry, protocol, compose(registry, "trades(beta=3)"), DATA, 7)
    assert len(made.key) == 16
    assert int(made.key, 16) >= 0
    assert made.folder == f"{protocol.name}/trades-beta=3.0/seed-7-{made.key}"


def test_a_spec_keeps_its_key_through_json(registry, protocol):
    made = make_spec(registry, protocol, compose(registry, "trades(beta=0.1)"), DATA, 1)
    again = RunSpec.model_validate_json(json.dumps(made.model_dump(mode="json")))
    assert again == made
    assert again.key == made.key
    assert "spec" in RunRecord.model_fields


# ---------------------------------------------------------------------------------------------------------
# The same run, written differently
# ---------------------------------------------------------------------------------------------------------

SPACE = st.sampled_from(["", " ", "  "])


@st.composite
def number(draw, value: float) -> str:
    """One of the ways to write a number."""
    numerator, denominator = float(value).as_integer_ratio()
    ways = [repr(float(value)), f"{value:.17e}", f"{numerator}/{denominator}", f"{2 * numerator}/{2 * denominator}"]
    if value == int(value):
        ways += [str(int(value)), f"{int(value)}.0", f"+{int(value)}"]
    return draw(st.sampled_from(ways))


FLOATS = st.floats(1e-6, 1) | st.just(0)  # far from denormals, whose fractions are not exact
SETTINGS = {
    "recipe.epochs": st.integers(1, 500),
    "recipe.batch_size": st.integers(1, 500),
    "recipe.learning_rate": st.floats(1e-6, 10),
    "recipe.weight_decay": FLOATS,
    "recipe.epsilon": FLOATS | st.just(1),
    "recipe.attack_step": st.floats(1e-6, 1),
}


@settings(max_examples=60)
@given(
    beta=FLOATS | st.integers(0, 100),
    chosen=st.fixed_dictionaries({}, optional=SETTINGS),
    momentum=st.floats(1e-6, 0.99),
    data=st.data(),
)
def test_one_run_has_one_key(registry, tiny, beta, chosen, momentum, data):
    def written():
        space = functools.partial(data.draw, SPACE)
        pairs = [f"{space()}beta{space()}={space()}{data.draw(number(beta))}{space()}"]
        values = [f"momentum={data.draw(number(momentum))}", f"nesterov{space()}={space()}true"]
        ordered = data.draw(st.permutations(values if data.draw(st.booleans()) else values[:1]))
        lines = [f"{name}={space()}{data.draw(number(value))}" for name, value in chosen.items()]
        lines += [f"recipe.optimizer={space()}sgd({','.join(ordered)})"]
        protocol = load(registry, str(tiny), tuple(data.draw(st.permutations(lines))))
        members = data.draw(st.permutations(["ema", f"awp{space()}(gamma=1/100)"]))
        method = compose(registry, "+".join([f"{space()}trades{space()}({','.join(pairs)})", *members]))
        return make_spec(registry, protocol, method, DATA, 1)

    one, other = written(), written()
    assert one == other
    assert one.key == other.key
    assert one.folder == other.folder


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("recipe.epsilon=8/255", f"recipe.epsilon={8 / 255!r}"),
        ("recipe.epsilon=1", "recipe.epsilon=1.0"),
        ("recipe.weight_decay=0", "recipe.weight_decay=-0.0"),
        ("recipe.epochs=3", "recipe.epochs= 3.0 "),
        ("recipe.schedule=piecewise", "recipe.schedule=piecewise(factor=1e-1, drops=[0.4, 0.6, 0.8])"),
        ("recipe.schedule=piecewise", "recipe.schedule='piecewise( )'"),
    ],
)
def test_the_same_setting_written_twice(registry, tiny, one, other):
    assert key(registry, load(registry, str(tiny), (one,))) == key(registry, load(registry, str(tiny), (other,)))
