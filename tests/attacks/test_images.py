"""Adversarial images of a file: as they are in it, checked for ball and box, named by content, refused before work."""

from __future__ import annotations

import hashlib
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from robflat_bench.attacks import images
from robflat_bench.attacks.images import FILES, excess
from robflat_bench.config.protocol import load
from robflat_bench.core import Examples, Threat, UsageError
from robflat_bench.evaluation.options import ModelOptions
from robflat_bench.evaluation.plan import choose_plan
from robflat_bench.evaluation.session import Session
from robflat_bench.experiments.trained_model import find_models, open_model
from robflat_bench.records.store import Store, read_outcomes
from robflat_bench.registry.components import resolve
from robflat_bench.runs.evaluation import evaluate_model
from robflat_bench.testing import CHECKS
from robflat_bench.testing.evaluated import STRONG
from robflat_bench.testing.expectations import Skipped
from robflat_bench.testing.trial_training import trained_world

THREAT = Threat(epsilon=8 / 255)


def examples(n=4, channels=3, size=6, seed=0) -> Examples:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, channels, size, size), generator=draws).float() / 255
    return Examples(x, torch.zeros(n, dtype=torch.int64), torch.tensor([10 * k + 3 for k in range(n)]))


def near(given: Examples, radius: float, seed=1) -> torch.Tensor:
    """Images at that distance in every pixel where the box allows it."""
    signs = torch.randint(0, 2, given.x.shape, generator=torch.Generator().manual_seed(seed)).float() * 2 - 1
    return (given.x + radius * signs).clamp(0, 1)


def attack(registry, tmp_path, threat=THREAT, **arrays):
    np.savez(tmp_path / "adv.npz", **arrays)
    return resolve(registry, "attack", f'images(file="{tmp_path}/adv.npz")').build(threat)


def made(found, given: Examples) -> torch.Tensor:
    return found.perturb(nn.Identity(), given, 0)


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_each_example_gets_the_image_of_its_position(registry, tmp_path, order, kind):
    given = examples()
    x_adv = near(given, 8 / 255)
    shuffled, more = torch.tensor([2, 0, 3, 1]), torch.rand(1, 3, 6, 6)
    x = torch.cat([x_adv[shuffled], more]).numpy().astype(kind)
    index = np.append(given.index[shuffled].numpy(), 999)
    found = attack(registry, tmp_path, x=x if order == "NCHW" else x.transpose(0, 2, 3, 1), index=index)
    found.admit(given)
    assert torch.equal(made(found, given), x_adv)
    few = given[torch.tensor([3, 1])]
    assert torch.equal(made(found, few), x_adv[[3, 1]])


def test_uint8_levels_are_exact_and_eight_of_them_lie_in_a_ball_of_eight(registry, tmp_path):
    given = examples()
    levels = (near(given, 8 / 255) * 255).round().to(torch.uint8)
    found = attack(registry, tmp_path, x=levels.permute(0, 2, 3, 1).numpy(), index=given.index.numpy())
    assert torch.equal(made(found, given), levels.float() / 255)
    smaller = attack(registry, tmp_path, Threat(7.65 / 255), x=levels.numpy(), index=given.index.numpy())
    with pytest.raises(UsageError, match=r"4 of 4 images lie outside the linf ball of radius 0\.03,"):
        smaller.admit(given)


@pytest.mark.parametrize(("beyond", "refused"), [(0.0, False), (0.9e-6, False), (1.2e-6, True), (1e-3, True)])
def test_the_tolerance_of_the_ball_is_a_millionth(registry, tmp_path, beyond, refused):
    given = examples()
    given = Examples(given.x.double() * 0.5 + 0.25, given.y, given.index)  # the box is far away
    x = given.x.clone()
    x[2, 1, 4, 4] += THREAT.epsilon + beyond
    found = attack(registry, tmp_path, x=x.numpy(), index=given.index.numpy())
    if not refused:
        found.admit(given)
        return
    with pytest.raises(UsageError, match=r"adv.npz: 1 of 4 images lie outside .*that of position 23 by .*project"):
        found.admit(given)


