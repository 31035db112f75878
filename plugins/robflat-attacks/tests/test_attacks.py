"""Every attack keeps the harness's promises and gives what the library gives; what it cannot do, it refuses."""

from __future__ import annotations

import copy
import inspect
import json
import re
import sys

import pytest
import torch
from torch import nn

from robflat_attacks import AdvlibParams, TorchattacksParams, robflat_bench_environment, robflat_bench_validate_record
from robflat_attacks.adapters import Advlib, Torchattacks, advlib
from robflat_attacks.tables import ADVLIB, FOOLBOX, TORCHATTACKS
from robflat_bench.api import NORMS, Examples, Threat, UsageError, Workspace, generator, project
from robflat_bench.config.threat import check_norm
from robflat_bench.registry.components import resolve
from robflat_bench.testing import run_checks

# What foolbox 3.3.4 imports, SciPy means to remove.
pytestmark = pytest.mark.filterwarnings("ignore:Please import `gaussian_filter`:DeprecationWarning")

EPSILON = 0.1
RADII = {"linf": EPSILON, "l2": 1.0, "l1": 8.0}
TABLES = {"torchattacks": TORCHATTACKS, "foolbox": FOOLBOX, "advlib": ADVLIB}
EVERY = [(library, name) for library, table in TABLES.items() for name in table]
UNDER = [(library, name, norm) for library, name in EVERY for norm in TABLES[library][name].norms]
QUICK = {
    "FAB": 2,
    "Square": 50,
    "fab": 10,
    "pdgd": 20,
    "pdpgd": 20,
    "LInfFMNAttack": 10,
    "LinfPGD": 10,
    "LinfAdamPGD": 10,
}
DRAWING = ["torchattacks(name=PGD, steps=3", "torchattacks(name=VMIFGSM, steps=2", "foolbox(name=LinfPGD, steps=3"]


