"""What keeps a sweep from starting. Every message names the field, the value and the remedy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from gemfleet.launcher.config.load import load_config
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.launcher.run.check_inputs import check_everything
from gemfleet.launcher.runs.sweeps import Sweep
from gemfleet.train.config.sections.recipe import loss_names
from gemfleet.train.errors import UserError

from .space import MOST_TRIALS, Space
from .study import need_optuna

# Of one sweep, not of a trial.
NOT_SWEPT = ("name", "api", "cluster.address", "cluster.storage", "notify", "output", "trackers")


def check_sweep(path: Path, overrides: Sequence[str], config: LaunchConfig, sweep: Sweep) -> None:
    """Check the configuration that the trials share, the values of all trials that are known, and all their inputs.

    Raises UserError for what a person can put right. Nothing is written.
    """
    need_optuna()
    check_config(config, sweep.metric, sweep.prune)
    built = check_space(path, overrides, Space(sweep.grid, sweep.ranges), sweep.wanted)
    for trial in built:
        check_config(trial, sweep.metric, sweep.prune)
    for trial in inputs_to_check([config, *built]):
        if trial.train.adapter == "latest":  # a trial that ends is the latest run for those after it
            raise UserError("train.adapter is latest, which changes during a sweep; give the id of the run")
        check_everything(trial)


def check_config(config: LaunchConfig, metric: str, prune: bool) -> None:
    """Raise UserError for a configuration whose trials could not be compared by their evaluation loss."""
    train = config.train
    if not train.data.evaluated():
        raise UserError(
            "train.data.eval is null and train.data.eval_fraction 0, but a sweep compares evaluation losses; "
            "give an evaluation set, or --set train.data.eval_fraction=0.1"
        )
    known = loss_names(train.data.evaluated())
    if metric not in known:
        raise UserError(
            f"--metric {metric!r} is no evaluation loss of this configuration; give one of {', '.join(known)}"
        )
    if train.max_steps == 0:
        raise UserError("train.max_steps is 0, so no trial would train; remove it, or give a number of steps")
    if config.output.deliver is not None:
        raise UserError(
            "output.deliver is set, so all trials would be delivered to one place; sweep with --set output.deliver=null"
        )
    every = train.evaluation.every
    if prune and (every == "never" or (every == "epoch" and train.epochs <= 1)):
        raise UserError(
            f"--prune compares evaluations during training, but train.evaluation.every is {every} and train.epochs "
            f"{train.epochs:g}; give a number of steps, as in --set train.evaluation.every=20"
        )


def check_space(path: Path, overrides: Sequence[str], space: Space, wanted: int) -> list[LaunchConfig]:
    """Build the configuration of each trial of a grid, and with each end of a range; return those that were built.

    Raises UserError for a field that may not differ between trials, that is unknown, or for a value that it refuses.
    """
    if wanted > MOST_TRIALS:
        raise UserError(
            f"the sweep has {wanted} trials; give at most {MOST_TRIALS}, or draw some of them by --random N"
        )
    for field in (*space.grid, *space.ranges):
        if any(field == name or field.startswith(f"{name}.") for name in NOT_SWEPT):
            raise UserError(f"{field} is one for all trials of a sweep; give it by --set {field}=VALUE")
    built = [_built(path, [*overrides, f"{field}={value}"], field, value) for field, value in space.ends()]
    if not space.ranges and space.count() <= MOST_TRIALS:
        for settings in space.combinations():
            texts = [f"{field}={value}" for field, value in settings.items()]
            built.append(_built(path, [*overrides, *texts], "the trial with " + ", ".join(texts), ""))
    return built


def inputs_to_check(built: Sequence[LaunchConfig]) -> list[LaunchConfig]:
    """Of configurations that share model, adapter, data, target modules and DeepSpeed's section, the first.

    With an adapter to go on from, all of LoRA's section counts: its r and alpha have to be the adapter's.
    """
    found: dict[str, LaunchConfig] = {}
    for config in built:
        train = config.train
        kept = train.model_dump(mode="json", include={"model", "adapter", "data", "deepspeed"})
        lora = train.lora.target_modules if train.adapter is None else train.lora.model_dump(mode="json")
        found.setdefault(json.dumps([kept, lora], sort_keys=True), config)
    return list(found.values())


def _built(path: Path, overrides: Sequence[str], where: str, value: str) -> LaunchConfig:
    try:
        return load_config(path, overrides)
    except UserError as error:
        problems = "; ".join(line.strip() for line in str(error).splitlines()[1:]) or str(error)
        raise UserError(f"{where}{f'={value}' if value else ''} cannot be swept: {problems}") from None
