"""`plugin new`: for every kind a package that works as it is, and a refusal wherever it could not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import REPOSITORY, run_here
from helpers.distributions import Site

from robflat_bench import __version__
from robflat_bench.cli.plugin import new
from robflat_bench.scaffold import EXAMPLES, Package, bounds, checkout, render

KINDS = sorted(EXAMPLES)
LONG = "robflat-a-rather-long-name-of-a-component-like-that"


@dataclass(frozen=True)
class Made:
    """A package that the command wrote, and how the command ended."""

    folder: Path
    kind: str
    document: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def project(self) -> dict[str, Any]:
        return tomllib.loads((self.folder / "pyproject.toml").read_text("utf-8"))

    def install(self, site: Site) -> None:
        """Its modules and metadata, as an installer would lay them out."""
        package = self.name.replace("-", "_")
        files = {f"{package}/{file.name}": file.read_text("utf-8") for file in (self.folder / package).glob("*.py")}
        site.install(self.name, files, version="0.1.0", module=package)
        project = self.project["project"]
        about = ["Metadata-Version: 2.1", f"Name: {self.name}", "Version: 0.1.0", f"Summary: {project['description']}"]
        about += [f"Requires-Dist: {wanted}" for wanted in project["dependencies"]]
        (site.folder / f"{package}-0.1.0.dist-info" / "METADATA").write_text("\n".join([*about, ""]), "utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Made]:
    """One package of each kind; look, do not touch."""
    into = tmp_path_factory.mktemp("made")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBFLAT_BENCH_PLUGINS", "")
        for kind in KINDS:
            done = run_here("plugin", "new", f"robflat-my-{kind}", "--kind", kind, "--into", into, "--json")
            assert done.code == 0, done.err
            found[kind] = Made(into / f"robflat-my-{kind}", kind, done.document)
    return found


# ---------------------------------------------------------------------------------------------------------
# What is written
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_it_lists_all_it_wrote_and_what_to_type_next(made, kind):
    package = made[kind]
    written = sorted(str(path) for path in package.folder.rglob("*") if path.is_file())
    assert sorted(package.document["files"]) == written
    assert {Path(path).relative_to(package.folder).as_posix() for path in written} == {
        "pyproject.toml",
        "README.md",
        ".gitignore",
        ".github/workflows/test.yml",
        f"robflat_my_{kind}/__init__.py",
        f"robflat_my_{kind}/my_{kind}.py",
        f"tests/test_my_{kind}.py",
    }
    change, *_, last = package.document["next"]
    assert change == f"cd {package.folder}"
    assert last == f"uv run robflat-bench plugin check robflat-my-{kind}"
    assert len(package.document["next"]) == 3


def test_the_method_is_the_default_here_and_the_component_may_be_named_as_the_package(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command("plugin", "new", "twist")
    assert done.code == 0
    assert done.out.splitlines()[0] == "wrote twist/pyproject.toml"
    assert done.out.splitlines()[-3] == "cd twist"
    assert "return catalogue_rows(__name__)" in Path("twist/twist/__init__.py").read_text("utf-8")
    component = Path("twist/twist/twist.py").read_text("utf-8")
    assert 'name="twist",' in component
    assert "class Twist(Method)" in component


def test_the_package_requires_the_core_in_use(made):
    project = made["method"].project
    assert project["project"]["dependencies"] == [f"robflat-bench{bounds(__version__)}"]
    assert project["tool"]["uv"]["sources"] == {"robflat-bench": {"path": str(REPOSITORY), "editable": True}}
    installed = render(Package("robflat-my-at", "method"), core=None)
    assert "uv" not in tomllib.loads(installed["pyproject.toml"])["tool"]
    odd = Path('/home/a "quoted" \\ é/core')
    written = tomllib.loads(render(Package("robflat-my-at", "method"), core=odd)["pyproject.toml"])
    assert written["tool"]["uv"]["sources"]["robflat-bench"]["path"] == str(odd)


@pytest.mark.parametrize(
    ("version", "expected"),
    [("0.1.0", ">=0.1,<0.2"), ("0.12.3", ">=0.12,<0.13"), ("1.0.0", ">=1.0,<2"), ("2.7.1", ">=2.7,<3")],
)
def test_the_required_versions_end_before_the_next_breaking_one(version, expected):
    assert bounds(version) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["robflat-x", LONG])
def test_it_is_formatted_and_its_imports_are_sorted(tmp_path, kind, name):
    pytest.importorskip("ruff")
    for path, text in render(Package(name, kind), core=None).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, "utf-8")
    for check in (["format", "--check"], ["check", "--extend-select=I,UP,B,SIM,PT"]):
        ruff = [sys.executable, "-m", "ruff", *check, "--isolated", "--no-cache", "."]
        done = subprocess.run(ruff, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_the_command_offers_every_kind_there_is_a_template_of():
    (kinds,) = (option.type.choices for option in new.params if option.name == "kind")
    assert sorted(kinds) == KINDS


# ---------------------------------------------------------------------------------------------------------
# It works
# ---------------------------------------------------------------------------------------------------------


LISTS = """
import json, sys
from robflat_bench.registry.registry import KINDS, discover
registry = discover()
offers = [offer for kind in KINDS for offer in registry.offers(kind) if not offer.provider.built_in]
print(json.dumps([sorted(f"{o.info.kind}:{o.info.name} {o.provider}" for o in offers), "torch" in sys.modules]))
"""


def test_its_row_is_read_without_torch(made, site, child_environment):
    for package in made.values():
        package.install(site)
    environment = child_environment(site.folder, plugins=",".join(package.name for package in made.values()))
    done = subprocess.run([sys.executable, "-c", LISTS], env=environment, capture_output=True, text=True, check=True)
    rows, torch = json.loads(done.stdout)
    assert rows == [f"{kind}:my-{kind} robflat-my-{kind} 0.1.0" for kind in KINDS]
    assert not torch


@pytest.mark.parametrize("kind", KINDS)
def test_it_passes_every_check(made, site, command, kind):
    made[kind].install(site)
    done = command("plugin", "check", f"robflat-my-{kind}", "--json")
    assert done.code == 0, done.out
    assert {row["outcome"] for row in done.document["results"]} == {"passed"}
    assert f"{kind}:my-{kind}" in {row["component"] for row in done.document["results"]}


def test_its_own_tests_pass(made, site, child_environment):
    for package in made.values():
        package.install(site)
    environment = child_environment(site.folder, plugins=",".join(package.name for package in made.values()))
    tests = [str(package.folder / "tests") for package in made.values()]
    pytest_ = [sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*pytest_, "-W", "error", "-W", "ignore::DeprecationWarning:torch", f"--rootdir={site.folder}", *tests],
        cwd=site.folder,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("uv") is None, reason="needs uv")
def test_installed_by_uv_it_is_tested_checked_and_listed(made, tmp_path):
    """A virtual environment of its own above this one's packages; only the build backend is fetched."""
    home = tmp_path / "environment"
    python = home / "bin" / "python"

    def run(*arguments: object, **more: str) -> str:
        environment = os.environ | {"ROBFLAT_BENCH_PLUGINS": ",".join(package.name for package in made.values())} | more
        done = subprocess.run([*map(str, arguments)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("uv", "venv", "--quiet", "--python", sys.executable, home)
    (packages,) = home.glob("lib/*/site-packages")
    here = [path for path in sys.path if path.endswith("site-packages")]
    lines = [f"import site; site.addsitedir({path!r})\n" for path in here]
    (packages / "zz-the-tests.pth").write_text("".join(lines), "utf-8")
    for package in made.values():
        run("uv", "pip", "install", "--quiet", "--no-deps", "--python", python, "--editable", package.folder)
        run(python, "-m", "pytest", "-q", package.folder)
        run(python, "-m", "robflat_bench", "plugin", "check", package.name)
        assert f"my-{package.kind}" in run(python, "-m", "robflat_bench", "list", f"{package.kind}s")


# ---------------------------------------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("My-Plugin", "lower-case words"),
        ("my_plugin", "lower-case words"),
        ("my--plugin", "lower-case words"),
        ("my-plugin-", "lower-case words"),
        ("../my-plugin", "lower-case words"),
        ("3d", "lower-case words"),
        ("robflat-3d", "lower-case words"),
        ("robflat-class", "means something"),
        ("robflat-method", "means something"),
        ("robflat-bench", "a Python package robflat_bench already"),
        ("torch", "a Python package torch already"),
        ("robflat-trades", "robflat-bench has a method 'trades'"),
    ],
)
def test_a_name_that_cannot_work_is_refused(command, tmp_path, name, reason):
    done = command("plugin", "new", name, "--into", tmp_path / "into")
    assert done.code == 2
    assert reason in done.complaint
    assert not list(tmp_path.iterdir())


def test_a_modifier_may_have_the_name_of_a_method(command, tmp_path):
    assert command("plugin", "new", "robflat-trades", "--kind", "modifier", "--into", tmp_path).code == 0


def test_nothing_is_overwritten(command, tmp_path):
    there = tmp_path / "robflat-mine" / "work.py"
    there.parent.mkdir()
    there.write_text("years of it")
    done = command("plugin", "new", "robflat-mine", "--into", tmp_path)
    assert done.code == 2
    assert "exists already" in done.complaint
    assert [path.name for path in there.parent.iterdir()] == ["work.py"]


@pytest.mark.parametrize("into", [".", "plugins", "nowhere/yet"])
def test_never_in_the_checkout_of_the_core(command, monkeypatch, into):
    assert checkout() == REPOSITORY
    monkeypatch.chdir(REPOSITORY)
    done = command("plugin", "new", "robflat-inside", "--into", into)
    assert done.code == 2
    assert f"plugin new robflat-inside --kind method --into {REPOSITORY.parent}" in done.complaint
    assert not (REPOSITORY / into / "robflat-inside").exists()
