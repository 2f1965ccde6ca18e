"""Refuses a working directory with files that ranks would import in place of modules that gemfleet needs.

Ray puts the driver's directory, or the job's working directory, first into the import path of all its processes. Our
modules all live below `gemfleet`, so a user's `train.py` or `cluster/` does no harm, but a `torch.py` does.
"""

from __future__ import annotations

import sys
from pathlib import Path

from gemfleet.train.errors import UserError

IMPORTED = frozenset(
    """accelerate bitsandbytes datasets deepspeed fsspec gguf google grpc huggingface_hub jinja2 msgpack numpy packaging
    pandas peft plotly psutil pyarrow pydantic pydantic_core ray requests rich safetensors tensorboard tokenizers torch
    tqdm transformers typer yaml""".split()  # noqa: SIM905
)
# Standard modules that no rank imports. `test` in particular is a common name for a folder.
NEVER_IMPORTED = frozenset({"antigravity", "idlelib", "lib2to3", "test", "this", "tkinter", "turtle", "turtledemo"})
OWN_PARTS = ("train", "cluster", "launcher", "benchmarks")


def refuse_shadowing(folder: Path) -> None:
    """Raise UserError with all files of `folder` that would shadow a module that ranks import."""
    found = shadowing_files(folder)
    if found:
        names = ", ".join(str(path) for path in found)
        raise UserError(
            f"the working directory {folder} has {names}, which ranks would import in place of the installed "
            f"module of that name; rename it or run from another directory"
        )


def shadowing_files(folder: Path) -> list[Path]:
    """The files and packages that would shadow a module, relative to `folder` and sorted."""
    needed = (sys.stdlib_module_names | IMPORTED) - NEVER_IMPORTED
    found = [entry for entry in sorted(folder.iterdir()) if _module_name(entry) in needed or _replaces_us(entry)]
    return [entry.relative_to(folder) for entry in found]


def _module_name(entry: Path) -> str | None:
    """The name by which `import` would find this file or package. None for anything else.

    A folder without `__init__.py` is harmless: an installed package of its name comes first.
    """
    if entry.suffix == ".py" and entry.is_file():
        return entry.stem
    return entry.name if (entry / "__init__.py").is_file() else None


def _replaces_us(entry: Path) -> bool:
    """Whether `gemfleet` would be imported from this entry, rather than from where it is installed."""
    if _module_name(entry) == "gemfleet":
        return True
    if entry.name != "gemfleet" or not entry.is_dir():
        return False
    installed = Path(__file__).resolve().parents[2]
    parts = [part for part in OWN_PARTS if (entry / part).is_dir() or (entry / f"{part}.py").is_file()]
    return any((entry / part).resolve() != installed / part for part in parts)
