"""The batch finder on a local Ray cluster: found, found again, hurt in the middle, and wrong later all the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from gemfleet.cluster.registry.registry_reader import RegistryReader
from gemfleet.cluster.registry.run_registry import RunRegistry
from gemfleet.launcher.api.metrics import RunCollector
from gemfleet.launcher.api.totals import RunTotals
from support.tiny_model import save_tiny_gemma3
from support.tiny_tokenizer import tiny_tokenizer

pytestmark = pytest.mark.slow
WAIT_SECONDS = 280.0
OOM_STEP, OOM_CHECKPOINTS = 7, 3
OPEN = {"strategy": "auto"}
ZERO3 = {"strategy": "deepspeed", "deepspeed": {"stage": 3}}

# Runs in every process of the cluster: in runs that save every third step, memory runs out on rank 1 at step 7 as long
# as it holds four rows.
INJECTION = f"""
import sys
from importlib.machinery import PathFinder


def patch(module):
    import torch

    whole = module.Trainer.train_step

    def train_step(self, index, *rest):
        here = self.config.checkpoint.every == {OOM_CHECKPOINTS} and self.rank == 1
        if here and index + 1 == {OOM_STEP} and self.config.batch.micro == 4:
            raise torch.OutOfMemoryError("injected: out of memory")
        return whole(self, index, *rest)

    module.Trainer.train_step = train_step


class Hook:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "gemfleet.train.loop":
            return None
        spec = PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            patch(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Hook)
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    save_tiny_gemma3(folder / "model")
    tiny_tokenizer(folder / "model")
    rows = [{"prompt": f"question {i} what ", "completion": f"answer {i % 7} cat"} for i in range(128)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(INJECTION)
    return folder


@pytest.fixture(scope="module")
def ray_address(workplace: Path) -> Iterator[str]:
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(workplace / "hook"))
        context = ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=200 * 2**20)
    yield str(context.address_info["address"])
    ray.shutdown()


def run_to_its_end(
    workplace: Path, home: Path, address: str, micro: int | str, every: int, strategy: dict[str, Any] | None = None
) -> tuple[RunRegistry, str]:
    """Train 14 steps of 8 examples; returns the registry and the run's id."""
    config = configuration(address, micro, every)
    config["train"].update(strategy or {})
    (workplace / "run.yaml").write_text(yaml.safe_dump(config))
    gemfleet(workplace, home, "train", "run.yaml")
    registry = RunRegistry(home / "gemfleet.db")
    return registry, registry.find_run("latest").id


