"""A machine without a C compiler, or without the headers of Python: it trains, and nothing is built."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support.nullgpu.commands import run, write_config
from support.nullgpu.device import PretendedGpu
from support.tiny_run import make_workplace

pytestmark = [pytest.mark.nullgpu, pytest.mark.slow]

COMPILERS = ("gcc", "g++", "cc", "c++", "clang", "x86_64-linux-gnu-")
WITHOUT_PYTHONS_HEADERS = """#!/usr/bin/env bash
for argument; do [[ $argument == *include/python* ]] || kept+=("$argument"); done
exec {compiler} "${{kept[@]}}"
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("compiler"))


def trains(workplace: Path, name: str, programs: Path) -> str:
    """The log of a run that finds no kernel built before, and only these programs."""
    caches = {variable: str(workplace / name) for variable in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}
    config = write_config(workplace, name, compile="auto", max_steps=2)
    command = ["-m", "gemfleet.train", config, "--out", f"out-{name}"]
    done = run(workplace, command, PretendedGpu(), {"PATH": str(programs), "CC": "", "CXX": "", **caches})
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def programs_but(folder: Path, left_out: tuple[str, ...]) -> Path:
    """A folder of links to every program of this machine but those that begin so."""
    places = [Path(place) for place in os.environ["PATH"].split(":") if Path(place).is_dir()]
    for program in (program for place in places for program in place.iterdir()):
        link = folder / program.name
        if not program.name.startswith(left_out) and not link.is_symlink():
            link.symlink_to(program)
    return folder


def test_without_a_compiler_nothing_is_built(workplace: Path, tmp_path: Path) -> None:
    told = trains(workplace, "no-compiler", programs_but(tmp_path, COMPILERS))
    assert "norms and GeGLU: torch; layers not compiled" in told


def test_without_pythons_headers_nothing_is_built(workplace: Path, tmp_path: Path) -> None:
    """A compiler that is never told where they are, as on a machine without python3-dev."""
    programs = programs_but(tmp_path, ("gcc", "cc", "clang"))
    (programs / "gcc").write_text(WITHOUT_PYTHONS_HEADERS.format(compiler=shutil.which("gcc")))
    (programs / "gcc").chmod(0o755)
    told = trains(workplace, "no-headers", programs)
    assert "norms and GeGLU: torch; layers not compiled" in told
