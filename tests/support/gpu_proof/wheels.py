"""`python -m support.gpu_proof.wheels DIR`: collect what a machine with torch and transformers lacks.

For machines without network: their Python gets these wheels beside its own packages (`WHEELS=DIR .ci/gpu-proof`).
Versions are those of constraints.txt. bitsandbytes brings a library for each CUDA; only the one asked for is kept.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LIMIT = 60 * 2**20
PACKAGES = (
    *("pydantic", "pydantic_core", "annotated-types", "typing_extensions", "typing-inspection"),
    *("deepspeed", "hjson", "bitsandbytes", "liger_kernel", "peft"),
    *("einops", "msgpack", "ninja", "py-cpuinfo"),  # of deepspeed
    *("pytest", "pluggy", "iniconfig"),
)
FROM_SOURCE = ("deepspeed",)  # has no wheel; without its kernels it is plain Python
GLIBC = (17, 24, 26, 27, 28, 31, 34)


def main() -> int:
    """Fill the folder; 1 where it is too large to be carried."""
    arguments = _arguments()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    pins = pinned(arguments.constraints)
    for name in PACKAGES:
        requirement = f"{name}=={pins[name]}" if name in pins else name
        if name in FROM_SOURCE:
            _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), requirement)
        else:
            _pip("download", *platform(arguments.python), "--dest", str(folder), requirement)
    for wheel in folder.glob("bitsandbytes-*.whl"):
        keep_one_cuda(wheel, arguments.cuda)
    return report(folder)


def pinned(constraints: Path) -> dict[str, str]:
    """Versions by name."""
    lines = constraints.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))


def platform(python: str) -> list[str]:
    """pip's options for wheels of another machine: x86-64 Linux."""
    tags = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC] + ["manylinux2014_x86_64"]
    options = [option for tag in tags for option in ("--platform", tag)]
    return ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp", *options]


def keep_one_cuda(wheel: Path, cuda: str) -> None:
    """Leave libraries of other CUDA versions out of the wheel and of its list of files."""

    def wanted(name: str) -> bool:
        found = re.search(r"libbitsandbytes_(cuda\d+|rocm\d+|xpu\d*)", name)
        return found is None or found[1] == f"cuda{cuda}"

    with tempfile.TemporaryDirectory(dir=wheel.parent) as work, zipfile.ZipFile(wheel) as old:
        smaller = Path(work) / wheel.name
        with zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as new:
            for entry in old.infolist():
                if entry.filename.endswith(".dist-info/RECORD"):
                    lines = old.read(entry).decode().splitlines(keepends=True)
                    new.writestr(entry, "".join(line for line in lines if wanted(line)))
                elif wanted(entry.filename):
                    new.writestr(entry, old.read(entry))
        if not any(f"_cuda{cuda}." in name for name in zipfile.ZipFile(smaller).namelist()):
            raise SystemExit(f"Error: {wheel.name} has no library for CUDA {cuda}; give another --cuda")
        smaller.replace(wheel)


def report(folder: Path) -> int:
    """Print what there is; 1 above the limit."""
    wheels = sorted(folder.glob("*.whl"))
    total = sum(wheel.stat().st_size for wheel in wheels)
    for wheel in wheels:
        print(f"{wheel.stat().st_size / 2**20:6.1f} MiB  {wheel.name}")
    print(f"{total / 2**20:6.1f} MiB in all, of at most {LIMIT / 2**20:g}")
    return 1 if total > LIMIT else 0


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check", "--quiet"], check=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu-wheels", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the wheels go")
    parser.add_argument("--python", default="3.12", help="of the machine that is to use them (default: 3.12)")
    parser.add_argument("--cuda", default="130", help="of its torch, without the dot (default: 130)")
    parser.add_argument("--constraints", type=Path, default=Path("constraints.txt"), help="versions to take")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
