"""Muon against its closed form on singular values, torch's Muon and AdamW, and a naive recursion, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from robflat_bench.config.recipe import Recipe
from robflat_bench.core.randomness import generator
from robflat_bench.registry.components import resolve
from robflat_bench.testing.fixtures import built_ins, network
from robflat_bench.testing.trial_training import RECIPE, trained
from robflat_bench.training.muon import COEFFICIENTS, Muon, orthogonalized, outputs
from robflat_bench.training.schedule import build_optimizer

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = [(4, 7), (7, 4), (5, 5), (1, 6), (6, 3, 2, 2)]
SETTINGS = {"lr": 0.1, "outputs": [], "weight_decay": 0.02, "momentum": 0.9, "nesterov": True, "betas": (0.8, 0.95)}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator("muon", seed), dtype=torch.float64)


def naive_orthogonalized(update: Tensor) -> Tensor:
    """The polynomial a s + b s^3 + c s^5 of each singular value, five times."""
    left, singular, right = torch.linalg.svd(update, full_matrices=False)
    a, b, c = 3.4445, -4.7750, 2.0315
    values = []
    for s in (singular / math.sqrt(float((singular**2).sum()))).tolist():
        for _ in range(5):
            s = a * s + b * s**3 + c * s**5
        values.append(s)
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right


@pytest.mark.parametrize("shape", SHAPES[:4])
def test_orthogonalisation_acts_on_singular_values(shape):
    matrix = drawn(*shape)
    assert torch.allclose(orthogonalized(matrix), naive_orthogonalized(matrix), rtol=0, atol=1e-12)
    singular = torch.linalg.svdvals(orthogonalized(matrix))
    assert 0.6 < float(singular.min()) <= float(singular.max()) < 1.3


def test_orthogonalisation_of_zero_is_zero_and_knows_no_scale():
    assert not orthogonalized(torch.zeros(3, 4)).any()
    matrix = drawn(3, 4)
    assert torch.allclose(orthogonalized(1e-9 * matrix), orthogonalized(matrix), rtol=0, atol=1e-12)


def test_autocast_does_not_change_a_step():
    matrix = drawn(3, 4).float()
    with torch.autocast("cpu", torch.bfloat16):
        reduced = orthogonalized(matrix)
    assert torch.equal(reduced, orthogonalized(matrix))


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_matrices_follow_the_recursion(shape, nesterov):
    parameter = nn.Parameter(drawn(*shape))
    optimizer = Muon([parameter], **{**SETTINGS, "nesterov": nesterov})
    flat, average = parameter.detach().clone().reshape(shape[0], -1), 0.0
    for update in range(3):
        parameter.grad = drawn(*shape, seed=update + 1)
        gradient = parameter.grad.reshape(shape[0], -1).clone()
        optimizer.step()
        average = 0.9 * average + 0.1 * gradient
        moved = 0.1 * gradient + 0.9 * average if nesterov else average
        flat = (1 - 0.1 * 0.02) * flat
        flat = flat - 0.1 * 0.2 * math.sqrt(max(flat.shape)) * naive_orthogonalized(moved)
        assert torch.allclose(parameter.detach().reshape(shape[0], -1), flat, rtol=0, atol=1e-11)
        assert torch.equal(parameter.grad.reshape(shape[0], -1), gradient), "the gradient itself stays"


def test_matrices_move_as_torchs_muon_moves_them_up_to_bfloat16():
    ours, theirs = nn.Parameter(drawn(6, 9)), nn.Parameter(drawn(6, 9))
    one = Muon([ours], **SETTINGS)
    two = torch.optim.Muon([theirs], 0.1, 0.02, 0.9, nesterov=True, adjust_lr_fn="match_rms_adamw")
    for update in range(3):
        ours.grad = drawn(6, 9, seed=update + 1)
        theirs.grad = ours.grad.clone()
        before = ours.detach().clone()
        one.step()
        two.step()
    step = float((ours - before).detach().norm())
    assert float((ours - theirs).detach().norm()) < 0.05 * step


@pytest.mark.parametrize("shape", [(5,), (4, 3)])
def test_vectors_and_outputs_move_as_adamw_moves_them(shape):
    """The second weight is an output; the third receives no gradient."""
    ours, theirs, idle = nn.Parameter(drawn(*shape)), nn.Parameter(drawn(*shape)), nn.Parameter(drawn(2, 2))
    one = Muon([ours, idle], **{**SETTINGS, "outputs": [ours]})
    two = torch.optim.AdamW([theirs], 0.1, (0.8, 0.95), weight_decay=0.02)
    for update in range(3):
        ours.grad = drawn(*shape, seed=update + 1)
        theirs.grad = ours.grad.clone()
        one.step()
        two.step()
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    assert torch.equal(idle, drawn(2, 2))


def test_a_recipe_gives_the_last_linear_layer_to_adamw_and_all_convolutions_to_muon():
    recipe = Recipe(**{**RECIPE.model_dump(), "optimizer": "muon", "weight_decay": 0.0, "learning_rate": 0.5})
    model = network()
    optimizer = build_optimizer(recipe, model.parameters(), outputs(model))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator(name))
    optimizer.step()
    kinds = {}
    for name, parameter in model.named_parameters():
        move = (before[name] - parameter.detach()) / 0.5
        signs = torch.allclose(move, parameter.grad.sign(), rtol=0, atol=1e-5)  # AdamW's first step
        kinds[name] = "adamw" if signs else "muon"
    convolutions = {name for name, parameter in model.named_parameters() if parameter.ndim == 4}
    assert convolutions
    assert {name for name, kind in kinds.items() if kind == "muon"} == convolutions
    assert COEFFICIENTS[0] == 3.4445


@pytest.mark.parametrize("method", ["at", "lbgat"])
def test_interrupted_training_with_muon_ends_with_the_same_weights(method):
    recipe = RECIPE.model_copy(update={"optimizer": "muon(momentum=0.9)", "learning_rate": 0.01})
    component = resolve(built_ins(), "method", method)
    whole, resumed = trained(component, recipe=recipe), trained(component, recipe=recipe, stop_at=5)
    for name, tensor in whole.weights["last"].items():
        assert torch.equal(tensor, resumed.weights["last"][name]), name
    other = trained(component, recipe=recipe.model_copy(update={"optimizer": "muon(momentum=0.8)"}))
    assert not all(torch.equal(tensor, other.weights["last"][name]) for name, tensor in whole.weights["last"].items())
