"""Protocols: what is refused and how, what the hash is of, and what `--set` does to board and row."""

import json
import os
import random
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robflat_bench.config.protocol import DEFAULT, MAX_BYTES, components, load
from robflat_bench.config.protocols import robflat_bench_protocols
from robflat_bench.config.spec import DatasetRef, make_spec
from robflat_bench.core import UsageError
from robflat_bench.registry.components import compose, resolve

SHIPPED = {file.name.removesuffix(".toml"): file.read_text("utf-8") for file in robflat_bench_protocols()}
DATA = DatasetRef(name="digits", checksum="0" * 64, canonical=True, origin="a test")


@pytest.fixture
def protocol_file(tiny, tmp_path):
    """`protocol_file((old, new), ...)`: the path of the tiny protocol with its text changed."""

    def write(*changes: tuple[str, str]) -> str:
        text = tiny.read_text()
        for old, new in changes:
            assert text.count(old) >= 1, old
            text = text.replace(old, new, 1)
        path = tmp_path / "changed.toml"
        path.write_text(text)
        return str(path)

    return write


def refusal(registry, name, *settings):
    with pytest.raises(UsageError) as caught:
        load(registry, str(name), settings)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


# ---------------------------------------------------------------------------------------------------------
# The shipped ones
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_protocols_load(registry, name):
    protocol = load(registry, name)
    assert protocol.name == name.split("@")[0]
    assert name in (protocol.name, f"{protocol.name}@{protocol.version}")
    assert protocol.summary
    assert protocol.overrides == {}
    assert len(protocol.hash) == 64
    for kind, text in components(protocol):
        assert resolve(registry, kind, text).canonical == text


def test_the_default_is_shipped_and_boards_differ(registry):
    assert DEFAULT in SHIPPED
    assert len({load(registry, name).hash for name in SHIPPED}) == len(SHIPPED)


def test_an_unknown_protocol_is_answered_with_a_guess(registry):
    assert "did you mean 'digits-linf'?" in refusal(registry, "digit-linf")
    assert "robflat-bench list protocols" in refusal(registry, "zzzzzz")


