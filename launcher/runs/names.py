"""Makes the ids of runs."""

from __future__ import annotations

import secrets
import time


def new_run_id(name: str) -> str:
    """`<name>-<yyyymmdd-hhmmss>-<4 random>`, safe as a folder's name."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name).strip("-.") or "run"
    return f"{safe[:64]}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
