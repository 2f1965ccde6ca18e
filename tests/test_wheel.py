"""The wheel holds every module of the four folders, each of them is importable from it, and its command runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support.places import REPOSITORY
from support.python_environment import python_with_dependencies

pytestmark = pytest.mark.slow
FOLDERS = ("train", "cluster", "launcher", "benchmarks")
BUILT_FROM = ("pyproject.toml", "setup.py", "README.md", "LICENSE", *FOLDERS)
# Imports the modules named on standard input; prints what each module that cannot be imported lacks.
IMPORT_ALL = """
import importlib, json, sys
lacks = {}
for name in json.load(sys.stdin):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        lacks[name] = error.name
print(json.dumps({"lacks": lacks, "from": sys.modules["gemfleet.train"].__file__}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tracked files, so that nothing else in the checkout can help."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked(*BUILT_FROM):
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, folder / "source" / name)
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(folder), str(folder / "source")]
    subprocess.run(command, check=True)
    (built,) = folder.glob("gemfleet-*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path) -> Path:
    return python_with_dependencies(wheel.parent / "environment", wheel)


def test_it_holds_what_git_holds(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {f"gemfleet/{name}" for name in tracked(*FOLDERS) if name.endswith((".py", ".cpp"))}
    dashboard = {f"gemfleet/{name}" for name in tracked("launcher/api/dashboard")}
    assert len(modules) > 400
    assert dashboard
    assert held == modules | dashboard | {f"gemfleet/{folder}/py.typed" for folder in FOLDERS}


def test_every_module_is_importable(wheel: Path, python: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")]
    modules = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in names]
    done = run(python, "-c", IMPORT_ALL, stdin=json.dumps(modules))
    told = json.loads(done.stdout.splitlines()[-1])
    assert Path(told["from"]).is_relative_to(python.parent.parent)
    extras = packages_of_extras(wheel)
    lacks = {module: (package, extras.get(package.partition(".")[0])) for module, package in told["lacks"].items()}
    assert {module: lack for module, lack in lacks.items() if lack[1] not in ("demo", "bench", "gpu")} == {}


@pytest.mark.parametrize("arguments", [["--help"], ["bench", "faults", "--help"]], ids=" ".join)
def test_the_command_runs(python: Path, arguments: list[str]) -> None:
    done = run(python.with_name("gemfleet"), *arguments)
    assert "Usage: " in done.stdout or "usage: " in done.stdout


def test_the_image_is_given_all_that_the_wheel_is_built_from() -> None:
    sent = (REPOSITORY / ".dockerignore").read_text().splitlines()
    copies = [line.split()[1:-1] for line in (REPOSITORY / "Dockerfile").read_text().splitlines() if "COPY " in line]
    for name in BUILT_FROM:
        assert f"!{name}" in sent
        assert any(name in copied for copied in copies), name


def tracked(*paths: str) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", *paths], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    return [name for name in listed.stdout.split("\0") if name]


def packages_of_extras(wheel: Path) -> dict[str, str]:
    """The name under which each optional requirement is imported, where that is its own name, and its extra."""
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    message = Parser().parsestr(archive.read(metadata).decode())
    found = {}
    for extra in message.get_all("Provides-Extra", []):
        for text in message.get_all("Requires-Dist", []):
            requirement = Requirement(text)
            if requirement.marker and requirement.marker.evaluate({"extra": extra}):
                found[requirement.name.replace("-", "_")] = extra
    return found


def run(program: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """From another folder than the checkout, without what the test run's environment adds to the path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(program), *arguments],
        input=stdin,
        cwd=program.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done