def gemfleet(workplace: Path, home: Path, *arguments: str) -> str:
    """What the command printed on its standard output; it must succeed."""
    command = [sys.executable, "-m", "gemfleet.launcher.cli", *arguments]
    environment = {**os.environ, "GEMFLEET_HOME": str(home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=workplace, env=environment, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def configuration(address: str, micro: int | str, every: int) -> dict[str, Any]:
    return {
        "name": "tiny",
        "train": {
            "model": "./model",
            "data": {"train": "rows.jsonl", "max_length": 32, "eval_fraction": 0.125},
            "batch": {"global": 8, "micro": micro},
            "checkpoint": {"every": every},
            "precision": "fp32",
        },
        "cluster": {"address": address, "workers": 2, "wait_for_resources_s": 30.0, "max_failures": 0},
    }


def events(registry: RunRegistry, run: str, kind: str) -> list[dict[str, Any]]:
    return [event for event in registry.events(run) if event["kind"] == kind]


def losses(registry: RunRegistry, run: str) -> list[float]:
    return [record["loss"] for record in registry.metrics(run, kind="step")]


def finding_seconds(registry: RunRegistry, run: str) -> float:
    times = {event["data"]["state"]: event["time"] for event in events(registry, run, "state")}
    return float(times["training"] - times["finding_batch"])


def probe_processes() -> list[psutil.Process]:
    """Those of the cluster, which this process started."""
    running = psutil.Process().children(recursive=True)
    return [process for process in running if "gemfleet.train.batch_finder.probes.child" in command_line(process)]


def command_line(process: psutil.Process) -> list[str]:
    """Empty for a process that has ended, whether or not its parent has asked how."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


@pytest.fixture(scope="module")
def one_row_losses(workplace: Path) -> list[float]:
    """What one process without Ray learns with one row in a pass."""
    (workplace / "one.yaml").write_text(yaml.safe_dump(configuration("", 1, 5)))
    command = [sys.executable, "-P", "-m", "gemfleet.train", "one.yaml", "--out", "one"]
    subprocess.run(command, cwd=workplace, capture_output=True, timeout=WAIT_SECONDS, check=True)
    records = [json.loads(line) for line in (workplace / "one" / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["kind"] == "step"]


@pytest.mark.faults
def test_it_is_found_once_and_changes_no_loss(
    workplace: Path, tmp_path: Path, ray_address: str, one_row_losses: list[float]
) -> None:
    home = tmp_path / "home"
    registry, first = run_to_its_end(workplace, home, ray_address, "probe", 5, OPEN)
    trials = events(registry, first, "batch_trial")
    assert len(trials) >= 3
    assert all(trial["data"]["fits"] for trial in trials)
    (found,) = events(registry, first, "batch_found")
    assert trials_are_told(workplace, home, registry, first, trials)

    registry, second = run_to_its_end(workplace, home, ray_address, "probe", 5, OPEN)
    (cached,) = events(registry, second, "batch_cached")
    assert cached["data"]["rows"] == found["data"]["rows"]
    assert not events(registry, second, "batch_trial")
    print(f"finding: {finding_seconds(registry, first):.1f} s, then {finding_seconds(registry, second):.2f} s")
    assert finding_seconds(registry, second) < 0.1 * finding_seconds(registry, first)
    assert len(one_row_losses) == 14
    assert losses(registry, first) == pytest.approx(one_row_losses, rel=1e-4)
    assert losses(registry, second) == pytest.approx(one_row_losses, rel=1e-4)
    assert probe_processes() == []


def trials_are_told(workplace: Path, home: Path, registry: RunRegistry, run: str, trials: list[dict[str, Any]]) -> bool:
    """On the screen of `show`, over the API's reader of events, and as a counter of Prometheus; the table too."""
    shown = gemfleet(workplace, home, "show", run)
    reader = RegistryReader(home / "gemfleet.db")
    counter = next(m for m in RunCollector(reader, RunTotals(reader)).collect() if m.name == "gemfleet_batch_trials")
    return (
        all(trial["message"] in shown for trial in trials)
        and all(line["message"] in shown for line in events(registry, run, "batch_table"))
        and "<- chosen" in shown
        and [sample.value for sample in counter.samples] == [len(trials)]
    )


@pytest.mark.faults
def test_a_stop_is_heeded_after_the_trial_it_falls_into(workplace: Path, tmp_path: Path, ray_address: str) -> None:
    home = tmp_path / "home"
    (workplace / "run.yaml").write_text(yaml.safe_dump(configuration(ray_address, "probe", 5)))
    command = [sys.executable, "-m", "gemfleet.launcher.cli", "train", "run.yaml", "--no-batch-cache"]
    environment = {**os.environ, "GEMFLEET_HOME": str(home), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=workplace, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            registry, run = first_trial(home)
            registry.request_stop(run)  # as `gemfleet stop` does, which takes longer to start than the search here
            output, _ = process.communicate(timeout=WAIT_SECONDS)
        finally:
            process.kill()
    ended = registry.get_run(run)
    assert (ended.state, ended.reason) == ("stopped", f"run {run} was stopped while it looked for a micro-batch")
    assert ended.reason in " ".join(output.split())
    assert "training" not in [event["data"]["state"] for event in events(registry, run, "state")]
    assert probe_processes() == []


def first_trial(home: Path) -> tuple[RunRegistry, str]:
    """The registry and the only run of a new home, once the first trial was told."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if (home / "gemfleet.db").exists():
            registry = RunRegistry(home / "gemfleet.db")
            if (runs := registry.list_runs()) and events(registry, runs[0].id, "batch_trial"):
                return registry, runs[0].id
        time.sleep(0.05)
    raise AssertionError("no trial was told")


@pytest.mark.faults
@pytest.mark.parametrize("strategy", [{}, {"strategy": "fsdp2"}, ZERO3], ids=["ddp", "fsdp2", "zero3"])
def test_lack_of_memory_lowers_the_micro_batch_and_changes_no_loss(
    workplace: Path, tmp_path: Path, ray_address: str, one_row_losses: list[float], strategy: dict[str, Any]
) -> None:
    home = tmp_path / "home"
    registry, third = run_to_its_end(workplace, home, ray_address, 4, OOM_CHECKPOINTS, strategy)
    (event,) = events(registry, third, "out_of_memory")
    assert (event["data"]["from"], event["data"]["to"], event["data"]["global"]) == (4, 2, 8)
    steps = [record["step"] for record in registry.metrics(third, kind="step")]
    assert steps == list(range(1, 15))
    assert "resumed from checkpoint-" in (home / "runs" / third / "logs" / "rank-0.log").read_text()
    assert losses(registry, third) == pytest.approx(one_row_losses, rel=1e-4)


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.usefixtures("ray_address")
def test_a_probe_lost_on_a_node_ends_the_trial_for_all(workplace: Path, number: int) -> None:
    from gemfleet.launcher.placement import Placement
    from gemfleet.launcher.run.batch_search.probe_actors import RayProbe, probe_hosts
    from gemfleet.launcher.run.batch_search.search import rank_places
    from gemfleet.train.batch_finder.finder import find_batch
    from gemfleet.train.batch_finder.probes.group import GroupSettings, ProbeGroup
    from gemfleet.train.batch_finder.probes.trial import Trial
    from gemfleet.train.batch_finder.setting import probe_tasks
    from gemfleet.train.batch_finder.variant_search import SearchLimits
    from gemfleet.train.batch_finder.variants import variants_of
    from gemfleet.train.config.schema import TrainConfig

    values = {"model": "x", "data": {"train": "y", "max_length": 32}, "batch": {"global": 8}}
    train = TrainConfig.model_validate({**values, "strategy": "ddp", "activation_checkpointing": "off"})
    trials: list[Trial] = []
    bound_s = 20.0

    def hurt_in_the_third_trial(rows: int, evaluation: bool) -> None:
        RayProbe.send(hosts[1][0], rows, evaluation)
        if len(trials) == 2:
            pid = hosts[1][0].pid
            assert pid is not None
            os.kill(pid, number)
            hurt_at.append(time.monotonic())

    hurt_at, ended = list[float](), list[float]()

    def told(_: str, trial: Trial) -> None:
        trials.append(trial)
        ended.extend([time.monotonic()] if trial.failure else [])

    with probe_hosts(Placement(2, 1.0, 0, "PACK"), 60.0) as hosts:
        folders = {facts.node: str(workplace / "model") for _, facts in hosts}
        tasks = probe_tasks(train, rank_places([facts for _, facts in hosts], folders))
        handles = [handle for handle, _ in hosts]
        handles[1].send = hurt_in_the_third_trial  # type: ignore[method-assign]
        found = find_batch(
            variants_of(train),
            lambda _: ProbeGroup(handles, tasks, GroupSettings(0.05, bound_s)),
            SearchLimits(4, bound_s),
            62,
            told,
        )
    assert [candidate.rows for candidate in found.candidates] == [1, 2, 4]
    assert [trial.failure is not None for trial in trials].count(True) == 1
    (hurt,), (over,) = hurt_at, ended
    assert over - hurt < bound_s + 10.0
    assert probe_processes() == []
