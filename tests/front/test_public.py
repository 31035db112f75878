"""`import robflat_bench as rb`: what it offers, and that it computes what the commands compute."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.commands import REPOSITORY, TINY, promised, run_here
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import robflat_bench as rb
from robflat_bench.core import Interrupted, UsageError
from robflat_bench.front import progress
from robflat_bench.testing.tiny import tiny_protocol

MORE = """
[[fixed.measures]]
measure = "average-case(draws=2, steps=2)"
test = 30
"""


class Net(nn.Module):
    """A network as a user has one: two convolutions, dropout, no normalisation of its images."""

    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        x = self.norm(self.conv1(x)).relu()
        return self.head(self.drop(self.conv2(x).relu().mean((2, 3))))


@pytest.fixture
def net():
    torch.manual_seed(1)
    return Net()


# ---------------------------------------------------------------------------------------------------------
# The module
# ---------------------------------------------------------------------------------------------------------


def test_importing_the_package_imports_nothing_heavy_and_every_name_is_there(child_environment, tmp_path):
    program = """
import sys
from types import SimpleNamespace
import robflat_bench as rb
assert not {"torch", "pydantic", "numpy", "rich"} & set(sys.modules), sorted(sys.modules)
assert set(dir(rb)) == set(rb.__all__)
rows, told = rb.list("measures"), rb.info("awp")
assert rows[0]["name"] and told["citation"] and repr(rows) and repr(told) and rows._repr_html_() and told._repr_html_()
rb.results("runs")
assert "torch" not in sys.modules
assert all(callable(getattr(rb, name)) for name in rb.__all__ if not name.isupper() and name != "__version__")
"""
    done = subprocess.run([sys.executable, "-c", program], env=child_environment(), cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'mesure'"):
        rb.mesure  # noqa: B018


def test_a_function_keeps_its_name_after_the_room_of_records_was_imported():
    import robflat_bench.records.store  # noqa: F401

    assert callable(rb.results)
    assert callable(rb.run)


# ---------------------------------------------------------------------------------------------------------
# run, load, results
# ---------------------------------------------------------------------------------------------------------


def test_a_run_from_python_is_the_commands(tiny, finished, tmp_path):
    made = rb.run("at", protocol=str(tiny), store=tmp_path, progress=False)
    assert made.key == finished.key == finished.record["key"][: len(finished.key)]
    assert made.folder.relative_to(tmp_path) == finished.folder.relative_to(finished.store)
    assert promised(made.record.model_dump(mode="json")) == promised(finished.record)
    assert (made.folder / "outcomes.npz").read_bytes() == (finished.folder / "outcomes.npz").read_bytes()


def test_an_interrupted_cell_resumes_where_it_stopped(tiny, finished, tmp_path, monkeypatch):
    def interrupted(*_):
        raise Interrupted

    for moment in ("epoch_ends", "stage_ends"):
        with monkeypatch.context() as patch:
            patch.setattr(progress.Progress, moment, interrupted)
            with pytest.raises(KeyboardInterrupt):
                rb.run("at", protocol=str(tiny), store=tmp_path)
    assert not list(tmp_path.rglob("record.json"))
    resumed = rb.run("at", protocol=str(tiny), store=tmp_path, progress=False)
    assert promised(resumed.record.model_dump(mode="json")) == promised(finished.record)


def test_settings_are_given_as_a_mapping_or_as_text(tiny, tmp_path):
    here = {"protocol": str(tiny), "store": tmp_path, "progress": False}
    changed = {"recipe.epochs": 1, "recipe.optimizer": "sgd(nesterov=false)"}
    one = rb.run("at", settings=changed, **here)
    assert rb.run("at", settings=["recipe.epochs=1", "recipe.optimizer=sgd(nesterov=false)"], **here).key == one.key
    assert one.record.spec.recipe.epochs == 1


@pytest.mark.parametrize("seed", [-1, 2**63, "1", 1.0, True, None])
def test_a_seed_that_is_none_is_refused_before_any_work(tiny, tmp_path, seed):
    with pytest.raises(UsageError, match="is no seed; give an integer"):
        rb.run("at", protocol=str(tiny), seed=seed, store=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_network_of_a_run_computes_the_outcomes_of_its_record(tiny, finished, registry):
    from robflat_bench.config.protocol import load
    from robflat_bench.data.splits import load_splits

    examples = load_splits(registry, load(registry, str(tiny)), None).examples("test", "cpu", torch.float32)
    for checkpoint in ("best", "last"):
        network, record = rb.load(finished.folder, checkpoint=checkpoint, protocol=str(tiny))
        assert not network.training
        with torch.no_grad():
            errors = network(examples.x).argmax(1) != examples.y
        assert float(errors.float().mean()) == pytest.approx(record.results[checkpoint].clean_error, abs=1e-6)


def test_a_run_in_a_folder_with_brackets_in_its_name_is_a_run(tiny, finished, tmp_path):
    store = shutil.copytree(finished.store, tmp_path / "runs (copy)")
    _, record = rb.load(store / finished.folder.relative_to(finished.store), protocol=str(tiny))
    assert record.key == finished.record["key"]


def test_results_are_tidy_rows_with_a_data_frame(finished):
    pandas = pytest.importorskip("pandas")
    rows = rb.results(finished.store)
    assert len({frozenset(row) for row in rows}) == 1
    frame = rows.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == len(rows)
    clean = frame.query("quantity == 'clean_error' and checkpoint == 'last' and split == 'test'")
    assert clean["value"].item() == finished.record["results"]["last"]["clean_error"]
    assert finished.record["key"][:8] in rows._repr_html_()
    exported = run_here("results", "export", "--store", finished.store, "--json").document
    assert exported == json.loads(json.dumps([*rows]))


def test_without_pandas_the_line_to_type_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="pip install pandas"):
        rb.list("methods").to_pandas()


def test_the_board_is_the_commands(tmp_path):
    entries = Path("records", "digits-linf")
    for method in ("at", "trades", "mart"):
        shutil.copytree(REPOSITORY / "leaderboard" / entries / method, tmp_path / entries / method)
    rows = rb.board("digits-linf", leaderboard=tmp_path)
    ranked = [row for row in rows if row["quantity"] == "robust_error" and row["checkpoint"] == "last"]
    (theirs,) = run_here(
        *("leaderboard", "show", "--protocol", "digits-linf", "--leaderboard", tmp_path),
        *("--store", tmp_path / "no-such-store", "--json"),
    ).document["boards"]
    assert len(ranked) == 3
    assert [row["method"] for row in ranked] == [row["label"] for row in theirs["rows"]]
    assert [row["rank"] for row in ranked] == [row["places"]["robust_error"]["rank"] for row in theirs["rows"]]
    assert ranked[0]["method"] in rows._repr_html_()


def test_the_columns_of_tables_are_those_that_their_functions_promise(finished, tiny):
    tables = {
        rb.results: rb.results(finished.store),
        rb.board: rb.board(str(tiny), store=finished.store, leaderboard="none"),
    }
    for function, rows in tables.items():
        promise = function.__doc__.partition("Rows\n")[2].partition("Raises")[0]
        without_explanations = re.sub(r"\([^()]*\)", "", promise).partition(". ")[0]
        assert [name.strip() for name in without_explanations.split(",")] == [*rows[0]]


def test_a_board_without_its_folder_says_what_to_give(tmp_path):
    with pytest.raises(UsageError, match="give leaderboard=DIR of a clone, or store=DIR"):
        rb.board(leaderboard=tmp_path / "none")


# ---------------------------------------------------------------------------------------------------------
# measure, attack, evaluate
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def natural(tmp_path_factory):
    """A protocol whose test images are the first ones of their pool, as a loader yields them."""
    text = tiny_protocol("natural", more=MORE)
    for split, start, count in (("train", 30, 60), ("heldout", 90, 20), ("test", 0, 30)):
        part = f'{split} = {{ pool = "train", start = {start}, stop = {start + count}, count = {count} }}'
        text = re.sub(rf"(?m)^{split} = .*", part, text, count=1)
    path = tmp_path_factory.mktemp("natural") / "natural.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def images(natural, registry):
    """The test images of `natural` and their labels."""
    from robflat_bench.config.protocol import load
    from robflat_bench.data.splits import load_splits

    examples = load_splits(registry, load(registry, str(natural)), None).examples("test", "cpu", torch.float32)
    assert torch.equal(examples.index, torch.arange(30))
    return examples.x, examples.y


MEASURES = (
    "average-case(draws=2, steps=2)",
    "worst-case(xi=0.03, steps=2, restarts=1)",
    "hessian-lambda-max",
    "path-norm",
)


@pytest.fixture
def one_thread_only(one_thread):
    """`measure` computes with this process's threads, `evaluate` with the protocol's."""


@pytest.mark.parametrize("normalize", [None, ((0.3,), (0.25,))])
def test_a_measure_of_a_loader_is_evaluates_bit_for_bit(net, natural, images, tmp_path, one_thread_only, normalize):
    told = rb.evaluate(
        net, protocol=str(natural), measures=MEASURES, normalize=normalize, store=tmp_path, progress=False
    )
    loader = DataLoader(TensorDataset(*images), batch_size=7)
    for text, theirs in told.measures.items():
        ours = rb.measure(net, loader, text, epsilon=0.2, normalize=normalize, progress=False)
        assert (ours.measure, ours.value, ours.standard_error) == (text, theirs.value, theirs.standard_error)
        assert (ours.n, ours.forward, ours.backward) == (theirs.n, theirs.forward, theirs.backward)
        assert float(ours) == theirs.value
    assert len(told.measures) == len(MEASURES)


def test_every_form_of_the_data_is_the_same_examples(net, images):
    dataset = TensorDataset(*images)
    forms = [
        images,
        [*images],
        (images[0].numpy(), images[1].numpy()),
        (*images, torch.arange(30)),
        dataset,
        DataLoader(dataset, batch_size=4),
        [*dataset],
        _Unending(dataset),
    ]
    found = {rb.measure(net, form, "margin", epsilon=0.1, examples=20, progress=False).value for form in forms}
    assert len(found) == 1


class _Unending(torch.utils.data.IterableDataset):
    """A stream that knows no end."""

    def __init__(self, dataset) -> None:
        self.dataset = dataset

    def __iter__(self):
        yield from self.dataset
        raise AssertionError("more was read than was asked for")


def test_an_attack_is_evaluates_and_stays_in_ball_and_box(net, natural, images, tmp_path):
    x, y = images
    for text in ("pgd(steps=3)", "fgsm", "pgd(steps=2, restarts=2)"):
        x_adv = rb.attack(net, x, y, text, epsilon=0.2, progress=False)
        assert x_adv.dtype == x.dtype
        assert 0 < float((x_adv - x).abs().max()) <= 0.2 + 1e-6
        assert float(x_adv.min()) >= 0
        assert float(x_adv.max()) <= 1
        told = rb.evaluate(net, protocol=str(natural), attacks=[text], store=tmp_path, progress=False)
        (result,) = told.record.results.values()
        with torch.no_grad():
            wrong = (net.eval()(x_adv).argmax(1) != y) | (net(x).argmax(1) != y)
        ((_, pair),) = result.robust_error.items()
        assert pair.test == pytest.approx(float(wrong.double().mean()), abs=1e-9)


def test_an_epsilon_may_be_a_fraction_and_float64_images_are_attacked_in_float64(net, images):
    x, y = images
    one = rb.attack(net, x, y, "pgd(steps=1)", epsilon="8/255", progress=False)
    assert torch.equal(one, rb.attack(net, x, y, "pgd(steps=1)", epsilon=8 / 255, progress=False))
    assert rb.attack(net, x.double(), y, "pgd(steps=1)", epsilon=0.1, progress=False).dtype == torch.float64


def test_evaluate_on_data_of_ones_own_reads_no_more_than_the_protocol_sets(net, natural, images, tmp_path):
    here = {"protocol": str(natural), "store": tmp_path, "progress": False}
    own = rb.evaluate(net, data=images, **here)
    theirs = rb.evaluate(net, **here)
    (one,), (other,) = own.record.results.values(), theirs.record.results.values()
    assert one.robust_error.keys() == other.robust_error.keys()
    for attack, pair in one.robust_error.items():
        assert pair.test == other.robust_error[attack].test
        assert pair.train is None
    assert one.measures.keys() == other.measures.keys()
    assert [found.value for found in one.measures.values()] == [found.value for found in other.measures.values()]
    assert not own.record.dataset.canonical
    assert own.record.dataset.name == "own"
    fewer = rb.evaluate(net, data=DataLoader(TensorDataset(*images), 4), examples=10, **here)
    assert {found.n for found in fewer.measures.values()} == {10}


def test_a_network_of_another_number_of_classes_is_read_by_its_logits(images):
    x, y = images
    for classes in (3, 100):
        net = Net(classes=classes)
        found = rb.measure(net, (x, y % classes), "margin", epsilon=0.1, progress=False)
        assert found.value is not None
    with pytest.raises(UsageError, match=r"not logits \(30, 10\)"):
        rb.measure(Net(classes=3), images, "margin", epsilon=0.1, progress=False)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ((torch.rand(4, 8, 8), torch.zeros(4).long()), r"x\[:, None\] adds a channel"),
        ((torch.rand(4, 8, 8, 1), torch.zeros(4).long()), r"x.permute\(0, 3, 1, 2\)"),
        ((torch.randint(0, 256, (4, 1, 8, 8)).byte(), torch.zeros(4).long()), "x / 255"),
        ((torch.rand(4, 1, 8, 8) * 255, torch.zeros(4).long()), r"normalize=\(mean, std\)"),
        ((torch.randn(4, 1, 8, 8), torch.zeros(4).long()), r"normalize=\(mean, std\)"),
        ((torch.full((4, 1, 8, 8), torch.nan), torch.zeros(4).long()), r"images in \[0,1\]"),
        ((torch.rand(4, 1, 8, 8), torch.zeros(3).long()), "one integer for each of the 4 images"),
        ((torch.rand(4, 1, 8, 8), torch.zeros(4)), "one integer for each of the 4 images"),
        ((torch.rand(4, 1, 8, 8), torch.zeros(4, 10).long()), "one integer for each of the 4 images"),
        ((torch.rand(4, 1, 8, 8), torch.full((4,), -1)), "give 0, 1, ..., K-1"),
        ((torch.rand(0, 1, 8, 8), torch.zeros(0).long()), "shape"),
        ((torch.rand(4, 1, 8, 8),), "have 1 part"),
        (torch.rand(4, 1, 8, 8), "give \\(images, labels\\)|pairs"),
        ([{"img": 1, "label": 2}] * 4, r"row\['img'\]"),
        ([(object(), 1)] * 4, "ToTensor"),
        ((torch.rand(4, 1, 8, 8), torch.zeros(4).long(), torch.arange(3)), "one integer for each image"),
        (3, "int holds no examples"),
        ("nowhere", "str holds no examples"),
        (TensorDataset(torch.rand(4, 1, 8, 8)), "pairs"),
    ],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_data_that_are_no_examples_are_refused_with_what_to_give(net, data, says):
    with pytest.raises(UsageError, match=says):
        rb.measure(net, data, "margin", epsilon=0.1, progress=False)


def test_a_measure_without_a_value_has_a_reason(net, images):
    found = rb.measure(net, images, "distance-from-init", epsilon=0.1, progress=False)
    assert found.value is None
    assert found.reason
    assert found.reason in " ".join(repr(found).split())
    with pytest.raises(ValueError, match="has no value"):
        float(found)


def test_adversarial_measures_ask_for_an_epsilon_and_others_do_not(net, images):
    with pytest.raises(UsageError, match=r"write 8 / 255"):
        rb.measure(net, images, "average-case", epsilon=8, progress=False)
    with pytest.raises(UsageError, match="give epsilon="):
        rb.measure(net, images, "average-case", progress=False)
    assert rb.measure(net, images, "path-norm", progress=False).value


def test_objects_show_their_numbers_and_escape_what_is_hostile(net, natural, images, tmp_path):
    class Hostile(Net):
        pass

    Hostile.__name__ = "<script>alert(1)</script>\x1b[2J"
    hostile = Hostile()
    told = rb.evaluate(hostile, protocol=str(natural), store=tmp_path, attacks=["fgsm"], progress=False)
    assert "<script>" not in told._repr_html_()
    assert "\x1b" not in repr(told)
    assert "robust error" in repr(told)
    assert "robust error" in told._repr_html_()
    assert repr(told.rows)


def test_a_run_is_evaluated_on_data_of_ones_own_outside_its_folder(finished_copy, images):
    x, y = images
    before = sorted(finished_copy.folder.rglob("*"))
    here = {"protocol": "digits-linf", "store": finished_copy.store, "attacks": ["fgsm"], "progress": False}
    with pytest.raises(UsageError, match="pass the original file"):
        rb.evaluate(finished_copy.key, data=(x, y), **here)
    here["protocol"] = str(finished_copy.store.parent / "tiny.toml")
    (finished_copy.store.parent / "tiny.toml").write_text(TINY)
    told = rb.evaluate(finished_copy.key, data=(x[:20], y[:20]), **here)
    assert told.record.dataset.name == "own"
    assert "external" in told.path.parts
    assert sorted(finished_copy.folder.rglob("*")) == before
    network, _ = rb.load(finished_copy.key, store=finished_copy.store, protocol=here["protocol"])
    with torch.no_grad():
        wrong = float((network(x[:20]).argmax(1) != y[:20]).double().mean())
    ((result),) = told.record.results.values()
    assert result.clean_error == pytest.approx(wrong, abs=1e-9)


@pytest.mark.parametrize("normalize", [0.5, (0.5,), ("a", "b"), (0.5, 0.5, 0.5)])
def test_a_normalisation_that_is_no_pair_is_refused_with_what_to_give(net, images, normalize):
    for call in (rb.measure, rb.evaluate):
        given = {"epsilon": 0.1} if call is rb.measure else {}
        with pytest.raises(UsageError, match=r"is no pair \(mean, std\); give"):
            call(net, data=images, normalize=normalize, progress=False, **given)


def test_one_attack_and_one_measure_may_be_given_as_text(net, images, tmp_path):
    here = {"data": images, "store": tmp_path, "progress": False}
    listed = rb.evaluate(net, attacks=["fgsm"], measures=["margin"], **here)
    assert rb.evaluate(net, attacks="fgsm", measures="margin", **here).record.key == listed.record.key


def test_a_run_knows_its_protocol_and_a_key_asks_for_its_file(tiny, tmp_path):
    changed = {"fixed.threat.epsilon": 0.1, "recipe.epochs": 1}
    made = rb.run("at", protocol=str(tiny), settings=changed, store=tmp_path, progress=False)
    network, record = rb.load(made)
    assert record == made.record
    with pytest.raises(UsageError, match=r"no installed protocol; give its file and settings, protocol='FILE.toml'"):
        rb.load(made.key, store=tmp_path)
    again, _ = rb.load(made.key, store=tmp_path, protocol=str(tiny), settings=changed)
    assert all(torch.equal(one, other) for one, other in zip(network.parameters(), again.parameters(), strict=True))


# ---------------------------------------------------------------------------------------------------------
# Mistakes
# ---------------------------------------------------------------------------------------------------------


class Keyword(Net):
    def forward(self, *, pixel_values):
        return super().forward(pixel_values)


class Output(Net):
    def forward(self, x):
        return SimpleNamespace(logits=super().forward(x))


class Probabilities(Net):
    def forward(self, x):
        return super().forward(x).softmax(1)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Net, "the model is a type; give an nn.Module"),
        (lambda x: x, "the model is a function; give an nn.Module"),
        (None, "the model is a NoneType"),
        ("resnet18", "the name 'resnet18'; give an nn.Module, or use rb.evaluate"),
        (Keyword(), "takes 1 positional argument"),
        (Output(), r"Output.forward\(self, x\).logits`"),
        (Probabilities(), "returns probabilities: .*return the scores before `softmax`"),
        (Net().to("meta"), "'conv1.weight' is on the device meta"),
    ],
)
def test_what_is_no_network_is_refused_in_one_line(model, says, images):
    with pytest.raises(UsageError, match=says) as told:
        rb.measure(model, images, "average-case", epsilon=0.1, progress=False)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"measure": None}, "measure=None is no value of measure; give a text"),
        ({"measure": ["average-case"]}, "is no value of measure; give a text"),
        ({"examples": 2.5}, "examples=2.5 is no value of examples; give an integer"),
        ({"examples": "20"}, "examples='20' is no value of examples"),
        ({"normalize": 0.5}, r"normalize=0.5 is no pair \(mean, std\)"),
        ({"normalize": ([0.5],)}, r"is no pair \(mean, std\)"),
        ({"normalize": ({"r": 0.5}, {"r": 0.5})}, r"is no pair \(mean, std\)"),
        ({"normalize": "0.5,0.5"}, r"is no pair \(mean, std\)"),
        ({"device": "gpu"}, "device 'gpu' is none of auto, cpu, cuda"),
        ({"device": "cuda:0"}, "CUDA_VISIBLE_DEVICES"),
        ({"device": None}, "device 'None' is none of auto, cpu, cuda"),
    ],
)
def test_an_argument_of_another_type_is_refused_in_one_line(net, images, arguments, says):
    with pytest.raises(UsageError, match=says) as told:
        rb.measure(net, images, **({"measure": "average-case", "epsilon": 0.1, "progress": False} | arguments))
    assert "\n" not in str(told.value)


def test_labels_that_begin_at_one_are_named_as_the_mistake(net, images):
    x, y = images
    with pytest.raises(UsageError, match=r"the labels go up to 10: classes are 0, 1, \.\.\., 9"):
        rb.measure(net, (x, y - y.max() + 10), "average-case", epsilon=0.1, progress=False)


def test_adversarial_images_of_arrays_are_those_of_tensors(net, images):
    x, y = images
    found = [
        rb.attack(net, *pair, "pgd(steps=2)", epsilon=0.1, progress=False)
        for pair in ((x, y), (x.numpy(), y.numpy()), (x, y.tolist()))
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


class Quiet(Net):
    """A network whose `train` returns nothing, as networks that freeze their norms are often written."""

    def train(self, mode=True):
        super().train(mode)


def test_a_network_whose_train_returns_nothing_is_measured(net, images):
    quiet = Quiet()
    quiet.load_state_dict(net.state_dict())
    values = [
        rb.measure(each, images, "input-gradient-norm", epsilon=0.1, progress=False).value for each in (net, quiet)
    ]
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"attacks": [3]}, "3 is no text; write name"),
        ({"attacks": 3}, "attacks=3 is no value of attacks; give a list of texts"),
        ({"attacks": None}, "give a list of texts"),
        ({"examples": 0}, "ask for 2 at least"),
        ({"examples": "3"}, "examples='3' is no value"),
        ({"train": 2.5}, "train=2.5 is no value"),
        ({"classes": 10.0}, "classes=10.0 is no value of classes; give an integer"),
        ({"classes": True}, "classes=True is no value"),
        ({"protocol": None}, "protocol=None is no value of protocol"),
        ({"settings": 3}, "give a mapping such as"),
        ({"store": None}, "give a path"),
        ({"progress": "no"}, "give True or False"),
        ({"network": "net.py:Net"}, "--model says how to read a file of weights, and 'Net' is none"),
        ({"backbone": "resnet18"}, "--backbone says how to read"),
        ({"arguments": {"k": 1}}, "--model-args|--model"),
    ],
)
def test_an_argument_that_would_be_ignored_or_misread_is_refused(net, tmp_path, arguments, says):
    with pytest.raises(UsageError, match=says):
        rb.evaluate(net, **({"attacks": ["fgsm"], "store": tmp_path, "examples": 20, "progress": False} | arguments))
    assert not [*tmp_path.iterdir()]


def test_training_examples_of_ones_own_data_are_refused(net, images, tmp_path):
    with pytest.raises(UsageError, match="there are 0 train examples; leave --train out"):
        rb.evaluate(net, data=images, attacks=["fgsm"], train=5, store=tmp_path, progress=False)


def test_a_name_that_is_no_text_is_refused():
    with pytest.raises(UsageError, match="name=None is no value of name; give a text"):
        rb.info(None)


def test_one_attack_is_a_list_of_one(net, images, tmp_path):
    keys = {
        rb.evaluate(net, data=images, attacks=attacks, store=tmp_path, progress=False).record.key
        for attacks in ("fgsm", ["fgsm"])
    }
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"data": (1, 2)}, "data is a tuple; a run trains on its protocol's data"),
        ({"fresh": "no"}, "fresh='no' is no value of fresh; give True or False"),
        ({"keep_every": -1}, "keep_every=-1: give a number of epochs"),
        ({"method": None}, "method=None is no value of method; give a text"),
    ],
)
def test_a_run_that_would_ignore_or_misread_an_argument_is_refused(tmp_path, arguments, says):
    with pytest.raises(UsageError, match=says):
        rb.run(**({"method": "at", "store": tmp_path, "progress": False} | arguments))


def test_the_radius_and_the_data_of_an_evaluation_are_shown(net, images, tmp_path):
    here = {"data": images, "attacks": ["fgsm"], "store": tmp_path, "progress": False}
    shown = repr(rb.evaluate(net, settings={"fixed.threat.epsilon": 8 / 255}, **here))
    assert "l-inf, epsilon 8/255" in shown
    assert "data: 30 images 1x8x8 given from Python, not the canonical copy of a data set" in shown


def test_settings_of_training_are_refused_where_nothing_is_trained(net, images, tiny, tmp_path):
    here = {"data": images, "store": tmp_path, "progress": False}
    with pytest.raises(UsageError, match=r"evaluate trains nothing; leave it out.*fixed\.threat\.epsilon"):
        rb.evaluate(net, settings={"recipe.epsilon": 0.1}, **here)
    made = rb.run("at", protocol=str(tiny), settings={"recipe.epochs": 1}, store=tmp_path, progress=False)
    assert rb.evaluate(made, attacks=["fgsm"], store=tmp_path, progress=False).record.results


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("epsilon=0.1", "--set recipe.epsilon=0.1 for training, --set fixed.threat.epsilon=0.1 for evaluation"),
        ("threat.epsilon=0.1", "; --set fixed.threat.epsilon=0.1 for evaluation"),
        ("epochs=3", "; --set recipe.epochs=3 for training"),
    ],
)
def test_a_setting_without_its_table_names_the_keys_that_may_be_meant(net, images, tmp_path, setting, says):
    with pytest.raises(UsageError, match=re.escape(says)):
        rb.evaluate(net, data=images, settings=[setting], store=tmp_path, progress=False)


def test_data_of_ones_own_stay_under_the_protocol_of_a_run(registry, images, tmp_path):
    from robflat_bench.config.protocol import load
    from robflat_bench.data.own import own_splits
    from robflat_bench.front.sessions import open_session

    session = open_session(registry, data=own_splits(images), store=tmp_path)
    under = session.under(load(registry, "cifar10-mini"))
    assert torch.equal(under.examples("test").x, images[0])


def test_settings_that_a_run_would_ignore_are_refused(finished, tiny):
    here = {"protocol": str(tiny), "store": finished.store, "attacks": ["fgsm"], "progress": False}
    with pytest.raises(UsageError, match=r"evaluated under its own protocol; leave out --set fixed.*last\.safetensors"):
        rb.evaluate(finished.key, settings={"fixed.threat.epsilon": 0.1}, **here)
