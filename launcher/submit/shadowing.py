"""Refuses a working directory whose own files would be imported on the workers in place of what gemfleet needs.

Ray puts the driver's directory, or the job's working directory, in front of every worker's import path. Our own modules
live below the one name `gemfleet`, so a `train.py` or a `cluster/` of the user's does no harm; a `torch.py` does.
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
# Standard modules that no worker imports; `test` in particular is a common name for a folder.
NEVER_IMPORTED = frozenset({"antigravity", "idlelib", "lib2to3", "test", "this", "tkinter", "turtle", "turtledemo"})
OWN_PARTS = ("train", "cluster", "launcher", "benchmarks")


def refuse_shadowing(folder: Path) -> None:
    """Raise UserError naming every file of `folder` that would shadow a module the workers import."""
    found = shadowing_files(folder)
    if found:
        names = ", ".join(str(path) for path in found)
        raise UserError(
            f"the working directory {folder} has {names}, which Ray workers would import in place of the installed "
            f"module of that name; rename it or run from another directory"
        )


def shadowing_files(folder: Path) -> list[Path]:
    """The offending files and packages, relative to `folder`, sorted."""
    needed = (sys.stdlib_module_names | IMPORTED) - NEVER_IMPORTED
    found = [entry for entry in sorted(folder.iterdir()) if _module_name(entry) in needed or _replaces_us(entry)]
    return [entry.relative_to(folder) for entry in found]


def _module_name(entry: Path) -> str | None:
    """What `import` would call this file or package; None for anything else.

    A folder without `__init__.py` gives way to an installed package of its name, so it is harmless.
    """
    if entry.suffix == ".py" and entry.is_file():
        return entry.stem
    return entry.name if (entry / "__init__.py").is_file() else None


def _replaces_us(entry: Path) -> bool:
    """Whether `gemfleet` would come from here, rather than from where it is installed."""
    if _module_name(entry) == "gemfleet":
        return True
    if entry.name != "gemfleet" or not entry.is_dir():
        return False
    installed = Path(__file__).resolve().parents[2]
    parts = [part for part in OWN_PARTS if (entry / part).is_dir() or (entry / f"{part}.py").is_file()]
    return any((entry / part).resolve() != installed / part for part in parts)
