"""What a device or a model cannot do is refused with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gemfleet.train.errors import UserError
from gemfleet.train.kernels.attention.packed import check_attention
from gemfleet.train.model.resolve import check_context, model_context
from support.tiny_model import save_tiny_gemma3


def test_flash_attention_without_its_kernel_is_refused() -> None:
    check_attention("auto", torch.device("cpu"), torch.bfloat16)
    with pytest.raises(UserError, match="is flash, but cpu has no such kernel"):
        check_attention("flash", torch.device("cpu"), torch.bfloat16)
    with pytest.raises(UserError, match="the data have pictures, whose tokens see later ones"):
        check_attention("flash", torch.device("cuda"), torch.bfloat16, pictures=True)


def test_rows_longer_than_the_context_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_gemma3(tmp_path)
    assert model_context(folder) == 4096
    check_context(folder, 4096)
    with pytest.raises(UserError, match=r"max_length is 4097, but the model in .* was made for 4096 tokens"):
        check_context(folder, 4097)
