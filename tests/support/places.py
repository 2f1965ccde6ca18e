"""Where things lie in this checkout."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
REPOSITORY = TESTS.parent
EXAMPLES = REPOSITORY / "examples"
RESULTS = REPOSITORY / "benchmarks" / "results"
