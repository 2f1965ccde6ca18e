"""The base of multimodal Gemma 3 checkpoints (4B, 12B, 27B) without the tower, which `vision/` loads for pictures.

Modules keep their names in `Gemma3ForConditionalGeneration`, so that class loads the trained adapters. Only the
language model below it is called, which needs no `token_type_ids`: they tell where images are.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

VISION_MODULES = ("vision_tower", "multi_modal_projector")


@cache
def text_part_class() -> Any:
    """`Gemma3ForConditionalGeneration` without the modules that only images use."""
    from transformers import Gemma3ForConditionalGeneration

    class TextPartOfGemma3(Gemma3ForConditionalGeneration):
        _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = list(VISION_MODULES)

        def __init__(self, config: Any) -> None:
            super().__init__(config)  # while loading it is on the meta device and allocates nothing
            for name in VISION_MODULES:
                delattr(self.model, name)

        @classmethod
        def is_custom_code(cls) -> bool:
            """False, so that the library translates older names of weights as it does for its own class."""
            return False

    return TextPartOfGemma3


def base_model_class(config: Any) -> Any:
    """The transformers class to train for a Gemma 3 configuration. For a multimodal one, it is the text part."""
    from transformers import Gemma3ForCausalLM

    return text_part_class() if config.model_type == "gemma3" else Gemma3ForCausalLM
