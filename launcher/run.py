"""A run on the head: preflight → stage → prepare data → fit → publish. Reads as the list of its phases."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch  # noqa: F401  (before pyarrow and ray: imported after them in a driver it once failed to load)

# isort: split
from gemfleet.cluster.checkpoint_store.actor import StorePolicy, start_store
from gemfleet.cluster.checkpoint_store.client import StoreClient
from gemfleet.cluster.checkpoint_store.filesystem import store_filesystem
from gemfleet.cluster.checkpoint_store.storage import check_storage
from gemfleet.cluster.errors import StoreError
from gemfleet.cluster.inventory import list_nodes, wait_for_resources
from gemfleet.cluster.run_recorder import start_recorder
from gemfleet.cluster.run_registry import RunRegistry, RunState
from gemfleet.cluster.staging import stage_folder
from gemfleet.train.config import TrainConfig
from gemfleet.train.errors import UserError
from gemfleet.train.home import gemfleet_home
from gemfleet.train.precision import precision_note
from gemfleet.train.resolve import check_context, resolve_model_folder

from .api.beside import status_api
from .attempts import Attempts
from .config import ClusterConfig, LaunchConfig
from .config_file import dump_config
from .data_tasks import RayBlockSource, prepare_on_cluster
from .find_batch import find_micro
from .fit import FitSettings, FitThread, build_trainer, first_cause, watch
from .inputs import check_everything, with_clones
from .memory_restart import MemoryRestart
from .placement import Placement, place
from .progress import Display, training_facts
from .ray_session import connected
from .results import Trained, predict_answers, publish_and_deliver
from .run_folder import LAUNCHED_FROM_FILE, RESOLVED_FILE
from .run_names import new_run_id
from .settle_strategy import settle as settle_strategy
from .worker import FaultPolicy, RankJob


class TrainingFailedError(RuntimeError):
    """Training ended without a result. The message is the cause; `logs` is where the rest is written."""

    def __init__(self, message: str, logs: Path) -> None:
        super().__init__(message, logs)
        self.message, self.logs = message, logs

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `interrupted`: by Ctrl-C; `output` holds the adapter, None when there is no checkpoint."""

    run_id: str
    state: RunState
    output: Path | None
    interrupted: bool
    result: dict[str, Any] | None