def test_the_excess_is_that_of_a_loop_over_pixels():
    given = examples()
    x_adv = near(given, 0.1) * torch.rand(given.x.shape, generator=torch.Generator().manual_seed(3))
    pairs = zip(x_adv.double().flatten(1).tolist(), given.x.double().flatten(1).tolist(), strict=True)
    naive = [max(abs(a - b) for a, b in zip(one, other, strict=True)) - THREAT.epsilon for one, other in pairs]
    assert torch.allclose(
        excess(x_adv.double(), given.x.double(), THREAT), torch.tensor(naive, dtype=torch.float64), atol=1e-12
    )


G = examples()
X, INDEX = G.x.numpy(), G.index.numpy()
HOSTILE = {
    "no x": ({"index": INDEX}, "has no array 'x'"),
    "no index": ({"x": X}, "has no array 'index'"),
    "one missing": (
        {"x": X[:3], "index": INDEX[:3]},
        "no image of 1 of the 4 .*position 33;.*--examples 3",
    ),
    "first missing": (
        {"x": X[1:], "index": INDEX[1:]},
        "no image of 1 of the 4 .*position 3; add them",
    ),
    "twice": ({"x": X, "index": np.array([3, 3, 13, 23])}, "each position once"),
    "float index": ({"x": X, "index": INDEX / 1.0}, "index is float64"),
    "too few": ({"x": X, "index": INDEX[:3]}, "one integer for each of the 4"),
    "half precision": ({"x": X.astype(np.float16), "index": INDEX}, "x is float16"),
    "levels as floats": ({"x": X * 255, "index": INDEX}, "pixels from 0 to 255"),
    "below the box": ({"x": X - 2e-6, "index": INDEX}, "pixels from -2e-06"),
    "NaN": ({"x": np.where(np.arange(6) == 2, np.nan, X), "index": INDEX}, "pixels from nan"),
    "flat": ({"x": X.reshape(4, -1), "index": INDEX}, "x is float32.4, 108."),
    "another size": ({"x": X[..., :5, :5], "index": INDEX}, r"has images \[3, 5, 5\], the data \[6, 6, 3\]"),
    "empty": ({"x": X[:0], "index": INDEX[:0]}, "x is float32.0,"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_wrong_files_are_refused(registry, tmp_path, case):
    arrays, problem = HOSTILE[case]
    with pytest.raises(UsageError, match=problem) as caught:
        attack(registry, tmp_path, **arrays).admit(G)
    assert "\n" not in str(caught.value)


def test_pickled_damaged_and_unpacked_files_are_refused(registry, tmp_path, monkeypatch):
    np.savez(tmp_path / "adv.npz", x=np.array([{}], dtype=object), index=INDEX)
    text = f'images(file="{tmp_path}/adv.npz")'
    with pytest.raises(UsageError, match=r"no \.npz file of arrays"):
        resolve(registry, "attack", text).build(THREAT).admit(G)
    (tmp_path / "adv.npz").write_bytes(b"no zip")
    with pytest.raises(UsageError, match=r"no \.npz file of arrays"):
        resolve(registry, "attack", text).build(THREAT).admit(G)
    np.savez_compressed(tmp_path / "adv.npz", x=np.zeros((100, 6, 6, 3)), index=np.arange(100))
    monkeypatch.setattr(images, "MAX_BYTES", 20_000)
    with pytest.raises(UsageError, match="unpacks to more than 20000 bytes"):
        resolve(registry, "attack", text).build(THREAT).admit(G)


# ---------------------------------------------------------------------------------------------------------
# Its name
# ---------------------------------------------------------------------------------------------------------


def test_the_attack_is_named_by_content_and_not_by_path(registry, tmp_path):
    np.savez(tmp_path / "a.npz", x=X, index=INDEX)
    shutil.copy(tmp_path / "a.npz", tmp_path / "b.npz")
    one, other = (resolve(registry, "attack", f'images(file="{tmp_path}/{name}.npz")') for name in "ab")
    digest = hashlib.sha256((tmp_path / "a.npz").read_bytes()).hexdigest()
    assert one.canonical == other.canonical == f'images(sha256="{digest}")'
    again = resolve(registry, "attack", one.canonical)
    again.build(THREAT).admit(G)
    np.savez(tmp_path / "b.npz", x=X, index=INDEX + 1)
    assert resolve(registry, "attack", f'images(file="{tmp_path}/b.npz")').canonical != one.canonical


def test_an_unread_or_changed_or_wrong_file_is_refused_with_the_line_to_type(registry, tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", x=X, index=INDEX)
    found = resolve(registry, "attack", f'images(file="{tmp_path}/a.npz")')
    np.savez(tmp_path / "a.npz", x=X, index=INDEX + 1)
    with pytest.raises(UsageError, match="changed since"):
        found.build(THREAT).admit(G)
    monkeypatch.setattr(images, "FILES", {})
    with pytest.raises(UsageError, match=r"has not read the file .*--attack 'images\(file=adv.npz\)'"):
        found.build(THREAT).admit(G)
    for text, problem in {
        "images": "it needs a file",
        f'images(file="{tmp_path}/c.npz")': "No such file",
        f'images(file="{tmp_path}/a.npz", sha256="{"0" * 64}")': "has the SHA-256 .* not 000",
        "images(sha256=abc)": "sha256",
        "images(file=3)": "file",
    }.items():
        with pytest.raises(UsageError, match=problem):
            resolve(registry, "attack", text)


# ---------------------------------------------------------------------------------------------------------
# On a network
# ---------------------------------------------------------------------------------------------------------


def test_the_kit_passes_with_a_file_of_its_own_images(registry, tmp_path, one_thread):
    world = trained_world()
    found = resolve(registry, "attack", "pgd(steps=5)").build(STRONG["linf"])
    x_adv = found.perturb(world.model, world.examples, 0)
    np.savez(tmp_path / "adv.npz", x=x_adv.numpy(), index=world.examples.index.numpy())
    component = resolve(registry, "attack", f'images(file="{tmp_path}/adv.npz")')
    skipped = set()
    for check in CHECKS["attack"]:
        try:
            check(component)
        except Skipped:
            skipped.add(check.__name__)
    other_norms = {"check_within_the_ball", "check_within_image_box", "check_no_weaker_than_nothing"}
    assert skipped == {"check_seed", *other_norms}, "the images of an l-inf ball lie outside the other balls"


def counted(session, plan, model):
    record, path = evaluate_model(session, model, plan)
    outcomes = read_outcomes(record, path.with_suffix(".npz"))
    return record, {name: array for name, array in outcomes.items() if name.endswith("/error")}


def test_images_saved_from_an_attack_count_as_that_attack(registry, tiny, finished_copy, tmp_path, one_thread):
    session = Session(registry, load(registry, str(tiny)), None, Store(finished_copy.store), "cpu")
    (found,) = find_models(session, [str(finished_copy.folder)], "chosen", ModelOptions())
    model = open_model(session, found)
    given = session.examples("test", 20)
    x_adv = resolve(registry, "attack", "pgd(steps=5)").build(session.threat).perturb(model.load(), given, 0)
    np.savez(tmp_path / "adv.npz", x=x_adv.numpy(), index=given.index.numpy())
    text = f'images(file="{tmp_path}/adv.npz")'
    plan = choose_plan(registry, session.fixed, "last", (text, "pgd(steps=5)"), (), 20)
    _, errors = counted(session, plan, str(finished_copy.folder))
    mine, theirs = (next(array for name, array in errors.items() if f"/{kind}(" in name) for kind in ("images", "pgd"))
    with torch.no_grad():
        naive = (model.load()(x_adv).argmax(1) != given.y).numpy()
    assert np.array_equal(mine, naive)
    assert np.array_equal(theirs, naive)


def test_a_file_outside_the_ball_is_refused_before_any_work(registry, tiny, finished_copy, tmp_path, command):
    session = Session(registry, load(registry, str(tiny)), None, Store(finished_copy.store), "cpu")
    given = session.examples("test", 20)
    np.savez(tmp_path / "adv.npz", x=(1 - given.x).numpy(), index=given.index.numpy())
    before = sorted(finished_copy.folder.rglob("*.json"))
    words = ("--attack", "fgsm", "--attack", f"images(file={str(tmp_path / 'adv.npz')!r})", "--examples", "20")
    done = command("evaluate", finished_copy.folder, "--protocol", tiny, "--store", finished_copy.store, *words)
    assert done.code == 2
    assert "images lie outside the linf ball" in done.err
    assert sorted(finished_copy.folder.rglob("*.json")) == before
    assert not [*finished_copy.folder.rglob("*.npy"), *finished_copy.folder.rglob("work-*/*")]
    assert FILES
