"""How a multimodal Gemma 3 sees: features of the pictures take the places of their soft tokens' embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...interfaces import Ints
from ..base_check import gemma_config
from .features import PictureFeatures, PictureSource
from .tower import format_of, load_projector, load_tower


class Sight:
    """The projector, and what it projects, for one rank.

    soft_tokens: tokens of one picture; trained: whether the projector is
    """

    def __init__(self, projector: nn.Module, features: PictureFeatures, soft_tokens: int, trained: bool) -> None:
        self.projector, self.features, self.soft_tokens, self.trained = projector, features, soft_tokens, trained
        self._now: tuple[Tensor, Tensor] | None = None

    def attach(self, model: Any, embedding: nn.Module) -> None:
        """Has the embedding of a model with adapters put pictures in their places.

        A hook works under every strategy: some gather the embedding only inside its module's forward.
        """
        embedding.register_forward_hook(self._place)
        if self.trained:
            self.projector = model.model.multi_modal_projector  # peft's copy, which is trained

    @contextmanager
    def on(self, ids: Ints, places: Tensor | None) -> Iterator[None]:
        """In this block the model's next forward sees these pictures. ids, places: see `PassInputs`"""
        if places is not None:
            self._now = places, self.projector(self.features.of(ids)).flatten(0, 1)
        try:
            yield
        finally:
            self._now = None

    def _place(self, embedding: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:
        """embedded: [1, T, hidden size]. Features are not scaled, as words' embeddings are."""
        if self._now is None:
            # Backward passes the embedding as on ranks with pictures: under ZeRO-3 all of them gather it, or none.
            return embedded.requires_grad_() if self.trained and torch.is_grad_enabled() else embedded
        places, features = self._now
        return embedded.index_copy(1, places, features[None].to(embedded.dtype))


def load_sight(
    folder: Path, source: PictureSource, dtype: torch.dtype, device: torch.device, trained: bool = False
) -> Sight:
    """For the pictures of a run, with the projector of a checked multimodal model. The tower is loaded when needed."""
    tokens = format_of(folder).count
    shape = tokens, gemma_config(folder).vision_config.hidden_size
    load = partial(load_tower, folder, dtype, device)
    features = PictureFeatures(load, source.pixels, shape, dtype, device)
    return Sight(load_projector(folder, dtype, device), features, tokens, trained)