def small(channels: int = 3, classes: int = 10) -> nn.Module:
    """A network with batch normalisation, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4))
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, classes)).eval()


def images(model: nn.Module, count: int = 8, channels: int = 3) -> Examples:
    """Random images with the labels the network gives them, indices that are not their positions."""
    x = torch.rand(count, channels, 12, 12, generator=generator("images"))
    with torch.no_grad():
        return Examples(x, model(x).argmax(1), 100 + 7 * torch.arange(count))


def attack(registry, text: str, epsilon: float | None = None, norm: str = "linf"):
    component = resolve(registry, "attack", text)
    check_norm(component, norm)
    return component.build(Threat(RADII[norm] if epsilon is None else epsilon, norm))


def spelled(library: str, name: str) -> str:
    steps = f", steps={QUICK[name]}" if name in QUICK else ""
    return f"{library}(name={name}{steps})"


# ---------------------------------------------------------------------------------------------------------
# The harness's promises
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["torchattacks", "foolbox", "advlib"])
def test_the_conformance_kit_passes(registry, name):
    results = run_checks(registry, "attack", name)
    others = {(result.check, result.outcome) for result in results if result.outcome != "passed"}
    # Each attack of the library takes its own passes, and its batch is its own. Those of adv-lib draw nothing.
    skipped = {"check_declared_passes", "check_examples_are_alone", *(["check_seed"] if name == "advlib" else [])}
    assert others == {(check, "skipped") for check in skipped}, results


@pytest.mark.parametrize(("library", "name", "norm"), UNDER)
def test_every_attack_stays_in_ball_and_box_and_leaves_no_trace(registry, capsys, library, name, norm):
    model = small()
    model[0].train()  # a mixed mode is what `model.train()` afterwards would lose
    examples, state = images(model, 4), copy.deepcopy(model.state_dict())
    x, modes, before = examples.x.clone(), [part.training for part in model.modules()], torch.get_rng_state()
    x_adv = attack(registry, spelled(library, name), norm=norm).run(model, examples, Workspace())
    assert NORMS[norm].size(x_adv - x).max() <= RADII[norm] * (1 + 1e-6)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    if norm == "linf":
        assert torch.equal(x_adv, project(x_adv, x, EPSILON))  # to the last bit, which the libraries do not promise
    assert x_adv.dtype == x.dtype
    assert not x_adv.requires_grad
    assert torch.equal(examples.x, x)
    assert torch.equal(torch.get_rng_state(), before)
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert capsys.readouterr() == ("", "")


class Leaving(Torchattacks):
    """What a later version of a library might do."""

    def call(self, model, x, y, arguments):
        return x + 1


def test_what_a_library_returns_beyond_ball_and_box_is_projected():
    model = small()
    examples = images(model)
    x_adv = Leaving(TorchattacksParams(name="PGD"), Threat(EPSILON)).perturb(model, examples, 0)
    assert torch.equal(x_adv, (examples.x + EPSILON).clamp(max=1))


@pytest.mark.parametrize(("library", "name", "norm"), UNDER)
def test_every_attack_is_a_function_of_seed_and_indices(registry, library, name, norm):
    model = small()
    examples, chosen = images(model, 4), attack(registry, spelled(library, name), norm=norm)
    with torch.random.fork_rng(devices=[]):
        first = chosen.perturb(model, examples, 0)
        torch.manual_seed(1)
        assert torch.equal(chosen.perturb(model, examples, 0), first)


@pytest.mark.parametrize("text", DRAWING)
def test_the_memory_batch_changes_nothing_and_the_attacks_own_batch_does(registry, text):
    model = small()
    examples = images(model)

    def result(own: int, memory: int) -> torch.Tensor:
        return attack(registry, f"{text}, batch={own})").run(model, examples, Workspace(batch=memory))

    assert torch.equal(result(4, 3), result(4, 100))
    assert not torch.equal(result(4, 100), result(8, 100))


@pytest.mark.parametrize("text", DRAWING)
def test_other_indices_or_seeds_meet_other_numbers(registry, text):
    model = small()
    examples, chosen = images(model), attack(registry, f"{text})")
    moved = Examples(examples.x, examples.y, examples.index + 1)
    first = chosen.perturb(model, examples, 0)
    assert not torch.equal(chosen.perturb(model, moved, 0), first)
    assert not torch.equal(chosen.perturb(model, examples, 1), first)


# ---------------------------------------------------------------------------------------------------------
# The library's own results
# ---------------------------------------------------------------------------------------------------------


def key(library: str, name: str, examples: Examples) -> int:
    return generator(0, library, name, *examples.index.tolist()).initial_seed()


@pytest.mark.parametrize("name", ["PGD", "APGD", "VMIFGSM", "FFGSM", "Square"])
def test_torchattacks_gives_what_it_gives_when_called_directly(registry, name):
    import torchattacks

    model = small()
    examples, entry = images(model), TORCHATTACKS[name]
    seed = key("torchattacks", name, examples)
    direct = {"eps": EPSILON, "alpha": entry.step * EPSILON, "steps": 7, "n_queries": 7, "seed": seed}
    known = inspect.signature(getattr(torchattacks, name)).parameters
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        arguments = {argument: value for argument, value in direct.items() if argument in known}
        expected = getattr(torchattacks, name)(model, **arguments)(examples.x, examples.y)
    steps = ", steps=7" if "steps" in entry.takes else ""
    found = attack(registry, f"torchattacks(name={name}{steps})").perturb(model, examples, 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert torch.equal(model(found).argmax(1), model(expected).argmax(1))
    assert not torch.equal(found, examples.x) or name == "Square"


@pytest.mark.parametrize("name", ["LinfPGD", "LinfDeepFoolAttack", "FGSM"])
def test_foolbox_gives_what_it_gives_when_called_directly(registry, name):
    import foolbox

    model = small()
    examples = images(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key("foolbox", name, examples))
        images_of = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        own = getattr(foolbox.attacks, name)()
        _, expected, broken = own(images_of, examples.x, examples.y, epsilons=EPSILON)
    found = attack(registry, f"foolbox(name={name})").perturb(model, examples, 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert torch.equal(model(found).argmax(1) != examples.y, broken)


@pytest.mark.parametrize(
    ("library", "name", "norm"),
    [
        *(("torchattacks", "PGDL2", "l2"), ("torchattacks", "APGD", "l2"), ("torchattacks", "FAB", "l2")),
        *(("foolbox", "L2PGD", "l2"), ("foolbox", "L1PGD", "l1"), ("foolbox", "DDNAttack", "l2")),
    ],
)
def test_other_norms_give_what_the_libraries_give_when_called_directly(registry, library, name, norm):
    import foolbox
    import torchattacks

    model = small()
    examples, epsilon = images(model), RADII[norm]
    seed = key(library, name, examples)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if library == "foolbox":
            wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
            _, expected, _ = getattr(foolbox.attacks, name)()(wrapped, examples.x, examples.y, epsilons=epsilon)
        else:
            given = {"eps": epsilon, "norm": norm.upper(), "seed": seed, "alpha": 0.2 * epsilon}
            known = inspect.signature(getattr(torchattacks, name)).parameters
            arguments = {argument: value for argument, value in given.items() if argument in known}
            expected = getattr(torchattacks, name)(model, **arguments)(examples.x, examples.y)
    found = attack(registry, f"{library}(name={name})", norm=norm).perturb(model, examples, 0)
    torch.testing.assert_close(found, NORMS[norm].project(expected, examples.x, epsilon), rtol=0, atol=1e-6)
    assert not torch.equal(found, examples.x)


@pytest.mark.parametrize(
    ("text", "norm", "known"),
    [
        ("foolbox(name=LinfPGD)", "l2", "linf"),
        ("foolbox(name=L2PGD)", "linf", "l2"),
        ("torchattacks(name=PGD)", "l2", "linf"),
        ("torchattacks(name=APGD)", "l1", "linf, l2"),
    ],
)
def test_an_attack_of_another_norm_is_refused_before_any_work(registry, text, norm, known):
    with pytest.raises(UsageError, match=rf"is defined under {known}, but the threat's norm is {norm}"):
        check_norm(resolve(registry, "attack", text), norm)


def test_foolbox_restarts_break_what_one_of_them_breaks(registry):
    model = small()
    examples = images(model, 32)
    errors = [
        model(attack(registry, f"foolbox(name={text})", 0.02).perturb(model, examples, 0)).argmax(1) != examples.y
        for text in ("LinfAdditiveUniformNoiseAttack", "LinfAdditiveUniformNoiseAttack, restarts=20")
    ]
    assert (errors[1] | ~errors[0]).all()
    assert errors[1].sum() > errors[0].sum()


@pytest.mark.parametrize("name", sorted(TORCHATTACKS))
def test_the_table_says_what_torchattacks_takes_and_defaults_to(name):
    import torchattacks

    entry, ours = TORCHATTACKS[name], {argument for row in TORCHATTACKS.values() for argument in row.takes.values()}
    known = inspect.signature(getattr(torchattacks, name)).parameters
    optional = {"n_classes"} if name == "FAB" else set()  # read by its multi-targeted mode only
    assert {argument for argument in known if argument in ours} - optional == set(entry.takes.values())
    defaults = {ours_: known[theirs].default for ours_, theirs in entry.takes.items()}
    assert entry.steps == defaults.get("steps", 1)
    assert entry.step == pytest.approx(defaults["step"] / defaults["epsilon"] if "step" in defaults else 0)


@pytest.mark.parametrize("name", sorted(FOOLBOX))
def test_the_table_says_what_foolbox_takes_and_defaults_to(name):
    import foolbox

    entry, chosen = FOOLBOX[name], getattr(foolbox.attacks, name)
    known = inspect.signature(chosen).parameters
    ours = {"steps", "repeats", "abs_stepsize"} & {*known}
    assert ours == {*entry.takes.values()} - {"times"}
    assert entry.steps == next((known[steps].default for steps in ("steps", "repeats") if steps in known), 1)
    assert entry.step == (known["rel_stepsize"].default if "rel_stepsize" in known else 0)
    assert chosen().distance is getattr(foolbox.distances, entry.norms[0])


@pytest.mark.parametrize("name", sorted(ADVLIB))
def test_the_table_says_what_adv_lib_takes_and_defaults_to(name):
    entry, known = ADVLIB[name], inspect.signature(getattr(advlib(), name)).parameters
    assert {"steps", "num_steps", "n_iter", "norm"} & {*known} == {*entry.takes.values()}
    assert entry.steps == known[entry.takes["steps"]].default


def test_adv_lib_gives_what_it_gives_when_called_directly(registry):
    model = small()
    examples = images(model)
    expected = advlib().fab(model, examples.x, examples.y, norm=2, n_iter=20)
    found = attack(registry, "advlib(name=fab, steps=20)", norm="l2").perturb(model, examples, 0)
    torch.testing.assert_close(found, NORMS["l2"].project(expected, examples.x, 1.0), rtol=0, atol=1e-6)
    assert not torch.equal(found, examples.x)


def test_adv_lib_needs_no_visdom_and_leaves_none_behind():
    assert advlib().fmn
    assert "visdom" not in sys.modules


def test_without_adv_lib_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("robflat_attacks.adapters.version", lambda distribution: "")
    model = small()
    with pytest.raises(UsageError, match="pip install --no-deps adv-lib"):
        Advlib(AdvlibParams(name="sdf"), Threat(1.0, "l2")).admit(images(model))


def test_the_tables_are_complete():
    """Of torchattacks but AutoAttack, which the core has from its authors, and attacks without a radius; of foolbox but
    those that start elsewhere, reduce contrast or take thousands of steps, and the FMN that is not minimal; of adv-lib
    the minimum-norm attacks that find the minimum, see below, in less than a thousand steps."""
    import foolbox
    import torchattacks

    balls = {
        name
        for name in torchattacks.__all__
        if re.search(": (Linf|L2|L1)", getattr(torchattacks, name).__doc__ or "")
        and {"eps", "max_epsilon"} & {*inspect.signature(getattr(torchattacks, name)).parameters}
    }
    assert balls - {"AutoAttack"} == set(TORCHATTACKS)
    named = {item for name, item in vars(foolbox.attacks).items() if re.match("linf|l2|l1", name.lower())}
    others = ("LinfinityBrendelBethgeAttack", "L2BrendelBethgeAttack", "L1BrendelBethgeAttack")
    others += ("L2CarliniWagnerAttack", "L2ContrastReductionAttack", "L2FMNAttack")
    offered = {getattr(foolbox.attacks, name) for name in FOOLBOX}
    assert named - {getattr(foolbox.attacks, name) for name in others} <= offered
    assert offered - named == {foolbox.attacks.DDNAttack, foolbox.attacks.SparseL1DescentAttack}
    every = {name for name, item in vars(advlib()).items() if inspect.isfunction(item)}
    in_a_ball, long, elsewhere = (
        {"apgd", "apgd_targeted", "pgd_linf"},
        {"alma", "carlini_wagner_l2", "carlini_wagner_linf"},
        {"tr"},
    )
    no_norm_of_ours = {"fga", "vfga", "sigma_zero", "perc_al", "str_attack"}
    assert every - in_a_ball - long - elsewhere - no_norm_of_ours == set(ADVLIB)


# ---------------------------------------------------------------------------------------------------------
# Known quirks of the libraries
# ---------------------------------------------------------------------------------------------------------


def test_steps_scale_with_the_threat(registry):
    """At torchattacks' own 2/255, ten steps end 0.08 from the image; the ball here is 0.3."""
    model = small()
    examples = images(model)
    x_adv = attack(registry, "torchattacks(name=BIM)", 0.3).perturb(model, examples, 0)
    assert (x_adv - examples.x).abs().max() == pytest.approx(0.3)
    short = attack(registry, "torchattacks(name=BIM, step=2/255)", 0.3).perturb(model, examples, 0)
    assert (short - examples.x).abs().max() == pytest.approx(20 / 255)


