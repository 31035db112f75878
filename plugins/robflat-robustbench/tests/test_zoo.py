"""Architectures and weights through the adapter: complete or refused, and attacked as their own code attacks them."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
from dataclasses import replace

import pyautoattack
import pytest
import torch
from safetensors.torch import save_file

from robflat_bench.api import Examples, PluginError, Threat, UsageError, Workspace
from robflat_bench.registry.components import resolve
from robflat_bench.testing import run_checks
from robflat_robustbench import MODELS, zoo


def same(model, state):
    own = model.state_dict()
    return all(torch.equal(own[name], tensor) for name, tensor in state.items())


# ---------------------------------------------------------------------------------------------------------
# Weights
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"net": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"model": {f"module.model.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"last": state, "best": {name: 2 * tensor for name, tensor in state.items()}},
        lambda state: {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")},
    ],
)
def test_weights_load_whole_however_a_trainer_wraps_them(build, trained, place, wrapped):
    torch.save(wrapped(trained), place)
    model = build(models=str(place.parents[2]))
    assert same(model, trained)
    assert model.mu.flatten().tolist() == pytest.approx([0.4914, 0.4822, 0.4465]), "the architecture's own"


def test_weights_are_found_as_safetensors_by_file_and_by_environment(build, trained, place, tmp_path, monkeypatch):
    file = place.with_suffix(".safetensors")
    save_file(trained, file)
    assert same(build(weights=str(file)), trained)
    monkeypatch.setenv(MODELS, str(tmp_path))
    assert same(build(), trained)


def test_missing_weights_name_their_place_and_how_to_get_them(build, tmp_path):
    with pytest.raises(UsageError) as refused:
        build(models=str(tmp_path))
    text = str(refused.value)
    assert str(tmp_path / "cifar10" / "Linf" / "Wong2020Fast.pt") in text
    assert f"load_model('Wong2020Fast', model_dir='{tmp_path}', dataset='cifar10', threat_model='Linf')" in text
    with pytest.raises(UsageError, match="no such file"):
        build(weights=str(tmp_path / "gone.pt"))


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_that_runs_code_is_refused_before_it_does(build, trained, place, tmp_path, legacy):
    trace = tmp_path / "ran"
    torch.save({"state_dict": trained, "extra": Malicious(trace)}, place, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UsageError, match=r"refused: loading it would run code of its own \(it asks for posix.mkdir\)"):
        build(models=str(tmp_path))
    assert not trace.exists()
    torch.load(place, weights_only=False)
    assert trace.exists(), "the file is as bad as it claims"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<!DOCTYPE html><title>Google Drive</title>", "web page, so its download failed"),
        (b"", "damaged"),
        (b"PK\x03\x04 cut short", "damaged"),
    ],
)
def test_what_is_no_checkpoint_is_refused(build, place, tmp_path, content, reason):
    place.write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        build(models=str(tmp_path))


def changed(state, **changes):
    return {name: tensor for name, tensor in {**state, **changes}.items() if tensor is not None}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: changed(s, **{"linear.weight": torch.zeros(100, 512)}), r"\(100, 512\) there and \(10, 512\) here"),
        (lambda s: changed(s, **{"linear.bias": None}), "'linear.bias' is missing"),
        (lambda s: changed(s, **{"layer1.0.bn1.running_mean": None}), "'layer1.0.bn1.running_mean' is missing"),
        (lambda s: changed(s, rotation=torch.zeros(4)), "'rotation' is unknown here"),
        (lambda s: changed(s, **{"module.linear.bias": torch.zeros(10)}), "'linear.bias' twice"),
        (lambda s: {"optimizer": {"lr": 0.1}}, "no weights under"),
        (lambda s: {}, "is missing; .* and [0-9]+ more"),
    ],
)
def test_weights_that_do_not_fit_are_refused_never_taken_in_part(build, trained, place, tmp_path, change, problem):
    torch.save(change(trained), place)
    with pytest.raises(UsageError, match=problem):
        build(models=str(tmp_path))


def test_only_names_published_without_constants_may_lack_them(trained):
    model = zoo.zoo()["cifar10", "Linf"]["Wong2020Fast"]["model"]()
    with pytest.raises(UsageError, match="'mu' is missing; 'sigma' is missing"):
        zoo.fitted(trained, model, "Another2020", "file")


def test_members_of_an_ensemble_lie_apart_and_load_each_into_its_own(build, tmp_path):
    model = build("Chen2020Adversarial", weights="random")
    folder = tmp_path / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    wanted = []
    for number, member in enumerate(model.models):
        wanted.append({name: tensor + number for name, tensor in member.state_dict().items()})
        torch.save(wanted[-1], folder / f"Chen2020Adversarial_m{number}.pt")
    loaded = build("Chen2020Adversarial", models=str(tmp_path))
    assert all(same(member, state) for member, state in zip(loaded.models, wanted, strict=True))
    (folder / "Chen2020Adversarial_m2.pt").unlink()
    with pytest.raises(UsageError, match=r"looked for .*_m2\.pt"):
        build("Chen2020Adversarial", models=str(tmp_path))


# ---------------------------------------------------------------------------------------------------------
# The adapter
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"channels": 1, "size": 8}, {"classes": 100}, {"size": 64}])
def test_images_it_was_not_built_for_are_refused(build, cifar, change):
    with pytest.raises(UsageError, match="3x32x32 images of 10 classes; this protocol has"):
        build(shape=replace(cifar, **change), weights="random")


def test_unknown_names_are_answered_with_the_nearest(build):
    with pytest.raises(UsageError, match="did you mean Wong2020Fast"):
        build("Wong2020Fats", weights="random")


def test_random_weights_are_always_the_same_and_leave_the_global_state(build, capsys):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build(weights="random")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert same(build(weights="random"), first.state_dict())
    assert capsys.readouterr().out == ""


def test_the_backbone_passes_the_conformance_kit(registry):
    results = run_checks(registry, "backbone", "robustbench")
    outcomes = {result.check: result.outcome for result in results}
    assert outcomes.pop("check_another_seed_moves_every_weight") == "skipped", "its weights are published ones"
    assert {*outcomes.values()} == {"passed"}, results


def test_nothing_heavy_is_imported_to_describe_the_plugin():
    code = (
        "import sys, robflat_robustbench as plugin\n"
        "rows = plugin.robflat_bench_backbones(), plugin.robflat_bench_protocols(), plugin.robflat_bench_commands()\n"
        "print(sorted({'torch', 'robustbench', 'timm', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_robustbench_that_cannot_be_imported_says_why(monkeypatch):
    zoo.zoo.cache_clear()
    monkeypatch.setitem(sys.modules, "robustbench.model_zoo", None)
    with pytest.raises(PluginError, match=r"robustbench cannot be imported: .*setuptools<81"):
        zoo.zoo()


def test_autoattack_by_its_old_name_is_lent_for_the_import_only():
    zoo.zoo()
    assert sys.modules["robustbench.eval"].AutoAttack is pyautoattack.AutoAttack
    assert not {"autoattack", "autoattack.state"} & set(sys.modules)


def installed(site, **files):
    """A distribution `robustbench` in `site`, whose record has the hashes of `files`."""
    (site / "robustbench").mkdir(parents=True)
    info = site / "robustbench-1.1.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: robustbench\nVersion: 1.1.1\n")
    rows = ["robustbench-1.1.1.dist-info/RECORD,,"]
    for name, text in files.items():
        (site / "robustbench" / f"{name}.py").write_text(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        rows.append(f"robustbench/{name}.py,sha256={digest},{len(text)}")
    (info / "RECORD").write_text("\n".join(rows))


def test_a_robustbench_overwritten_by_another_package_is_refused(tmp_path, monkeypatch):
    installed(tmp_path, data="old", utils="old")
    monkeypatch.syspath_prepend(tmp_path)
    assert zoo.overwritten() == []
    (tmp_path / "robustbench" / "utils.py").write_text("another package's")
    zoo.zoo.cache_clear()
    with pytest.raises(PluginError, match=r"1 of its files were overwritten \(robustbench/utils.py.*--force-reinstall"):
        zoo.zoo()


# ---------------------------------------------------------------------------------------------------------
# The same flags as AutoAttack's authors' code
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def budget(request, monkeypatch):
    """pyautoattack's own budget, or one cut to two steps and one target class, whoever constructs it."""
    set_version = pyautoattack.AutoAttack._set_version

    def smaller(self, version="standard"):
        set_version(self, version)
        self.apgd.n_iter = self.apgd_targeted.n_iter = 2
        self.apgd_targeted.n_target_classes = 1

    if request.param == "cut":
        monkeypatch.setattr(pyautoattack.AutoAttack, "_set_version", smaller)


