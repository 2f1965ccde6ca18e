"""The SigLIP tower of a multimodal Gemma 3: from pixels to what the projector reads. It is frozen, and never quantised.

It takes one picture at a time: of 4,096 patches, that fills a device, and a picture's numbers do not depend on those
beside it, as they might in a larger batch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...data.pictures.format import PictureFormat
from ...errors import UserError
from ..base_check import gemma_config
from ..multimodal import VISION_MODULES
from ..weight_files import stored_tensors

TOWER_NAMES = ("model.vision_tower.", "vision_tower.", "vision_tower.vision_model.", "model.vision_tower.vision_model.")
PROJECTOR_NAMES = ("model.multi_modal_projector.", "multi_modal_projector.")


def normalised(pixels: Tensor, shown: PictureFormat) -> Tensor:
    """uint8 […, 3, H, W] -> fp32, as the model's processor makes it."""
    mean, std = (torch.tensor(value, device=pixels.device).view(3, 1, 1) for value in (shown.mean, shown.std))
    return (pixels.float() * shown.scale - mean) / std


def format_of(folder: Path) -> PictureFormat:
    """What the multimodal base in a folder wants of a picture. Raises UserError for a base that does not see."""
    shown = PictureFormat.of(folder)
    if shown is None:
        raise UserError(f"the data hold pictures, which the model in {folder} does not see; 4B, 12B and 27B do")
    return shown


class Tower(nn.Module):
    """Normalisation, the tower, and the mean over neighbouring patches, which has no parameters."""

    def __init__(self, config: Any, shown: PictureFormat) -> None:
        """config: of the multimodal model"""
        super().__init__()
        from transformers import SiglipVisionModel

        vision = config.vision_config
        self.model: Any = SiglipVisionModel._from_config(vision)
        self.side = vision.image_size // vision.patch_size
        self.stride = self.side // int(config.mm_tokens_per_image**0.5)
        self.shown = shown

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [3, H, W] -> [soft tokens, the tower's width], in the tower's dtype."""
        normal = normalised(pixels, self.shown)[None].to(self.model.dtype)
        states: Tensor = self.model(pixel_values=normal).last_hidden_state
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
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        tower = Tower(gemma_config(folder), format_of(folder))
    _fill(tower.model, folder, TOWER_NAMES, dtype)
    return tower.to(device, dtype).eval()


def load_projector(folder: Path, dtype: torch.dtype, device: torch.device) -> Projector:
    """The projector of a checked model folder, on a device, frozen."""
    projector = Projector(gemma_config(folder))
    _fill(projector, folder, PROJECTOR_NAMES, dtype)
    return projector.to(device, dtype)


def give_eyes(model: Any, folder: Path, dtype: torch.dtype) -> None:
    """Puts tower and projector into the text part of a multimodal model, which then is transformers' whole model."""
    from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector

    device = model.lm_head.weight.device
    tower, projector = load_tower(folder, dtype, device), Gemma3MultiModalProjector(model.config)
    _fill(projector, folder, PROJECTOR_NAMES, dtype)
    model.model.vision_tower, model.model.multi_modal_projector = tower.model, projector.to(device, dtype)


def give_eyes_if_trained(model: Any, folder: Path, adapter: Path, dtype: torch.dtype) -> None:
    """`give_eyes` where an adapter's folder holds a projector too, which peft puts in the place of the base's.

    peft tells what is wrong with a folder that has no readable configuration.
    """
    try:
        found = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(found, dict) and VISION_MODULES[1] in (found.get("modules_to_save") or ()):
        give_eyes(model, folder, dtype)


def _fill(module: nn.Module, folder: Path, prefixes: tuple[str, ...], dtype: torch.dtype) -> None:
    """Reads all parameters of a module, frozen. Raises UserError for one that the files lack, or in another shape."""
    from safetensors import safe_open

    tensors = stored_tensors(folder)
    for name, parameter in list(module.named_parameters()):
        stored = next((tensors[prefix + name] for prefix in prefixes if prefix + name in tensors), None)
        if stored is None or stored.shape != tuple(parameter.shape):
            what = "lacks" if stored is None else "has in another shape"
            raise UserError(
                f"the model folder {folder} {what} the weight {prefixes[0]}{name}, which pictures need; "
                "fetch the model folder again"
            )
        owner, _, leaf = name.rpartition(".")
        with safe_open(stored.file, framework="pt") as file:
            read = nn.Parameter(file.get_tensor(stored.name).to(dtype), requires_grad=False)
        module.get_submodule(owner)._parameters[leaf] = read