# ---------------------------------------------------------------------------------------------------------
# Bad files
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("threads = 1", "thread = 1", "'fixed.thread'; did you mean 'threads'?"),
        ("[fixed.threat]", "[fixed.threats]", "'fixed.threats'; did you mean 'threat'?"),
        ("epochs = 2", "epochs = 2\nepoch = 2", "'recipe.epoch'; did you mean 'epochs'?"),
        ("epsilon = 0.2", "eps = 0.2", "'fixed.threat.eps'; did you mean 'epsilon'?"),
        ("test = 30", "tests = 30", "'fixed.attacks.0.tests'; did you mean 'test'?"),
        ("start = 60, stop", "begin = 60, stop", "'fixed.data.heldout.begin'"),
        ('summary = "', 'sumary = "', "'sumary'; did you mean 'summary'?"),
        ('version = "1.0"\n', "", "'version' is missing"),
        ("epochs = 2\n", "", "'recipe.epochs' is missing"),
        ('dataset = "digits"\n', "", "'fixed.data.dataset' is missing"),
        ('version = "1.0"', 'version = "one"', "'version' = 'one'"),
        ('name = "tiny"', 'name = "../tiny"', "'name' = '../tiny'"),
        ("epsilon = 0.2", "epsilon = -0.1", "'fixed.threat.epsilon' = -0.1"),
        ("epsilon = 0.2", "epsilon = nan", "'fixed.threat.epsilon' = nan"),
        ("epsilon = 0.2", "epsilon = '8/0'", "'fixed.threat.epsilon' = '8/0'"),
        ("epsilon = 0.2", "epsilon = 2.0", "'fixed.threat.epsilon' = 2.0"),
        ("epsilon = 0.2", "norm = 'l3'\nepsilon = 0.2", "'fixed.threat.norm' = 'l3'"),
        ("epochs = 2", "epochs = 0", "'recipe.epochs' = 0"),
        ("batch_size = 20", "batch_size = -20", "'recipe.batch_size' = -20"),
        ("learning_rate = 0.05", "learning_rate = 0", "'recipe.learning_rate' = 0"),
        ("attack_steps = 2", "attack_steps = 0", "'recipe.attack_steps' = 0"),
        ("attack_step = 0.1", "attack_step = 0.0", "'recipe.attack_step' = 0.0"),
        ("batch_size = 20", "batch_size = 20\nactivation = 'tanh'", "'recipe.activation' = 'tanh'"),
        ("batch_size = 20", "batch_size = 20\noptimizer = 'sdg'", "did you mean 'sgd'?"),
        ("batch_size = 20", "batch_size = 20\noptimizer = 'sgd(momentum=2)'", "'momentum' = 2"),
        ("batch_size = 20", "batch_size = 20\nschedule = 'one-cycl'", "did you mean 'one-cycle'?"),
        ("batch_size = 20", "batch_size = 20\nschedule = 'piecewise(drop=[0.5])'", "did you mean 'drops'?"),
        ("threads = 1", "threads = 0", "'fixed.threads' = 0"),
        ('precision = "float32"', 'precision = "float16"', "'fixed.precision' = 'float16'"),
        ("count = 60", "count = 0", "'fixed.data.train.count' = 0"),
        ("test = 30", "test = 0", "'fixed.attacks.0.test' = 0"),
        ('attack = "pgd(steps=2)"\ntest', 'attack = "pgdd(steps=2)"\ntest', "did you mean 'pgd'?"),
        ('attack = "pgd(steps=2)"\ntest', 'attack = "pgd(steps=0)"\ntest', "'steps' = 0"),
        ('attack = "pgd(steps=2)"\n\n', 'attack = "pgd(step=2"\n\n', "is not a component"),
        ('measure = "average-case(draws=2', 'measure = "average-case(draw=2', "did you mean 'draws'?"),
        ('backbone = "resnet8(width=4', 'backbone = "resnet9(width=4', "did you mean 'resnet8'?"),
        ('dataset = "digits"', 'dataset = "digit"', "did you mean 'digits'?"),
        ("test = 30\n", "test = 31\n", "asks for more test examples than data.test has"),
        ("train = 20\n", "train = 61\n", "asks for more train examples than data.train has"),
        ('draws=2, steps=2)"\ntest = 30', 'draws=2, steps=2)"\ntest = 31', "asks for more test examples"),
        (
            'attack = "fgsm"\ntest = 20\n',
            'attack = "pgd(restarts=1, steps=2)"\ntest = 20\n',
            'the attack pgd(init="uniform", loss="ce", restarts=1, steps=2) is there twice',
        ),
        (
            'restarts=1)"\ntest = 30\n',
            'restarts=1)"\ntest = 30\n\n[[fixed.measures]]\n'
            'measure = "worst-case(xi=0.03, steps=2, restarts=1)"\ntest = 20\n',
            "for the checkpoint 'last'",
        ),
        ("train = 20\n", "train = 20\ncheckpoints = ['last']\n", "must cover both checkpoints"),
        ("train = 20\n", "train = 20\ncheckpoints = []\n", "'fixed.attacks.0.checkpoints' = []"),
        ("train = 20\n", "train = 20\ncheckpoints = ['first']\n", "'fixed.attacks.0.checkpoints.0' = 'first'"),
    ],
)
def test_a_wrong_protocol_is_refused_with_its_wrong_key(registry, protocol_file, old, new, says):
    message = refusal(registry, protocol_file((old, new)))
    assert says in message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[fixed\n",
        "name = tiny\n",
        "name = 'a'\nname = 'b'\n",
        "fixed = 7\n",
        "name = " + "[" * 3000 + "]" * 3000,
        "seed = " + "9" * 5000,
        "[[fixed]]\n",
    ],
    ids=lambda text: text[:12],
)
def test_malformed_files_are_refused(registry, tmp_path, text):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    assert str(path) in refusal(registry, path)


