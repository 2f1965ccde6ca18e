"""Says how long the plan expects the training of counted data to take."""

from __future__ import annotations

import shutil
from dataclasses import replace

from gemfleet.launcher.config.cluster import ranks_of
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.launcher.data_view.view import Epoch
from gemfleet.train.errors import UserError
from gemfleet.train.planning import Device, Fleet

UNKNOWN = "not known: {why}; `--gpu NAME` plans for such GPUs, and a run with train.max_steps=5 measures its own speed"


def training_time(config: LaunchConfig, epoch: Epoch, gpu: str | None = None) -> str:
    """A sentence with the time of the whole run. gpu: of each rank; None: the GPUs of this machine, if it trains here.

    Raises UserError for a `gpu` that is not in the plan's table.
    """
    if gpu is None and shutil.which("nvidia-smi") is None:
        here = config.cluster.address in ("auto", "local")
        return UNKNOWN.format(why="the plan knows no speed of CPUs" if here else "this machine is not the cluster")
    from .fleet_question import find_device  # imports torch, which takes seconds

    device, count = (find_device(gpu), 0) if gpu is not None else _gpus_here()
    if device is None:
        return UNKNOWN.format(why="this machine has no GPU that the plan's table lists")
    size = config.ranks_for_each_pass
    return _sentence(config, epoch, device, ranks_of(config.cluster.workers) or max(size, count - count % size))


def _gpus_here() -> tuple[Device | None, int]:
    """The data sheet of this machine's first GPU, and how many GPUs it has."""
    from gemfleet.train.planning.devices import gpu_of_driver_name

    from .node_devices import device_facts

    lines = device_facts()["gpus"]
    return (gpu_of_driver_name(lines[0].rpartition(",")[0]) if lines else None), len(lines)


def _sentence(config: LaunchConfig, epoch: Epoch, device: Device, ranks: int) -> str:
    from .fleet import size_up
    from .fleet_question import find_shape, work_of_config

    train, on = config.train, f"{ranks} x {device.name}"
    try:
        shape = find_shape(train.model)
    except UserError:
        return UNKNOWN.format(why=f"the plan does not know the shape of {train.model}")
    supervised, pictures = epoch.supervised_tokens / epoch.tokens, epoch.pictures > 0
    work = work_of_config(train, max(1, epoch.tokens // epoch.examples), supervised, pictures)
    work = replace(work, global_batch=min(work.global_batch, epoch.examples))
    asked = train.activation_checkpointing
    rows_open = not isinstance(train.batch.micro, int)
    try:
        report = size_up(
            shape, work, device, Fleet(ranks), None if asked == "auto" else asked, rows_open, train.context_parallel
        )
    except UserError as refusal:
        return f"not on {on}: {refusal}"
    if not report.choice.fits:
        return f"not on {on}: {report.choice.reason}"
    seconds = report.speed.step_seconds
    total, step = spoken_duration(seconds * epoch.steps_of_run), f"{seconds:.{2 if seconds >= 0.1 else 4}f} s"
    return f"about {total} for {epoch.steps_of_run:,} steps of {step} on {on}, by arithmetic, not measured"


def spoken_duration(seconds: float) -> str:
    """`40 s`, `12 min` or `3.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