class Scaled(nn.Module):
    """Logits so far apart that the gradient of the cross-entropy is exactly zero."""

    def __init__(self) -> None:
        super().__init__()
        self.network = small()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1e6 * self.network(x)


@pytest.mark.parametrize("name", ["MIFGSM", "NIFGSM", "TIFGSM"])
def test_a_gradient_of_zero_is_no_successful_attack(registry, name):
    """These divide it by its norm; the network would answer an image of NaN with a wrong class."""
    model = Scaled().eval()
    examples = images(model)
    x_adv = attack(registry, f"torchattacks(name={name})").perturb(model, examples, 0)
    assert x_adv.isfinite().all()
    assert torch.equal(model(x_adv).argmax(1), examples.y)


@pytest.mark.parametrize("classes", [4, 10, 20])
def test_apgdt_targets_as_many_classes_as_there_are(registry, classes):
    model = small(classes=classes)
    x_adv = attack(registry, "torchattacks(name=APGDT, steps=2)").perturb(model, images(model), 0)
    assert x_adv.isfinite().all()


def test_apgdt_needs_four_classes(registry):
    model = small(classes=3)
    with pytest.raises(UsageError, match=r"APGDT of torchattacks needs four classes; this model has 3"):
        attack(registry, "torchattacks(name=APGDT, steps=2)").perturb(model, images(model), 0)