def test_files_that_cannot_be_read(registry, tmp_path):
    assert "No such file" in refusal(registry, tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    assert "cannot be read" in refusal(registry, tmp_path / "folder.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"name = '\xff\xfe'")
    assert "cannot be read" in refusal(registry, binary)
    large = tmp_path / "large.toml"
    large.write_text("# " + "x" * MAX_BYTES)
    assert f"larger than {MAX_BYTES} bytes" in refusal(registry, large)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_protocol_that_is_no_regular_file_is_refused_at_once(registry, tmp_path, kind):
    path = tmp_path / "odd.toml"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    assert "odd.toml cannot be read: it is not a regular file; give a TOML file" in refusal(registry, path)


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("recipe.epsilon=true", "valid number"),
        ("recipe.learning_rate=true", "valid number"),
        ('recipe.weight_decay="0.1"', "valid number"),
        ("recipe.epochs=true", "valid integer"),
        ('recipe.attack_steps="3"', "valid integer"),
        ("fixed.threat.epsilon=true", "valid number"),
        ("fixed.seed=false", "valid integer"),
        ("fixed.data.train.start=false", "valid integer"),
        ("recipe.schedule=cyclic(cycles=true)", "valid integer"),
        ("recipe.schedule=piecewise(drops=[true])", "valid number"),
        ("recipe.optimizer=sgd(nesterov=1)", "valid boolean"),
        ("fixed.selection.attack=pgd(steps=true)", "valid integer"),
        ("fixed.selection.attack=pgd(step=true)", "valid number"),
        ("fixed.threads=1000000", "less than or equal to 1024"),
        ("fixed.selection.every=10000000", "less than or equal to"),
        ("fixed.data.train.modulo=1000000000000000000000000000000", "less than or equal to"),
        ("fixed.backbone=resnet8(width=1000000)", "less than or equal to 1024"),
        ("fixed.selection.attack=pgd(steps=1000000000)", "less than or equal to 1000000"),
        ("fixed.selection.attack=pgd(restarts=1000000000)", "less than or equal to 1000000"),
        ("recipe.epochs=1000000000", "less than or equal to 1000000"),
        ("recipe.batch_size=1000000000", "less than or equal to 1000000"),
        ("recipe.schedule=cyclic(cycles=1000000000)", "less than or equal to 1000000"),
    ],
)
def test_a_bool_is_no_number_and_sizes_have_an_upper_bound(registry, setting, problem):
    assert problem in refusal(registry, "digits-linf", setting)


def test_a_bad_protocol_is_one_line_and_2(command, protocol_file, tmp_path):
    for change in (("epsilon = 0.2", "epsilon = -1"), ("[fixed]", "[fixed"), ("steps=2", "steps=0")):
        done = command("run", "--method", "at", "--protocol", protocol_file(change), "--store", tmp_path)
        assert done.code == 2
        assert "changed.toml" in done.complaint or "attack pgd" in done.complaint


# ---------------------------------------------------------------------------------------------------------
# The hash is of what a protocol says, not of how
# ---------------------------------------------------------------------------------------------------------