def half_falls(model, x):
    """The model's own labels, and a radius at which, to first order, half the images cross to the next class."""
    variable = x.clone().requires_grad_()
    logits = model(variable)
    best = logits.topk(2, dim=1).values
    margin = best[:, 0] - best[:, 1]
    (gradient,) = torch.autograd.grad(margin.sum(), variable)
    return logits.argmax(1), float((margin.detach() / gradient.flatten(1).abs().sum(1)).median())


@pytest.mark.filterwarnings("ignore:'saved_variables' is deprecated")  # in RobustBench's own SiLU
@pytest.mark.usefixtures("budget")
@pytest.mark.parametrize(
    ("name", "budget"),
    [
        ("Wong2020Fast", "cut"),  # PreActResNet-18
        ("Rebuffi2021Fixing_R18_ddpm", "cut"),  # another PreActResNet-18, with SiLU, by other hands
        pytest.param("Wong2020Fast", "full", marks=pytest.mark.slow),
        pytest.param("Carmon2019Unlabeled", "cut", marks=pytest.mark.slow),  # WRN-28-10
        pytest.param("Carmon2019Unlabeled", "full", marks=pytest.mark.slow),
    ],
    indirect=["budget"],
)
def test_apgd_breaks_the_images_that_its_authors_code_breaks(build, registry, tmp_path, name):
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": build(name, weights="random").state_dict()}, path)
    model = build(name, weights=str(path)).eval()
    x = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y, epsilon = half_falls(model, x)

    attack = resolve(registry, "attack", "autoattack(version=apgd, fast=false, batch=16, seed=0)")
    ours = attack.build(Threat(epsilon)).run(model, Examples(x, y, torch.arange(16)), Workspace())
    with torch.random.fork_rng():
        suite = pyautoattack.AutoAttack(model, norm="Linf", eps=epsilon, seed=0)
        suite.logger.setLevel("CRITICAL")
        suite.attacks_to_run = ["apgd-ce", "apgd-t"]
        theirs, predicted = suite.run_standard_evaluation(x, y, batch_size=16)

    with torch.no_grad():
        standing = model(ours).argmax(1) == y
    assert torch.equal(standing, predicted == y)
    assert torch.equal(ours, theirs)
    survive = int(standing.sum())
    assert 0.2 <= survive / 16 <= 0.8
