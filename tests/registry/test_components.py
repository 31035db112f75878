"""The grammar of components: what it reads, what it writes, and how it says no."""

import itertools
import json
import math
import re
import typing

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from robflat_bench.attacks import robflat_bench_attacks
from robflat_bench.backbones import robflat_bench_backbones
from robflat_bench.core import UsageError
from robflat_bench.data import robflat_bench_datasets
from robflat_bench.measures import robflat_bench_measures
from robflat_bench.methods import robflat_bench_methods
from robflat_bench.modifiers import robflat_bench_modifiers
from robflat_bench.registry.components import resolve, slug, title, write
from robflat_bench.registry.grammar import parse
from robflat_bench.registry.registry import KINDS

# ---------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at", ("at", {})),
        ("  at  ", ("at", {})),
        ("at()", ("at", {})),
        ("at ( )", ("at", {})),
        ("wrn-28-10", ("wrn-28-10", {})),
        ("trades(beta=6)", ("trades", {"beta": 6})),
        ("trades( beta = 6.5 )", ("trades", {"beta": 6.5})),
        ("pgd(steps=20,restarts=3)", ("pgd", {"steps": 20, "restarts": 3})),
        ("pgd(step=-1e-3)", ("pgd", {"step": -1e-3})),
        ("m(a=true, b=false)", ("m", {"a": True, "b": False})),
        ("m(strides=[1, 2, 2], width=4)", ("m", {"strides": [1, 2, 2], "width": 4})),
        ("m(nested=[[1, 2], [3]], z=1)", ("m", {"nested": [[1, 2], [3]], "z": 1})),
        ("m(names=['a,b', \"c)\"], z=1)", ("m", {"names": ["a,b", "c)"], "z": 1})),
        ("m(name='has (brackets, and commas]')", ("m", {"name": "has (brackets, and commas]"})),
        ('m(name="double")', ("m", {"name": "double"})),
        ("m(name='#1')", ("m", {"name": "#1"})),
        ("timm(name=resnet18.a1_in1k)", ("timm", {"name": "resnet18.a1_in1k"})),
        ("m(loss=ce)", ("m", {"loss": "ce"})),
        ("m(a='')", ("m", {"a": ""})),
    ],
)
def test_reads(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize("text", ["8/255", "8 / 255", "8.0/255", "16/510"])
def test_reads_fractions(text):
    assert parse(f"m(epsilon={text})")[1]["epsilon"] == 8 / 255


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "(beta=6)",
        "Trades",
        "-trades",
        "trades beta",
        "trades(",
        "trades)",
        "trades(beta=6",
        "trades(beta=6))",
        "trades(beta=6)(x=1)",
        "trades(beta)",
        "trades(6)",
        "trades(=6)",
        "trades(beta=)",
        "trades(beta=6,)",
        "trades(beta=6,,gamma=1)",
        "trades(beta=6, beta=7)",
        "trades(Beta=6)",
        "trades(beta=6 7)",
        "trades(beta=[1, 2)",
        "trades(beta=1, 2])",
        "trades(beta='six)",
        "trades(beta=1/0)",
        "trades(beta=1/2/3)",
        "trades(beta=6 # a comment)",
        "trades(beta=6\ngamma=7)",
        "trades(beta=6\n[table]\nx=1)",
        "trades(beta=$HOME)",
        "trades+awp",
        "m(x=" + "[" * 5000 + "]" * 5000 + ")",
    ],
    ids=lambda text: text[:25],
)
def test_malformed_text_is_refused_in_one_line(text):
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert "\n" in text or "\n" not in str(caught.value)


FRAGMENTS = st.sampled_from(
    ["m", "(", ")", "a=", "=", ",", "[", "]", "'", '"', "1", "8/255", "\n", "#", " ", "{", "}", "é"]
)


@given(st.lists(FRAGMENTS, max_size=14).map("".join) | st.text(max_size=30))
@example("m(a=0_)")
@example("m(a=1979-05-27)")
@example("m(a=[" + "'\\x'" + "])")
def test_any_text_is_read_or_refused(text):
    try:
        name, values = parse(text)
    except UsageError:
        return
    assert re.fullmatch("[a-z0-9][a-z0-9-]*", name)
    assert all(re.fullmatch("[a-z_][a-z0-9_]*", key) for key in values)


# ---------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------


def test_canonical_fills_in_defaults_and_sorts(registry):
    component = resolve(registry, "attack", "pgd(steps=7, restarts=2)")
    assert component.canonical == 'pgd(init="uniform", loss="ce", restarts=2, steps=7)'


def test_brief_shows_what_differs(registry):
    assert resolve(registry, "attack", "pgd(steps=20, restarts=3)").brief == "pgd(restarts=3)"
    assert resolve(registry, "attack", "pgd(steps=20, restarts=1)").brief == "pgd"
    assert resolve(registry, "method", "trades(beta=6)").brief == "trades"
    assert resolve(registry, "backbone", "timm(name=resnet18)").brief == 'timm(name="resnet18")'