RESPELLED = """
# The tiny protocol, said differently.
summary = "Another summary."
version = "2.3"
name = "tiny-too"

[recipe]
attack_step = "1/10"
attack_steps = 2
epsilon = "2/10"
learning_rate = 5e-2
weight_decay = 0.0005
optimizer = "sgd( nesterov=true,momentum = 0.90 )"
schedule = "constant()"
augmentation = "none"
activation = "relu"
attack_start = "uniform"
attack_bn = "eval"
batch_size = 20
epochs = 2

[fixed]
measures = [
  { test = 30, measure = "average-case(steps=2, draws=2, xi='1/2', reference=matched)" },
  { measure = "worst-case(restarts=1,steps=2,xi=3e-2)", checkpoints = ["last"], test = 30 },
]
threads = 1
seed = 0
precision = "float32"
backbone = "resnet8(stem_stride=2, width=4, strides=[1,1,1])"
threat = { epsilon = "51/255", norm = "linf" }
selection = { every = 1, attack = "pgd(steps=2, restarts=1)" }

[[fixed.attacks]]
checkpoints = ["last", "best", "last"]
train = 20
test = 30
attack = "pgd(init=uniform, steps=2.0)"

[[fixed.attacks]]
attack = "fgsm()"
test = 20
train = 0
checkpoints = ["last"]

[fixed.data]
pixels = {}
test = { count = 30, stop = 110, start = 80, pool = "train" }
train = { count = 60, stop = 60, start = 0, pool = "train" }
heldout = { count = 20, stop = 80, start = 60, pool = "train" }
dataset = "digits"
"""


def test_spelling_order_comments_and_written_defaults_change_no_hash(registry, tiny, tmp_path):
    path = tmp_path / "respelled.toml"
    path.write_text(RESPELLED)
    one, other = load(registry, str(tiny)), load(registry, str(path))
    assert one.fixed == other.fixed
    assert one.recipe == other.recipe
    assert one.hash == other.hash
    assert one.name != other.name