class Run:
    """One run: its id, its folder, its row in the registry, and its actors on the head."""

    def __init__(
        self,
        config: LaunchConfig,
        config_path: Path,
        display: Display,
        resumed: str | None = None,
        submitted: str | None = None,
    ) -> None:
        """`resumed`: the id of the run to go on with; `submitted`: of a row that the API made, or opened again."""
        self.config, self.display = config, display
        self.asked = config.train  # as the person wrote it, repositories and all
        self.id = resumed or submitted or new_run_id(config.name or config_path.stem)
        self.folder = gemfleet_home() / "runs" / self.id
        self.registry = RunRegistry(gemfleet_home() / "gemfleet.db")
        resolved = dump_config(config)
        if resumed:
            self.registry.reopen(self.id, resolved, os.getpid())
        elif submitted:
            self.registry.set_driver(self.id, os.getpid())
        else:
            self.registry.create_run(self.id, config.name or config_path.stem, resolved, os.getpid())
        for part in ("checkpoints", "logs"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        if config_path.parent != self.folder:
            shutil.copyfile(config_path, self.folder / f"config{config_path.suffix}")
        (self.folder / RESOLVED_FILE).write_text(resolved)
        (self.folder / LAUNCHED_FROM_FILE).write_text(f"{Path.cwd()}\n")

    def enter(self, state: RunState, text: str) -> None:
        self.registry.transition(self.id, state)
        self.display.phase(text)

    def waits_for(self, text: str) -> None:
        self.note(text)
        self.registry.add_event(self.id, "waiting", text)

    def note(self, text: str) -> None:
        """A line for the person and for the driver's log."""
        self.display.note(text)
        path = self.folder / "logs" / "driver.log"
        with suppress(OSError), path.open("a", encoding="utf-8") as file:  # a full disk must not end the run here
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def launch(
    config: LaunchConfig,
    config_path: Path,
    display: Display,
    resumed: str | None = None,
    submitted: str | None = None,
    batch_cache: bool = True,
) -> Outcome:
    """Carry out a run from its configuration to its published adapter; its row ends in a terminal state in any case.

    With `resumed`, the id of a run that has ended, it goes on from that run's newest verified checkpoint.
    With `submitted`, the id of a row that waits for this run, wrong inputs are told there too.
    Raises UserError or ClusterError for what a person can put right, TrainingFailedError when training itself failed.
    """
    if submitted is None:
        check_everything(config)
    run = Run(config, config_path, display, resumed, submitted)
    with ends_in_the_registry(run):
        if submitted is not None:
            check_everything(config)
        run.config = with_clones(config, run.folder, display)
        return carry_out(run, batch_cache)


def carry_out(run: Run, batch_cache: bool) -> Outcome:
    """The phases of a run, on its cluster."""
    with connected(run.config.cluster):
        run.note(f"run {run.id} in {run.folder}")
        tell_what_differs(run)
        with status_api(gemfleet_home(), run.config.api, run.id, run.note):
            placement = preflight(run)
            options = settle_strategy(run, placement)
            model_folder, folders = stage(run)
        source, report = prepare_data(run, placement, folders)
        train = find_micro(run, placement, source, folders, options, batch_cache)
        interrupted, snapshot, store = fit(run, train, placement, source, folders)
        checkpoint = None if train.max_steps == 0 else newest_checkpoint(run, store, snapshot["result"])
        trained = Trained(checkpoint, model_folder, folders, placement, source, report, snapshot["result"])
        return finish(run, trained, interrupted)


def tell_what_differs(run: Run) -> None:
    """A line and an event for a choice in the configuration that is not carried out to the letter."""
    note = precision_note(run.config.train.precision)
    if note:
        run.note(note)
        run.registry.add_event(run.id, "precision", note, {"asked": run.config.train.precision})


def preflight(run: Run) -> Placement:
    """Decide on the ranks, and wait until the cluster has room for them."""
    run.enter(RunState.PREFLIGHT, "preflight")
    cluster = run.config.cluster
    check_storage(cluster.storage, run.folder)
    placement = place(cluster, list_nodes())
    size = placement.cpus_per_worker, placement.gpus_per_worker
    wait_for_resources(placement.workers, *size, cluster.wait_for_resources_s, run.waits_for)
    run.note(placement.describe())
    return placement


def stage(run: Run) -> tuple[Path, dict[str, str]]:
    """The model on the head, and the folder of each node that holds it."""
    run.enter(RunState.STAGING, "staging model")
    folder = resolve_model_folder(run.config.train.model)
    check_context(folder, run.config.train.data.max_length)
    cache = str(gemfleet_home() / "cache" / "staged")
    staged = stage_folder(folder, cache, lambda sent, total: run.display.advance(sent >> 20, total >> 20, "MiB"))
    if len(staged.folders) > 1:
        run.note(staged.describe())
    return folder, staged.folders


def prepare_data(run: Run, placement: Placement, folders: dict[str, str]) -> tuple[RayBlockSource, str]:
    """Tokenise and pack on the cluster; says how many rows were used and which were not."""
    run.enter(RunState.PREPARING_DATA, "preparing data")
    source, report = prepare_on_cluster(run.config.train, placement.workers, folders, 0, run.display.bars)
    run.note(report.summary())
    return source, report.summary()


def fit(
    run: Run, train: TrainConfig, placement: Placement, source: RayBlockSource, folders: dict[str, str]
) -> tuple[bool, dict[str, Any], StoreClient]:
    """Train. Returns whether Ctrl-C ended it, the recorder's last snapshot, and the store."""
    run.enter(RunState.TRAINING, "training")
    recorder = start_recorder(gemfleet_home(), run.id)
    cluster = run.config.cluster
    store_actor = start_store(run.id, run.folder, recorder, store_policy(cluster), cluster.storage)
    store = StoreClient(store_actor)
    restart = MemoryRestart(run.registry, run.id)
    faults = FaultPolicy(cluster.watchdog.limits(), cluster.on_checkpoint_failure == "stop")
    while True:
        attempts = Attempts(store, recorder, store.begin_attempt())
        settings = FitSettings(
            f"launch-{attempts.before}",
            *(placement, store_filesystem(store_actor), "", restart.failures_left(cluster.max_failures)),
            *(attempts, recorder),
        )
        thread = FitThread(build_trainer(RankJob(train, source, folders, recorder, store, faults), settings))
        thread.start()
        interrupted = watch(thread, lambda: show(run, recorder.call("snapshot")), lambda: ask_to_stop(run))
        if interrupted or not restart.wanted():
            break
        train = restart.lowered(train, run.note)
    with suppress(StoreError, OSError):  # publishing itself says so when the disk is full
        store.begin_attempt()  # a rank that is late can write nothing more, and what never arrived whole is removed
    snapshot = recorder.call("snapshot")
    raise_failure(run, thread.error)
    return interrupted, snapshot, store


def store_policy(cluster: ClusterConfig) -> StorePolicy:
    gib = 2**30
    return StorePolicy(
        keep=cluster.keep_checkpoints,
        best_of="eval_loss" if cluster.keep_best else None,
        warn_free_bytes=int(cluster.warn_free_gib * gib),
        refuse_free_bytes=int(cluster.refuse_free_gib * gib),
    )


def show(run: Run, snapshot: dict[str, Any]) -> None:
    step = snapshot["step"]
    if step:
        run.display.advance(step["step"], step["total_steps"], training_facts(step, snapshot["eval"]))


def ask_to_stop(run: Run) -> None:
    run.registry.request_stop(run.id)
    run.note("stopping: a checkpoint is saved after this step; press Ctrl-C again to leave at once")


def raise_failure(run: Run, error: BaseException | None) -> None:
    """Raise what ended training, if anything did: a rank's own sentence before Ray's wrapping of it."""
    events = run.registry.events(run.id, run.registry.launch_seq(run.id))
    fatal = [event for event in events if event["kind"] == "fatal"]
    if fatal and fatal[0]["data"]["cause"] == "user":
        raise UserError(fatal[0]["message"])
    if fatal or error:
        text = fatal[0]["message"] if fatal else str(first_cause(error)) if error else ""
        raise TrainingFailedError("\n".join(text.strip().splitlines()[-12:]), run.folder / "logs") from error


def newest_checkpoint(run: Run, store: StoreClient, result: dict[str, Any] | None) -> Path:
    """The folder of the newest verified checkpoint."""
    run.enter(RunState.PUBLISHING, "publishing")
    newest, damaged = store.newest_verified()
    for sentence in damaged:
        run.note(f"a damaged checkpoint is passed over: {sentence}")
    if newest is None or not result:
        raise TrainingFailedError("training ended, but no checkpoint of it is on the head", run.folder / "logs")
    if newest.step != result["steps"]:
        run.note(f"the newest whole checkpoint is of step {newest.step}; training ended at step {result['steps']}")
    return store.at_hand(newest.step)


def finish(run: Run, trained: Trained, interrupted: bool) -> Outcome:
    """Predict, publish, deliver, and end the run as succeeded or stopped."""
    predict_answers(run, trained)
    try:
        output = publish_and_deliver(run, trained)
    except OSError as error:  # a full disk, most likely
        message = f"the result could not be written ({error}); `gemfleet checkpoints {run.id}` has the whole checkpoint"
        raise TrainingFailedError(message, run.folder / "logs") from error
    state = RunState.STOPPED if trained.stopped else RunState.SUCCEEDED
    run.registry.transition(run.id, state)
    return Outcome(run.id, state, output, interrupted, trained.result)


@contextmanager
def ends_in_the_registry(run: Run) -> Iterator[None]:
    """Whatever ends the run, its row says so."""
    try:
        yield
    except KeyboardInterrupt:
        run.registry.transition(run.id, RunState.INTERRUPTED, "Ctrl-C")
        raise
    except BaseException as error:
        if not run.registry.get_run(run.id).state.is_terminal:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            run.registry.transition(run.id, RunState.FAILED, reason)
        raise