def test_a_component_without_parameters_is_its_name(registry):
    component = resolve(registry, "method", "at()")
    assert (component.canonical, component.brief) == ("at", "at")


def test_a_negative_zero_is_zero(registry):
    one, other = (resolve(registry, "method", f"trades(beta={zero})") for zero in ("0.0", "-0.0"))
    assert one.canonical == other.canonical == "trades(beta=0.0)"
    assert write("cosine", {"final": -0.0, "milestones": [-0.0]}) == "cosine(final=0.0, milestones=[0.0])"


def test_titles_name_parameters_and_survive_a_missing_plugin(registry):
    assert title(registry, "attack", "pgd(restarts=3, steps=20)") == "PGD-20 x 3"
    assert title(registry, "attack", "gone(x=1)") == "gone(x=1)"
    assert title(registry, "attack", 'pgd(loss="margin")').endswith(", loss=margin")
    clean, normalised = (
        title(registry, "measure", f"average-case(coupling=clean{more})") for more in ("", ", logits=normalised")
    )
    assert normalised == f"{clean}, logits=normalised"


PGD = st.fixed_dictionaries(
    {},
    optional={
        "steps": st.integers(1, 1000),
        "restarts": st.integers(1, 1000),
        "step": st.floats(1e-9, 1, exclude_min=True),
        "loss": st.sampled_from(["ce", "margin"]),
        "init": st.sampled_from(["uniform", "zero"]),
    },
)


@given(PGD, PGD)
def test_attacks_that_differ_have_titles_that_differ(registry, one, other):
    texts = [resolve(registry, "attack", write("pgd", values)).canonical for values in (one, other)]
    titles = [title(registry, "attack", text) for text in texts]
    assert (titles[0] == titles[1]) == (texts[0] == texts[1])


@given(PGD)
def test_canonical_text_reads_back_as_itself(registry, values):
    text = f"pgd({', '.join(f'{key}={json.dumps(value)}' for key, value in values.items())})"
    component = resolve(registry, "attack", text)
    again = resolve(registry, "attack", component.canonical)
    assert again == component
    assert again.canonical == component.canonical
    assert resolve(registry, "attack", component.brief) == component


def spelled(draw, key: str, value) -> str:
    """One of the ways to write key=value."""
    if isinstance(value, str):
        written = draw(st.sampled_from([value, f'"{value}"', f"'{value}'"]))
    elif isinstance(value, float):
        numerator, denominator = value.as_integer_ratio()
        written = draw(st.sampled_from([repr(value), f"{value:.17e}", f"{numerator}/{denominator}"]))
    else:
        written = draw(st.sampled_from([str(value), f"{value}.0", f"+{value}", f"{value}/1"]))
    return f"{key}{draw(SPACE)}={draw(SPACE)}{written}"


SPACE = st.sampled_from(["", " ", "  "])


@given(PGD, st.data())
def test_equal_components_written_differently_have_one_canonical_text(registry, values, data):
    expected = resolve(registry, "attack", f"pgd({', '.join(f'{k}={json.dumps(v)}' for k, v in values.items())})")
    defaults = {"steps": 20, "restarts": 1, "loss": "ce", "init": "uniform"}
    missing = [key for key in defaults if key not in values and data.draw(st.booleans(), label=f"write {key}")]
    items = data.draw(st.permutations(list((values | {key: defaults[key] for key in missing}).items())))
    space = data.draw(SPACE)
    written = ",".join(f"{space}{spelled(data.draw, key, value)}{space}" for key, value in items)
    text = f"{space}pgd{space}({written}){space}"
    assert resolve(registry, "attack", text).canonical == expected.canonical


def other_value(annotation, default):
    """A legal value of a parameter that is not its default."""
    options = () if isinstance(default, tuple) else typing.get_args(annotation)
    literals = [option for option in options if typing.get_origin(option) is typing.Literal]
    for option in [*options, *itertools.chain(*map(typing.get_args, literals))]:
        if option is not type(None) and isinstance(option, str | int) and option != default:
            return option
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 1
    if isinstance(default, float):
        return default / 2 or 0.125
    if isinstance(default, tuple):
        return [1] * len(default)
    if default is None:
        return (
            "*.bias" if "tuple[str" in str(annotation) else 3 if int in options or "[int" in str(annotation) else 0.125
        )
    return "another"


BUILT_IN = [
    *robflat_bench_datasets(),
    *robflat_bench_backbones(),
    *robflat_bench_attacks(),
    *robflat_bench_methods(),
    *robflat_bench_modifiers(),
    *robflat_bench_measures(),
]


NEEDS = {("worst-case", "start"): {"keep": "last"}, ("images", "sha256"): {"sha256": "0" * 64}}
"""What a parameter's other values need."""
HASHES = {"sha256", "train_sha256", "test_sha256"}


