"""The SigLIP tower of a multimodal Gemma 3: from pixels to what the projector reads. It is frozen, and never quantised.

It takes one picture at a time: of 4,096 patches, that fills a device, and a picture's numbers do not depend on those
beside it, as they might in a larger batch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UserError
from ..base_check import gemma_config
from ..weight_files import StoredTensor, stored_tensors

PROCESSOR_FILE = "preprocessor_config.json"
# transformers' defaults for Gemma3ImageProcessor.
RESCALE, MEAN, STD = 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
TOWER_NAMES = ("model.vision_tower.", "vision_tower.", "vision_tower.vision_model.", "model.vision_tower.vision_model.")
PROJECTOR_NAMES = ("model.multi_modal_projector.", "multi_modal_projector.")


class Tower(nn.Module):
    """Normalisation, the tower, and the mean over neighbouring patches, which has no parameters."""

    def __init__(self, config: Any, rescale: float, mean: Tensor, std: Tensor) -> None:
        """config: of the multimodal model; rescale, mean, std: of the processor; [3] each, by channel"""
        super().__init__()
        from transformers import SiglipVisionModel

        vision = config.vision_config
        self.model = SiglipVisionModel._from_config(vision)
        self.side = vision.image_size // vision.patch_size
        self.stride = self.side // int(config.mm_tokens_per_image**0.5)
        self.rescale = rescale
        self.mean, self.std = nn.Buffer(mean.view(3, 1, 1)), nn.Buffer(std.view(3, 1, 1))

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [3, H, W] -> [soft tokens, the tower's width], in the tower's dtype."""
        normal = (pixels.float() * self.rescale - self.mean.float()) / self.std.float()
        states: Tensor = self.model(pixel_values=normal[None].to(self.model.dtype)).last_hidden_state
        grid = states.transpose(1, 2).reshape(1, -1, self.side, self.side).contiguous()
        return nn.functional.avg_pool2d(grid, self.stride).flatten(2)[0].T.contiguous()


class Projector(nn.Module):
    """The rest of transformers' `Gemma3MultiModalProjector`, after its mean, with its names of parameters."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

        vision = config.vision_config
        shape = vision.hidden_size, config.text_config.hidden_size
        self.mm_input_projection_weight = nn.Parameter(torch.zeros(shape))
        self.mm_soft_emb_norm = Gemma3RMSNorm(vision.hidden_size, eps=vision.layer_norm_eps)

    def forward(self, states: Tensor) -> Tensor:
        """[…, the tower's width] -> […, hidden size]"""
        normed = self.mm_soft_emb_norm(states)
        return torch.matmul(normed, self.mm_input_projection_weight.to(normed.dtype))


def load_tower(folder: Path, dtype: torch.dtype, device: torch.device) -> Tower:
    """The tower of a checked model folder, on a device."""
    tower = Tower(gemma_config(folder), *_normalisation(folder))
    _fill(tower.model, folder, TOWER_NAMES)
    return tower.to(device, dtype).requires_grad_(False).eval()


def load_projector(folder: Path, dtype: torch.dtype, device: torch.device) -> Projector:
    """The projector of a checked model folder, on a device, frozen."""
    projector = Projector(gemma_config(folder))
    _fill(projector, folder, PROJECTOR_NAMES)
    return projector.to(device, dtype).requires_grad_(False)


def _normalisation(folder: Path) -> tuple[float, Tensor, Tensor]:
    """The factor, the means and the deviations of the folder's processor."""
    path = folder / PROCESSOR_FILE
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    mean, std = (values.get(key, default) for key, default in (("image_mean", MEAN), ("image_std", STD)))
    return float(values.get("rescale_factor", RESCALE)), torch.tensor(mean), torch.tensor(std)


def _fill(module: nn.Module, folder: Path, prefixes: tuple[str, ...]) -> None:
    """Reads all parameters of a module. Raises UserError for one that the files lack, or have in another shape."""
    from safetensors import safe_open

    for name, parameter, stored in _stored(module, folder, prefixes):
        if stored is None or stored.shape != tuple(parameter.shape):
            what = "lacks" if stored is None else "has in another shape"
            raise UserError(
                f"the model folder {folder} {what} the weight {prefixes[0]}{name}, which pictures need; "
                "fetch the model folder again"
            )
        with safe_open(stored.file, framework="pt") as file:
            parameter.data = file.get_tensor(stored.name).to(parameter.dtype)


def _stored(
    module: nn.Module, folder: Path, prefixes: tuple[str, ...]
) -> Iterator[tuple[str, nn.Parameter, StoredTensor | None]]:
    stored = stored_tensors(folder)
    for name, parameter in module.named_parameters():
        yield name, parameter, next((stored[p + name] for p in prefixes if p + name in stored), None)
