"""Transfer of adversarial images: against a naive matrix, the white-box diagonal, and the figure of its document."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from helpers.commands import run_here

from robflat_bench.config.protocol import load
from robflat_bench.core import Examples, Observer, RunFailed, UsageError
from robflat_bench.evaluation.options import ModelOptions
from robflat_bench.evaluation.session import Session
from robflat_bench.experiments import choose, figures, transfer, work
from robflat_bench.experiments.trained_model import find_models, open_model
from robflat_bench.records.store import Store
from robflat_bench.registry.components import resolve

TRANSFER = "transfer(attack='pgd(steps=3)', examples=20)"


@pytest.fixture(scope="module")
def pair(registry, tiny, finished, tmp_path_factory, one_thread):
    """The last weights of a run and its initial ones, in a store of their own."""
    session = Session(registry, load(registry, str(tiny)), None, Store(tmp_path_factory.mktemp("transfer")), "cpu")
    runs = str(finished.folder)
    found = [find_models(session, [runs], "chosen", ModelOptions(checkpoint=c))[0] for c in ("last", "initial")]
    return [open_model(session, model) for model in found]


def drawn(pair, text=TRANSFER):
    session = pair[0].session
    return work.run_experiment(choose(text), pair, session.store, Observer())


def naive(pair):
    """errors[i][j], one image at a time."""
    given = pair[0].session.examples("test", 20)
    attack = resolve(pair[0].registry, "attack", "pgd(steps=3)").build(pair[0].threat)
    made = [attack.perturb(model.load(), given, pair[0].fixed.seed) for model in pair]
    with torch.no_grad():
        return [
            [
                np.mean([int(other.load()(x[k : k + 1]).argmax()) != int(given.y[k]) for k in range(20)])
                for other in pair
            ]
            for x in made
        ]


def test_the_matrix_is_that_of_a_loop_over_pairs_and_images(pair):
    document = drawn(pair)
    expected = naive(pair)
    assert [[pair.value for pair in values.pairs] for values in document.values] == expected
    assert expected[0] != expected[1], "rows can be told from columns"
    errors = np.array(expected)
    for values, row in zip(document.values, errors, strict=True):
        for found, p in zip(values.pairs, row, strict=True):
            assert found.standard_error == pytest.approx((p * (1 - p) / 19) ** 0.5)
            assert found.n == 20
    assert [[pair.white_box for pair in values.pairs] for values in document.values] == [[True, False], [False, True]]


def test_the_table_has_one_row_for_each_pair(pair):
    columns, rows = drawn(pair).table()
    assert columns == ["model", "seed", "checkpoint", "seen by", "robust error", "standard error", "n"]
    assert [(row[2], row[3]) for row in rows] == [
        (made, f"{rows[0][0]}, {seen}") for made in ("last", "initial") for seen in ("last", "initial")
    ]
    assert [row[4] for row in rows] == [error for row in naive(pair) for error in row]


def test_the_diagonal_is_the_robust_error_of_the_runs_record(pair, finished):
    document = drawn(pair, "transfer")
    record = json.loads((finished.folder / "record.json").read_text())
    attack = pair[0].fixed.attacks[0].attack
    assert document.values[0].pairs[0].value == record["results"]["last"]["robust_error"][attack]["test"]


def test_another_column_is_another_reading(pair):
    document = drawn(pair)
    reversed_ = drawn(pair[::-1])
    assert [pair.on for pair in reversed_.values[0].pairs] == [pair.on for pair in document.values[0].pairs][::-1]
    assert reversed_.values[1].pairs[::-1] == document.values[0].pairs


def test_one_model_and_one_model_twice_are_refused(pair):
    with pytest.raises(UsageError, match="one model is named, but the experiment compares models; name two"):
        drawn(pair[:1])
    with pytest.raises(UsageError, match="is named twice"):
        drawn([pair[0], pair[0]])
    with pytest.raises(UsageError, match="there are"):
        drawn(pair, "transfer(examples=100000)")


def test_the_figure_shows_every_pair_and_refuses_another_matrix(pair):
    document = drawn(pair)
    text = figures.figure_files(document)["svg"].decode()
    for values in document.values:
        for found in values.pairs:
            assert f"<!-- {100 * found.value:.1f} -->" in text
    assert "<!-- seen by -->" in text
    raw = document.model_dump(mode="json")
    torn = copy.deepcopy(raw)
    torn["readings"][1]["values"]["pairs"] = torn["readings"][1]["values"]["pairs"][::-1]
    with pytest.raises(ValueError, match="not of the same models"):
        figures.figure_files(type(document).model_validate(torn))


def test_an_image_that_is_wrong_without_an_attack_is_wrong():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])[:, :, None, None]
    given = Examples(x, torch.tensor([0, 0, 0, 0]), torch.arange(4))
    x_adv = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])[:, :, None, None]
    assert transfer.errors(torch.nn.Flatten(), x_adv, given).tolist() == [0, 1, 1, 1]


def test_logits_that_are_not_finite_are_no_error_rate(pair):
    given = pair[0].session.examples("test", 4)
    with pytest.raises(RunFailed, match="NaN or infinite"):
        transfer.errors(lambda x: x.flatten(1)[:, :10] * float("nan"), given.x, given)


def test_the_command_draws_the_matrix_of_two_runs(finished_copy, tiny, tmp_path):
    done = run_here("run", "--method", "at", "--protocol", tiny, "--store", finished_copy.store, "--seed", "2")
    assert done.code == 0, done.err
    (second,) = finished_copy.store.glob("tiny/at/seed-2-*")
    models = (str(finished_copy.folder), str(second))
    words = ("--protocol", tiny, "--store", finished_copy.store, "--out", tmp_path / "figure", "--json")
    done = run_here("experiment", "transfer(examples=10)", *models, *words)
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "figure" / "transfer.json").read_text())
    names = [pair["on"] for pair in found["readings"][0]["values"]["pairs"]]
    assert names == ["at, seed 1", "at, seed 2"]
    assert (tmp_path / "figure" / "transfer.png").stat().st_size > 1_000
    assert run_here("experiment", "redraw", tmp_path / "figure" / "transfer.json").code == 0
