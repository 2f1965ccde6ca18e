"""Keeps lines of other libraries out of logs and terminals that come up in every run and ask nothing of anybody."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# The logger that says it, and how the line begins.
KNOWN_LINES = (
    ("DeepSpeed", "Setting accelerator to CPU"),
    # Said where bitsandbytes is imported: a product in 4 bits for CPUs. Here weights are made dense first
    # (quantization.py), so that product is never called.
    ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward from kernels-community"),
)


def hide_known_lines(lines: Iterable[tuple[str, str]] = KNOWN_LINES) -> None:
    """Add a filter for each line to its own logger; everything else those loggers say is still shown.

    To be called before the libraries are imported, as some speak while they are.
    """
    for name, beginning in lines:
        logger = logging.getLogger(name)
        if HidesLine(beginning) not in logger.filters:
            logger.addFilter(HidesLine(beginning))


class HidesLine(logging.Filter):
    """Drops records whose text begins so."""

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
    """They come back afterwards, if they were on."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
