"""The table of suites. A suite's folder has `suite.py` with its `SUITE`, and is imported only where it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

SUITES = {
    "peers": "one LoRA training step of gemfleet beside TRL, transformers and plain PyTorch",
    "throughput": "tokens per second, MFU and memory of training, by size, strategy, precision, length and batch",
    "scaling": "weak and strong scaling over workers of this machine, and bytes on the wire",
    "launch": "from `gemfleet train`, `resume` and the loss of a rank to the next step, and where that time goes",
    "faults": "what a fault in the middle of a run costs: steps, seconds, share of the time that went into training",
    "plan": "the memory that the plan foretells against the memory that training takes",
    "batch-finder": "finding the micro-batch: time, trials, and what was chosen beside every size and accelerate",
    "checkpoint": "what saving costs a step, and throughput into the head beside a plain socket copy",
    "api": "how long the status API takes to answer under load, and what watching costs a run",
}
TOOLS = {
    "report": "records as one HTML page, Markdown and pictures",
    "compare": "two sets of records: what regressed, what improved, what is noise",
}


def load(name: str) -> Any:
    """A suite or a tool: `add_arguments(parser)`, `run(options)`; a suite's `section(records)` too."""
    return importlib.import_module(f"gemfleet.benchmarks.{name.replace('-', '_')}.suite").SUITE
