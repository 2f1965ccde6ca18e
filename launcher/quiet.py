"""Keeps two lines of other libraries off the terminal that come up in every run and ask nothing of anybody."""

from __future__ import annotations

import logging

# The logger that says it, and how the line begins.
KNOWN_LINES = (
    ("ray._private.authentication.authentication_token_setup", "Token authentication is enabled"),
    ("DeepSpeed", "Setting accelerator to CPU"),
)


def hide_known_lines() -> None:
    """Add a filter for each line to its own logger; everything else those loggers say is still shown."""
    for name, beginning in KNOWN_LINES:
        logger = logging.getLogger(name)
        if not any(isinstance(entry, HidesLine) for entry in logger.filters):
            logger.addFilter(HidesLine(beginning))


class HidesLine(logging.Filter):
    """Drops records whose text begins so."""

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self._beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._beginning)
