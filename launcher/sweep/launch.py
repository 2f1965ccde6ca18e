"""Launches a sweep, new or resumed, on one cluster, which it starts if there is none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch  # noqa: F401  (before pyarrow and ray: after them it has failed to load in a driver)

# isort: split
import ray
import yaml
from gemfleet.cluster.driver import DriverLock
from gemfleet.cluster.errors import RunConflict
from gemfleet.cluster.inventory import answering_nodes, of_kind
from gemfleet.cluster.registry.run_queries import NO_LIMIT
from gemfleet.launcher.api.start import seen_to_the_end, status_api
from gemfleet.launcher.config.cluster import ClusterConfig
from gemfleet.launcher.config.load import load_config
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.launcher.placement import place
from gemfleet.launcher.run.connect import connected
from gemfleet.launcher.runs.registry import registry_of
from gemfleet.launcher.runs.sweep_view import SweepView, view_sweep
from gemfleet.launcher.runs.sweeps import (
    CONFIG_FILE,
    Sweep,
    launched_from,
    read_sweep,
    sweep_folder,
    take_stop_back,
    write_sweep,
)
from gemfleet.train.config.home import gemfleet_home

from .check import check_sweep
from .drive import SweepDriver
from .processes import TrialProcesses
from .study import Study
from .table import SweepDisplay

MOST_AT_ONCE = 8  # where `--parallel` does not say: each trial has a process on the head


def launch_sweep(
    sweep: Sweep, config: LaunchConfig, path: Path, overrides: Sequence[str], display: SweepDisplay
) -> SweepView:
    """Check a new sweep, write it to disk and carry it out. Raises RunConflict if its id is taken.

    config: of all trials, read from `path` with `overrides`
    """
    home = gemfleet_home()
    folder = sweep_folder(home, sweep.id)
    refuse_taken(home, sweep)
    check_sweep(path, overrides, config, sweep)
    folder.mkdir(parents=True, exist_ok=True)
    with closing(DriverLock(folder)):
        refuse_taken(home, sweep)  # another process may have begun it meanwhile
        (folder / CONFIG_FILE).write_text(shared_config(config, sweep.name), encoding="utf-8")
        write_sweep(home, sweep)
        _on_cluster(home, sweep, config, display)
    return view_sweep(home, registry_of(home), sweep)


def refuse_taken(home: Path, sweep: Sweep) -> None:
    """Raise RunConflict if there is a sweep of this id, or a run that has its id or that of one of its trials."""
    if read_sweep(home, sweep.id) is not None:
        raise RunConflict(f"a sweep {sweep.id!r} exists already; choose another --id, or `gemfleet resume {sweep.id}`")
    ids = {sweep.id, *map(sweep.id_of, range(1, sweep.wanted + 1))}
    for run in registry_of(home).list_runs(limit=NO_LIMIT):
        if run.id in ids:
            raise RunConflict(f"--id {sweep.id!r}: a run {run.id!r} exists already; choose another --id")


def resume_sweep(sweep_id: str, display: SweepDisplay) -> SweepView:
    """Go on with a sweep: its unfinished trials, then those that are not begun. Raises RunConflict while it runs."""
    home = gemfleet_home()
    folder = sweep_folder(home, sweep_id)
    with closing(DriverLock(folder)):
        sweep = read_sweep(home, sweep_id)
        assert sweep is not None
        os.chdir(launched_from(sweep))
        config = load_config(folder / CONFIG_FILE)
        take_stop_back(home, sweep_id)
        _on_cluster(home, sweep, config, display)
    return view_sweep(home, registry_of(home), sweep)


def shared_config(config: LaunchConfig, name: str) -> str:
    """The configuration of all trials as YAML, with the values that were given: `--set` of a trial changes it as it
    would change the person's own file. A cluster for this process alone becomes the one that the sweep names."""
    values = config.model_dump(mode="json", by_alias=True, exclude_unset=True) | {"name": name}
    if config.cluster.address == "local":
        values["cluster"]["address"] = "auto"
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)


def _on_cluster(home: Path, sweep: Sweep, config: LaunchConfig, display: SweepDisplay) -> None:
    with connected(config.cluster) as owned, seen_to_the_end(home, config.api, owned):
        with status_api(home, config.api, f"/#/sweeps/{sweep.id}", display.tell):
            parallel = sweep.parallel or most_at_once(config.cluster)
            display.tell(f"sweep {sweep.id}: {sweep.wanted} trials, {min(parallel, sweep.wanted)} at once")
            processes = TrialProcesses(home, sweep, ray.get_runtime_context().gcs_address)
            study = Study(sweep, sweep_folder(home, sweep.id))
            driver = SweepDriver(home, sweep, registry_of(home), study, processes, parallel)
        driver.carry_out(display.show)


def most_at_once(cluster: ClusterConfig) -> int:
    """How many trials the cluster could hold if it were empty; at least 1."""
    nodes = answering_nodes()
    one = place(cluster, nodes)
    suitable = of_kind(nodes, one.kind)
    places = sum(node.bundles(one.cpus_per_rank, one.gpus_per_rank, free=False) for node in suitable)
    return max(1, min(MOST_AT_ONCE, places // one.ranks))
