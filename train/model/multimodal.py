"""Multimodal Gemma 3 checkpoints (4B, 12B, 27B), trained on text: the vision tower is never loaded.

The module tree keeps the names of `Gemma3ForConditionalGeneration`, so adapters trained here load onto that class.
`token_type_ids`, which tell it where images are, are not needed: only the language model below it is called.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

VISION_MODULES = ("vision_tower", "multi_modal_projector")


@cache
def text_part_class() -> Any:
    """`Gemma3ForConditionalGeneration` without the modules that only images pass through."""
    from transformers import Gemma3ForConditionalGeneration

    class TextPartOfGemma3(Gemma3ForConditionalGeneration):
        _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = list(VISION_MODULES)

        def __init__(self, config: Any) -> None:
            super().__init__(config)  # on the meta device when loading, so that nothing is allocated here
            for name in VISION_MODULES:
                delattr(self.model, name)

        @classmethod
        def is_custom_code(cls) -> bool:
            """False: older names of the checkpoint's weights are to be translated as for the library's own class."""
            return False

    return TextPartOfGemma3


def base_model_class(config: Any) -> Any:
    """The transformers class that trains a Gemma 3 configuration; of a multimodal one, its text part."""
    from transformers import Gemma3ForCausalLM

    return text_part_class() if config.model_type == "gemma3" else Gemma3ForCausalLM
