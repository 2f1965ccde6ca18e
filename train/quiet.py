"""Hides lines of other libraries that appear in every run and need no action."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# The logger, and the beginning of its line.
KNOWN_LINES = (
    ("DeepSpeed", "Setting accelerator to CPU"),
    # An import of bitsandbytes logs it, about a 4-bit product for CPUs. Here weights are made dense first
    # (train/kernels/quantization.py), so nothing calls that product.
    ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward from kernels-community"),
)


def hide_known_lines(lines: Iterable[tuple[str, str]] = KNOWN_LINES) -> None:
    """Adds a filter for each line to its logger. All other lines of these loggers stay.

    It must be called before the libraries are imported, as some log during their import.
    """
    for name, beginning in lines:
        logger = logging.getLogger(name)
        if HidesLine(beginning) not in logger.filters:
            logger.addFilter(HidesLine(beginning))


class HidesLine(logging.Filter):
    """Drops log records whose text has this beginning."""

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self._beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._beginning)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HidesLine) and other._beginning == self._beginning

    def __hash__(self) -> int:
        return hash(self._beginning)


@contextmanager
def without_bars() -> Iterator[None]:
    """Hides transformers' progress bars, and restores their setting at the end."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
