"""Where the time of one step goes: a trace for chrome://tracing or Perfetto, and a table of the dearest operators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

TABLE_ROWS = 30


@contextmanager
def profiled(target: Path | None) -> Iterator[None]:
    """Writes `<target>.trace.json.gz` and `<target>.operators.txt`; None: only takes part."""
    if target is None:
        yield
        return
    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        yield
    target.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(target.with_name(f"{target.name}.trace.json.gz")))
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=TABLE_ROWS, max_name_column_width=60)
    target.with_name(f"{target.name}.operators.txt").write_text(table + "\n", encoding="utf-8")