def toml(value) -> str:
    """A value on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
    return f"[{', '.join(map(toml, value))}]" if isinstance(value, list) else json.dumps(value)


def shuffled(value, source: random.Random):
    if isinstance(value, dict):
        items = [(key, shuffled(item, source)) for key, item in value.items()]
        source.shuffle(items)
        return dict(items)
    return [shuffled(item, source) for item in value] if isinstance(value, list) else value


@settings(max_examples=25)
@given(st.sampled_from(sorted(SHIPPED)), st.randoms(use_true_random=False))
def test_the_order_of_keys_changes_no_hash(registry, tmp_path_factory, name, source):
    path = tmp_path_factory.mktemp("shuffled") / "shuffled.toml"
    content = shuffled(tomllib.loads(SHIPPED[name]), source)
    path.write_text("".join(f"{key} = {toml(value)}\n" for key, value in content.items()))
    assert load(registry, str(path)).hash == load(registry, name).hash
    assert load(registry, str(path)).recipe == load(registry, name).recipe


def test_the_order_of_attacks_is_part_of_the_board(registry, tiny, tmp_path):
    content = tomllib.loads(tiny.read_text())
    content["fixed"]["measures"].reverse()
    path = tmp_path / "reversed.toml"
    path.write_text("".join(f"{key} = {toml(value)}\n" for key, value in content.items()))
    assert load(registry, str(path)).hash != load(registry, str(tiny)).hash


# ---------------------------------------------------------------------------------------------------------
# --set
# ---------------------------------------------------------------------------------------------------------


def spec(registry, protocol, method="trades"):
    return make_spec(registry, protocol, compose(registry, method), DATA, 1)


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ("recipe.epochs=3", "epochs=3"),
        ("recipe.learning_rate=0.1", "learning_rate=0.1"),
        ("recipe.epsilon=8/255", "epsilon=0.03137254901960784"),
        ("recipe.activation=silu", "activation=silu"),
        ("recipe.activation='silu'", "activation=silu"),
        ("recipe.attack_start=normal", "attack_start=normal"),
        ("recipe.schedule=one-cycle", "schedule=one-cycle"),
        ("recipe.schedule=piecewise(drops=[0.5, 0.75])", "schedule=piecewise(drops=[0.5, 0.75])"),
        ("recipe.optimizer=sgd(momentum=0)", "optimizer=sgd(momentum=0.0)"),
    ],
)
def test_setting_the_recipe_changes_key_and_row_and_keeps_the_board(registry, tiny, setting, shown):
    plain, changed = load(registry, str(tiny)), load(registry, str(tiny), (setting,))
    assert changed.hash == plain.hash
    assert changed.name == plain.name
    before, after = spec(registry, plain), spec(registry, changed)
    assert before.label == "trades"
    assert after.label == f"trades [{shown}]"
    assert after.key != before.key
    assert after.folder.split("/")[0] == before.folder.split("/")[0] == "tiny"
    assert after.folder.split("/")[1] != before.folder.split("/")[1]


def test_settings_sort_themselves_and_the_defaults_do_not_show(registry, tiny):
    one = load(registry, str(tiny), ("recipe.epochs=3", "recipe.activation=silu"))
    other = load(registry, str(tiny), ("recipe.activation=silu", "recipe.epochs=9", "recipe.epochs=3.0"))
    assert spec(registry, one) == spec(registry, other)
    same = load(registry, str(tiny), ("recipe.epochs=2", "recipe.epsilon=1/5", "recipe.schedule=constant()"))
    assert spec(registry, same) == spec(registry, load(registry, str(tiny)))


@pytest.mark.parametrize(
    "setting",
    [
        "fixed.threat.epsilon=0.1",
        "fixed.backbone=resnet8(width=8)",
        "fixed.data.train.stop=61",
        "fixed.seed=1",
        "fixed.threads=2",
        "fixed.measures=[]",
    ],
)
def test_setting_the_fixed_part_leaves_the_board(registry, tiny, setting):
    plain, changed = load(registry, str(tiny)), load(registry, str(tiny), (setting,))
    assert changed.hash != plain.hash
    assert changed.name == f"tiny-{changed.hash[:8]}"
    before, after = spec(registry, plain), spec(registry, changed)
    assert after.key != before.key
    assert after.label == before.label
    assert after.folder.startswith(f"tiny-{changed.hash[:8]}/")


def test_setting_the_fixed_part_to_what_it_is_keeps_the_board(registry, tiny):
    same = load(registry, str(tiny), ("fixed.threat.epsilon=1/5", "fixed.selection.attack=pgd(restarts=1, steps=2)"))
    assert spec(registry, same) == spec(registry, load(registry, str(tiny)))


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("recipe", "write recipe.KEY=VALUE"),
        ("recipe=3", "write recipe.KEY=VALUE"),
        ("epochs=3", "write recipe.KEY=VALUE"),
        ("name=other", "write recipe.KEY=VALUE"),
        ("name.x=other", "write recipe.KEY=VALUE"),
        ("=3", "write recipe.KEY=VALUE"),
        ("recipe.=3", "unknown key 'recipe.'"),
        ("recipe.epochs", "write recipe.KEY=VALUE"),
        ("recipe.epochs=", "cannot read the value ''"),
        ("recipe.epochs=3,4", "cannot read the value '3,4'"),
        ("recipe.epochs=many", "'recipe.epochs' = 'many'"),
        ("recipe.epochs=0", "'recipe.epochs' = 0"),
        ("recipe.epochs=2.5", "'recipe.epochs' = 2.5"),
        ("recipe.epoch=3", "did you mean 'epochs'?"),
        ("recipe.learning_rate=-1", "'recipe.learning_rate' = -1"),
        ("recipe.learning_rate=inf", "'recipe.learning_rate' = inf"),
        ("recipe.optimizer=adan", "unknown optimizer 'adan'; did you mean 'adam'?"),
        ("recipe.schedule=piecewise(drops=[2.0])", "drops"),
        ("recipe.epochs.more=3", "'epochs' is not a table"),
        ("fixed.threat.epsilon=-0.1", "'fixed.threat.epsilon' = -0.1"),
        ("fixed.treat.epsilon=0.1", "did you mean 'threat'?"),
        ("fixed.attacks.0.test=3", "'attacks' is not a table"),
        ("fixed.backbone=resnet8(width=0)", "'width' = 0"),
    ],
)
def test_bad_settings_are_refused(registry, tiny, setting, says):
    assert says in refusal(registry, tiny, setting)
