"""What activation checkpointing keeps of a forward pass, against the CPU allocator's own count."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gemfleet.benchmarks.shared.random_base import random_model
from gemfleet.train.batch_finder.probes.probe import worst_rows
from gemfleet.train.kernels.activation_checkpointing import checkpoint_layers
from gemfleet.train.kernels.fused.library import library
from gemfleet.train.planning import SIZES, Sharing, Workload
from gemfleet.train.planning.memory import activation_bytes, logits_bytes
from gemfleet.train.planning.options import CHECKPOINTING, Checkpointing
from torch.profiler import ProfilerActivity, profile

TOKENS = 256


@pytest.mark.parametrize("mode", CHECKPOINTING)
def test_a_forward_pass_keeps_what_the_plan_says(mode: Checkpointing, tmp_path: Path) -> None:
    shape = replace(SIZES["270m"], layers=6, sliding_layers=5, vocabulary=2000)
    model = random_model(shape, torch.bfloat16)
    checkpoint_layers(model.layers, mode)
    rows = worst_rows(1, TOKENS, shape.vocabulary)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        loss = model.loss_sum(rows)
    trace = tmp_path / "trace.json"
    profiled.export_chrome_trace(str(trace))
    changes = [e["args"]["Bytes"] for e in json.loads(trace.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    kept = activation_bytes(shape, Workload(length=TOKENS), Sharing("ddp", mode), "cpu")
    assert loss.requires_grad  # and so is still holding what it kept
    loss_alone = Workload(fused=library() is not None)
    assert sum(changes) == pytest.approx(kept + logits_bytes(shape, loss_alone, "cpu"), rel=0.01)