@pytest.mark.parametrize(
    ("info", "name"),
    [
        pytest.param(info, name, id=f"{info.name}.{name}")
        for info in BUILT_IN
        for name, field in info.params.model_fields.items()
        if (info.name, name) != ("images", "file")  # its content is in the text, its name is not
        if len(typing.get_args(field.annotation)) != 1
        and field.annotation is not type(None)  # what a subclass narrows to one value cannot be changed
    ],
)
def test_every_parameter_changes_the_canonical_text(registry, info, name):
    fields = info.params.model_fields
    required = {key: "some" for key, field in fields.items() if field.is_required()} | NEEDS.get((info.name, name), {})
    other = (
        "1" * 64 if name in HASHES else other_value(fields[name].annotation, required.get(name, fields[name].default))
    )
    changed = required | {name: other}
    texts = [
        f"{info.name}({', '.join(f'{key}={json.dumps(value)}' for key, value in values.items())})"
        for values in (required, changed)
    ]
    plain, different = (resolve(registry, info.kind, text).canonical for text in texts)
    assert plain != different


# ---------------------------------------------------------------------------------------------------------
# Folder names
# ---------------------------------------------------------------------------------------------------------


@given(st.text(max_size=300))
def test_slugs_keep_to_their_alphabet_and_length(text):
    assert re.fullmatch(r"[a-z0-9.=+-]{0,80}", slug(text))


def test_slugs_are_readable():
    assert slug('pgd(loss="margin", steps=7)') == "pgd-loss=margin-steps=7"
    assert slug("trades(beta=3.0) [epochs=1 weight_decay=0.0]") == "trades-beta=3.0-epochs=1-weight-decay=0.0"


def test_long_slugs_stay_apart():
    long = "trades [" + " ".join(f"parameter_{number}=0.123456789" for number in range(9))
    one, two = slug(f"{long} z=1]"), slug(f"{long} z=2]")
    assert len(one) == len(two) == 80
    assert one != two


# ---------------------------------------------------------------------------------------------------------
# Saying no
# ---------------------------------------------------------------------------------------------------------


def refusal(registry, kind, text):
    with pytest.raises(UsageError) as caught:
        resolve(registry, kind, text)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "text", "meant"),
    [
        ("method", "trade", "trades"),
        ("attack", "pdg", "pgd"),
        ("attack", "auto-attack", "autoattack"),
        ("backbone", "resnet-18", "resnet18"),
        ("measure", "averagecase", "average-case"),
        ("dataset", "cifar-10", "cifar10"),
        ("method", "trades(bet=6)", "beta"),
        ("attack", "pgd(restart=2)", "restarts"),
        ("measure", "worst-case(weight-step=0.1)", None),
        ("measure", "worst-case(weightstep=0.1)", "weight_step"),
    ],
)
def test_unknown_names_are_answered_with_a_guess(registry, kind, text, meant):
    message = refusal(registry, kind, text)
    assert meant is None or f"did you mean '{meant}'?" in message


def test_an_unknown_name_far_from_all_says_where_to_look(registry):
    message = refusal(registry, "method", "zzzzzz")
    assert "did you mean" not in message
    assert "robflat-bench list methods" in message


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("method", "trades(beta=-1)"),
        ("method", "trades(beta=nan)"),
        ("method", "trades(beta=inf)"),
        ("method", "trades(beta=inf/1)"),
        ("method", "trades(beta=1e999)"),
        ("method", f"trades(beta={'9' * 5000})"),
        ("method", "trades(beta=six)"),
        ("method", "trades(beta=[6])"),
        ("attack", "pgd(steps=0)"),
        ("attack", "pgd(steps=-3)"),
        ("attack", "pgd(steps=1.5)"),
        ("attack", "pgd(step=0)"),
        ("attack", "pgd(loss=hinge)"),
        ("attack", "autoattack(version=full)"),
        ("measure", "average-case(xi=-0.5)"),
        ("measure", "average-case(draws=1)"),
        ("measure", "worst-case(batch=-1)"),
        ("backbone", "resnet8(width=0)"),
        ("backbone", "resnet8(strides=[1, 2])"),
        ("backbone", "resnet8(strides=[1, 2, 3])"),
        ("backbone", "timm"),
    ],
)
def test_values_out_of_range_are_refused(registry, kind, text):
    message = refusal(registry, kind, text)
    name = text.partition("(")[2].partition("=")[0] or "name"
    assert f"'{name}" in message


def test_a_name_is_searched_in_its_own_kind(registry):
    assert set(KINDS) == {"method", "modifier", "attack", "measure", "backbone", "dataset", "launcher"}
    assert "unknown attack 'trades'" in refusal(registry, "attack", "trades")
    assert math.isclose(resolve(registry, "measure", "average-case(xi=1/2)").params.xi, 0.5)
