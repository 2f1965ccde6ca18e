"""What a base that sees wants of a picture: its size in pixels, its tokens, and how its pixels become numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")  # of transformers 5, and of older ones
BILINEAR = 2
HALVES = (0.5, 0.5, 0.5)
# What a processor may do to a picture, and whether gemfleet does. Crops are those of pan and scan.
STEPS = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_pan_and_scan": False}


@dataclass(frozen=True)
class PictureFormat:
    """The pictures of one base.

    size: height and width in pixels; resample: the filter that resizes, by Pillow's number
    begin, soft, end: token ids; a picture is `begin`, `count` times `soft`, `end`
    scale, mean, std: a pixel becomes (pixel * scale - mean) / std, channel by channel
    refusal: why no picture can be prepared for it, a sentence; empty: they can
    """

    size: tuple[int, int]
    count: int
    begin: int
    soft: int
    end: int
    resample: int = BILINEAR
    scale: float = 1 / 255
    mean: tuple[float, ...] = HALVES
    std: tuple[float, ...] = HALVES
    refusal: str = ""

    @property
    def tokens(self) -> list[int]:
        """The ids of a picture, without the line ends around it."""
        return [self.begin, *[self.soft] * self.count, self.end]

    @staticmethod
    def of(folder: Path) -> PictureFormat | None:
        """The format of a model's folder; None for a base that does not see, or that has no config.json yet.

        Without the settings of a processor, they are those of Gemma 3. Raises UserError for files that are no JSON.
        """
        config = _read(folder / "config.json")
        vision = config.get("vision_config")
        if config.get("model_type") != "gemma3" or not isinstance(vision, dict):
            return None
        settings = _settings(folder)
        side = int(vision.get("image_size", 896))
        resample = settings.get("resample")
        return PictureFormat(
            (side, side),
            int(config.get("mm_tokens_per_image", 256)),
            int(config.get("boi_token_index", 255_999)),
            int(config.get("image_token_index", 262_144)),
            int(config.get("eoi_token_index", 256_000)),
            BILINEAR if resample is None else int(resample),
            float(settings.get("rescale_factor") or 1 / 255),
            tuple(settings.get("image_mean") or HALVES),
            tuple(settings.get("image_std") or HALVES),
            _refusal(folder, settings, side),
        )


def _refusal(folder: Path, settings: Mapping[str, Any], side: int) -> str:
    """Why the pictures of a base are not prepared as its processor does. side: what its model sees, in pixels"""
    size = settings.get("size") or {}
    height, width = size.get("height", side), size.get("width", side)
    if (height, width) != (side, side):
        return (
            f"the processor in {folder} resizes pictures to {height} x {width} pixels, but its model sees "
            f"{side} x {side}; fetch the model folder again"
        )
    other = next((name for name, ours in STEPS.items() if settings.get(name) not in (ours, None)), None)
    if other is None:
        return ""
    return (
        f"the processor in {folder} has {other} {str(settings[other]).lower()}, with which gemfleet prepares no "
        f"pictures; set it to {str(STEPS[other]).lower()} there, as in Gemma 3's own"
    )


def _settings(folder: Path) -> dict[str, Any]:
    """Those of the image processor, which a processor's file has inside."""
    for name in PROCESSOR_FILES:
        found = _read(folder / name)
        inner = found.get("image_processor", found)
        if isinstance(inner, dict) and ("size" in inner or "image_mean" in inner):
            return inner
    return {}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); fetch the model folder again") from error
    return content if isinstance(content, dict) else {}