@pytest.mark.parametrize("name", ["TIFGSM", "PIFGSM", "PIFGSMPP"])
def test_attacks_of_three_channels_refuse_others(registry, name):
    model = small(channels=1)
    with pytest.raises(UsageError, match=f"{name} of torchattacks takes images of 3 channels only, these have 1"):
        attack(registry, f"torchattacks(name={name})").admit(images(model, channels=1))


def test_other_precisions_are_refused():
    examples = images(small())
    chosen = Torchattacks(TorchattacksParams(name="PGD"), Threat(EPSILON))
    with pytest.raises(UsageError, match="float32 only"):
        chosen.admit(Examples(examples.x.double(), examples.y, examples.index))


# ---------------------------------------------------------------------------------------------------------
# Specs
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("torchattacks(name=PDG)", "did you mean 'PGD'?"),
        ("torchattacks(name=pgd)", "did you mean 'PGD'?"),
        ("torchattacks(name=CW)", "not an attack of torchattacks in a ball"),
        ("foolbox(name=LinfPDG)", "did you mean 'LinfPGD'?"),
        ("foolbox(name=L2CarliniWagnerAttack)", "not an attack of foolbox in a ball"),
        ("foolbox(name=L2FMNAttack)", "not an attack of foolbox in a ball"),
        ("advlib(name=FAB)", "did you mean 'fab'?"),
        ("advlib(name=fab, restarts=2)", "fab of advlib takes no restarts"),
        ("torchattacks(steps=5)", "'name' is missing"),
        ("torchattacks(name=FGSM, steps=5)", "FGSM of torchattacks takes no steps"),
        ("torchattacks(name=Square, step=0.1)", "Square of torchattacks takes no step"),
        ("torchattacks(name=PGD, restarts=2)", "PGD of torchattacks takes no restarts"),
        ("torchattacks(name=PGD, step=0)", "'step' = 0"),
        ("foolbox(name=LinfBasicIterativeAttack, restarts=2)", "takes no restarts"),
    ],
)
def test_what_cannot_be_is_refused_in_words(registry, text, message):
    with pytest.raises(UsageError) as refused:
        resolve(registry, "attack", text)
    assert message in str(refused.value)


