"""Recognises that memory ran out, whatever a library raises, and holds a CPU rank to its limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..config.sections.sharing import BatchConfig
from .memory import peak_resident_bytes

if TYPE_CHECKING:
    import torch

TRAINING, EVALUATION = "train.batch.micro", "train.evaluation.micro"  # the fields that set the number of rows in a pass
PHRASES = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


class MemoryLimitError(MemoryError):
    """A rank used more than `train.batch.device_memory_limit`."""


class OutOfMemoryError(RuntimeError):
    """Memory ran out on a rank that had `micro` rows in a pass. `field` sets that number."""

    def __init__(self, micro: int, detail: str, field: str = TRAINING) -> None:
        super().__init__(micro, detail, field)
        self.micro, self.detail, self.field = micro, detail, field

    def __str__(self) -> str:
        return f"out of memory with {self.micro} rows in a pass ({self.detail}); {remedy(self.micro, self.field)}"


def remedy(micro: int, field: str = TRAINING) -> str:
    """What a person can change, in a sentence."""
    if micro > 1:
        return f"lower {field}, for instance to {micro // 2}: it changes no result"
    return (
        "one row is the least there is: lower train.data.max_length or train.loss_chunk_rows; set "
        "train.activation_checkpointing: full; let ranks share each pass (train.context_parallel); divide the base "
        "among ranks (train.strategy: fsdp2, with train.fsdp2.cpu_offload: true if need be) or quantise it "
        "(train.quantization: int4), or both; or train on devices with more memory"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that this rank ran out of memory."""
    import torch  # not above: the launcher knows these errors, and does not compute

    if isinstance(error, (MemoryError, torch.OutOfMemoryError, OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in PHRASES)


@contextmanager
def told_out_of_memory(micro: int, field: str = TRAINING) -> Iterator[None]:
    """Turns any exception that means "out of memory" into an OutOfMemoryError that knows the micro-batch."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(micro, f"{type(error).__name__}: {error}"[:500], field) from error


def apply_memory_limit(batch: BatchConfig, device: torch.device) -> None:
    """Makes CUDA refuse memory beyond the limit, if there is one."""
    import torch

    if batch.memory_limit_bytes is not None and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, batch.memory_limit_bytes / total), device)


def check_memory_limit(batch: BatchConfig) -> None:
    """Raises MemoryLimitError if this rank's resident set has been above the limit. On a GPU, CUDA itself refuses."""
    import torch

    limit = batch.memory_limit_bytes
    if limit is None or torch.cuda.is_available():
        return
    peak = peak_resident_bytes()
    if peak > limit:
        raise MemoryLimitError(f"{peak} bytes resident, train.batch.device_memory_limit is {limit}")
