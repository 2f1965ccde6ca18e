"""What the proof tells the tests of `tests/gpu` that it starts, by one environment variable."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

VARIABLE = "GEMFLEET_GPU_PROOF"


@dataclass(frozen=True)
class Settings:
    """device: `cpu` or `cuda`; quick: tiny shapes; numbers: whether figures made of computed numbers are judged."""

    device: str = "cuda"
    quick: bool = False
    numbers: bool = True

    def variable(self) -> dict[str, str]:
        return {VARIABLE: json.dumps(asdict(self))}


# None: the tests run on their own, at full size on this machine's GPU, and tell pytest alone.
SETTINGS = Settings(**json.loads(os.environ[VARIABLE])) if VARIABLE in os.environ else None