@pytest.mark.parametrize(("library", "name"), EVERY)
def test_the_canonical_text_spells_out_the_librarys_steps(registry, library, name):
    chosen = resolve(registry, "attack", f"{library}(name={name})")
    assert resolve(registry, "attack", chosen.canonical).canonical == chosen.canonical
    assert f"steps={chosen.params.entry.steps})" in chosen.canonical


# ---------------------------------------------------------------------------------------------------------
# Records, and the command line
# ---------------------------------------------------------------------------------------------------------


def test_a_record_must_name_the_librarys_version():
    def record(attack: str, **noted: str) -> dict[str, object]:
        environment = {"plugins": {"robflat-attacks": noted}} if noted else {}
        return {"results": {"last": {"robust_error": {attack: {"test": 0.5}}}}, "environment": environment}

    ours = 'torchattacks(batch=250, name="PGD", restarts=1, steps=10)'
    assert robflat_bench_validate_record(record("pgd(steps=2)")) == []
    assert robflat_bench_validate_record(record(ours, **robflat_bench_environment())) == []
    theirs = 'advlib(batch=250, name="sdf", restarts=1, steps=100)'
    assert "results of adv-lib but not" in robflat_bench_validate_record(record(theirs, foolbox="3.3.4"))[0]
    for lacking in (record(ours), record(ours, foolbox="3.3.4")):
        (problem,) = robflat_bench_validate_record(lacking)
        assert "results of torchattacks but not the version of torchattacks" in problem


def test_evaluate_attacks_a_run_and_notes_the_versions(command, trained):
    texts = ("torchattacks(name=PGD, steps=5)", "foolbox(name=LinfPGD, steps=5)", "advlib(name=fab, steps=5)")
    done = command(
        "evaluate",
        trained,
        "--protocol",
        "tiny.toml",
        *(word for text in texts for word in ("--attack", text)),
        "--json",
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    (result,) = record["results"].values()
    assert [text.partition("(")[0] for text in result["robust_error"]] == ["torchattacks", "foolbox", "advlib"]
    assert all(result["clean_error"] <= error["test"] <= 1 for error in result["robust_error"].values())
    assert record["environment"]["plugins"]["robflat-attacks"] == robflat_bench_environment()
    assert robflat_bench_validate_record(record) == []


def test_a_misspelt_attack_is_a_usage_error(command, trained):
    done = command("evaluate", trained, "--protocol", "tiny.toml", "--attack", "torchattacks(name=PDG)")
    assert done.returncode == 2
    assert "did you mean 'PGD'?" in done.stderr
