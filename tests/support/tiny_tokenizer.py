"""A tokenizer of a few hundred tokens, trained in a second, with Gemma's control tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]


PICTURE = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}


def tiny_tokenizer(folder: Path, sees: bool = False) -> Any:
    """Save the tokenizer to `folder` and return it as a `PreTrainedTokenizerFast`. Any text encodes without `<unk>`.

    sees: it has the tokens of pictures, with the ids of `tiny_multimodal`
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=[*SPECIAL, *(["<unused0>", *PICTURE.values()] if sees else [])],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = ["the cat sat on the mat", "what is the answer to the question", "user model hello world how are you"]
    backend.train_from_iterator(words * 5, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=["<start_of_turn>", "<end_of_turn>"],
        **(PICTURE if sees else {}),
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
