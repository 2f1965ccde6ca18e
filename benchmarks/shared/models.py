"""Where the weights of a size come from: the packaged 270M, a folder of the user's, or random ones made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gemfleet.train.config.home import gemfleet_home
from gemfleet.train.planning import SIZES, ModelShape

WIDTHS: Any = {"hidden": 128, "inner": 512, "heads": 4, "kv_heads": 1, "head_dim": 32}
TINY = ModelShape(name="tiny", layers=4, window=128, sliding_layers=4, vocabulary=4096, **WIDTHS)
SHAPES = {"tiny": TINY, **SIZES}
REAL = "270m"  # the one size whose weights come with a package
PACKAGED = "Gemma 3 270M (packaged)"


def model_folder(model: str, given: Path | None) -> Path:
    """The folder of a size's weights, made if need be. `given`: used for `270m` in place of the packaged one. Random
    weights train at the speed of real ones; only their loss says less."""
    if model == REAL:
        return given.resolve() if given else packaged()
    folder = gemfleet_home() / "cache" / "bench" / f"random-{model}"
    if not (folder / "complete").exists():
        import torch

        from .random_base import random_base

        random_base(SHAPES[model], torch.bfloat16).save_pretrained(folder)
        (folder / "complete").touch()
    return folder


def packaged() -> Path:
    """UserError with a remedy where the demonstration's packages are not installed."""
    from gemfleet.train.data.demo import demo_model_folder

    return Path(demo_model_folder())
