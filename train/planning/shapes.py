"""The dimensions of a Gemma 3: the five published sizes, and those of any `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UserError

SLIDING = "sliding_attention"
SLIDING_PATTERN = 6  # five sliding layers to one global, if a configuration names no layer types
# transformers' defaults for keys that a file lacks, as the files of the published multimodal models do.
LEFT_OUT = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 4096,
    "vocab_size": 262_208,
}


@dataclass(frozen=True)
class VisionShape:
    """The SigLIP tower of a multimodal checkpoint. Training on text does not use it. soft_tokens: of a picture"""

    layers: int = 27
    hidden: int = 1152
    inner: int = 4304
    image_pixels: int = 896
    patch_pixels: int = 14
    soft_tokens: int = 256

    @property
    def patches(self) -> int:
        """Of one picture."""
        return (self.image_pixels // self.patch_pixels) ** 2


@dataclass(frozen=True)
class ModelShape:
    """inner: width of the MLP; window: tokens that a sliding layer sees; sliding_layers: number of such layers

    vision: None for text-only checkpoints; tied: whether the head is the embedding
    """

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int
    sliding_layers: int
    vocabulary: int
    vision: VisionShape | None = None
    tied: bool = True

    @property
    def queries(self) -> int:
        """The width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """The width of all key heads together. It is the values' width too."""
        return self.kv_heads * self.head_dim


def _published(
    name: str, layers: int, hidden: int, inner: int, heads: int, kv_heads: int, head_dim: int, window: int
) -> ModelShape:
    multimodal = name not in ("270m", "1b")
    return ModelShape(
        name=name,
        layers=layers,
        hidden=hidden,
        inner=inner,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        window=window,
        sliding_layers=layers - layers // SLIDING_PATTERN,
        vocabulary=262_208 if multimodal else 262_144,  # multimodal models have room for image tokens
        vision=VisionShape() if multimodal else None,
    )


# From the published config.json of google/gemma-3-{270m,1b,4b,12b,27b}-it.
SIZES: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        _published("270m", 18, 640, 2048, 4, 1, 256, 512),
        _published("1b", 26, 1152, 6912, 4, 1, 256, 512),
        _published("4b", 34, 2560, 10240, 8, 4, 256, 1024),
        _published("12b", 48, 3840, 15360, 16, 8, 256, 1024),
        _published("27b", 62, 5376, 21504, 32, 16, 128, 1024),
    )
}


def shape_of_config(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape that a Gemma 3 `config.json` describes. Raises UserError, which names a missing dimension."""
    text = {**LEFT_OUT, **config.get("text_config", config)}
    try:
        layers = int(text["num_hidden_layers"])
        kinds = text.get("layer_types")
        return ModelShape(
            name=name,
            layers=layers,
            hidden=int(text["hidden_size"]),
            inner=int(text["intermediate_size"]),
            heads=int(text["num_attention_heads"]),
            kv_heads=int(text["num_key_value_heads"]),
            head_dim=int(text["head_dim"]),
            window=int(text["sliding_window"]),
            sliding_layers=kinds.count(SLIDING) if kinds else layers - layers // _pattern(text),
            vocabulary=int(text["vocab_size"]),
            vision=_vision(config) if "vision_config" in config else None,
            tied=bool(config.get("tie_word_embeddings", True)),
        )
    except KeyError as error:
        raise UserError(
            f"the config.json of {name} has no {error.args[0]}, which the plan needs; "
            "save the model with a transformers release that writes Gemma 3's full configuration"
        ) from error


def _pattern(text: Mapping[str, Any]) -> int:
    return int(text.get("sliding_window_pattern") or text.get("_sliding_window_pattern") or SLIDING_PATTERN)


def _vision(multimodal: Mapping[str, Any]) -> VisionShape:
    config, default = multimodal["vision_config"], VisionShape()
    return VisionShape(
        layers=int(config.get("num_hidden_layers", default.layers)),
        hidden=int(config.get("hidden_size", default.hidden)),
        inner=int(config.get("intermediate_size", default.inner)),
        image_pixels=int(config.get("image_size", default.image_pixels)),
        patch_pixels=int(config.get("patch_size", default.patch_pixels)),
        soft_tokens=int(multimodal.get("mm_tokens_per_image", default.soft_tokens)),
    )
