"""A run on the head: preflight → stage → prepare data → fit → publish. Reads as the list of its phases."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch  # noqa: F401  (before pyarrow and ray: imported after them in a driver it once failed to load)

# isort: split
import ray
from gemfleet.cluster.checkpoint_store.client import StoreClient
from gemfleet.cluster.checkpoint_store.location import check_storage
from gemfleet.cluster.doctor.examine import check_quickly
from gemfleet.cluster.driver import DriverLock
from gemfleet.cluster.errors import ClusterError, DiskFull, RunConflict, UnknownRun
from gemfleet.cluster.inventory import answering_nodes
from gemfleet.cluster.registry.claims import Claims
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.train.config.home import gemfleet_home
from gemfleet.train.config.precision import precision_note
from gemfleet.train.errors import UserError
from gemfleet.train.loop import UNCHANGED
from gemfleet.train.model.base_check import check_base
from gemfleet.train.model.resolve import check_context, resolve_model_folder
from gemfleet.train.model.weight_files import beside_note

from ..api.start import seen_to_the_end, status_api
from ..config.load import dump_config
from ..config.schema import LaunchConfig
from ..display import Display
from ..placement import Placement
from ..runs.folder import LAUNCHED_FROM_FILE, RESOLVED_FILE, refuse_leftovers
from ..runs.names import new_run_id
from ..runs.registry import registry_of
from .admission import Ground, StoppedBeforeFit, await_admission, find_places, heed_stop, stage_to
from .batch_search.search import find_micro
from .check_inputs import check_everything, with_clones
from .connect import connected
from .finish import Trained, predict_answers, publish_and_deliver
from .nothing_left import nothing_left
from .preflight import fitness
from .prepare_data import pack_on_cluster, tokenise_on_cluster
from .resume_check import check_resume
from .signals import SIGNALS
from .strategy import settle as settle_strategy
from .training.controller import fit
from .training.ray_trainer import first_cause

ROOM_SECONDS = 600.0
END_ROOM_SECONDS = 20.0


class TrainingFailedError(RuntimeError):
    """Training ended without a result. The message is the cause; `logs` is where the rest is written."""

    def __init__(self, message: str, logs: Path) -> None:
        super().__init__(message, logs)
        self.message, self.logs = message, logs

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `interrupted`: by Ctrl-C; `output` holds the adapter, None when there is no checkpoint.

    reason: why nothing was published, a sentence
    """

    run_id: str
    state: RunState
    output: Path | None
    interrupted: bool
    result: dict[str, Any] | None
    reason: str = ""


class Run:
    """One run: its id, its folder, its row in the registry, and its claim on the cluster, once there is one."""

    claims: Claims
    accept_changes: bool = False  # go on also from a checkpoint that was made from something else

    def __init__(
        self,
        config: LaunchConfig,
        config_path: Path,
        display: Display,
        resumed: str | None = None,
        submitted: str | None = None,
        new_id: str | None = None,
    ) -> None:
        """`resumed`: the id of the run to go on with; `submitted`: of a row that the API made, or opened again;
        `new_id`: of one that has no row yet, RunConflict where it has."""
        self.config, self.display = config, display
        self._said: set[str] = set()
        self.asked = config.train  # as the person wrote it, repositories and all
        self.id = resumed or submitted or new_id or new_run_id(config.name or config_path.stem)
        self.folder = gemfleet_home() / "runs" / self.id
        self.registry = registry_of(gemfleet_home())
        resolved = dump_config(config)
        self.is_new = not resumed and config_path.parent != self.folder
        if not resumed and not submitted:
            self._create_row(config.name or config_path.stem, resolved)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = DriverLock(self.folder)
        try:
            if resumed:
                self.registry.reopen(self.id, resolved, os.getpid())
            elif submitted:
                self.registry.set_driver(self.id, os.getpid())
            self._lay_out(config_path, resolved)
        except BaseException:
            self.lock.close()
            raise

    def _lay_out(self, config_path: Path, resolved: str) -> None:
        """The run's folder, with the configuration as it was given and as it is."""
        for left in self.folder.glob(".output-*"):  # of a driver that was killed while it published
            shutil.rmtree(left, ignore_errors=True)
        for part in ("checkpoints", "logs"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        if config_path.parent != self.folder:
            shutil.copyfile(config_path, self.folder / f"config{config_path.suffix}")
        (self.folder / RESOLVED_FILE).write_text(resolved)
        (self.folder / LAUNCHED_FROM_FILE).write_text(f"{Path.cwd()}\n")

    def _create_row(self, name: str, resolved: str) -> None:
        """Two that begin the same run at once meet here: the second is refused."""
        try:
            self.registry.get_run(self.id)
        except UnknownRun:
            refuse_leftovers(self.folder)
        self.registry.create_run(self.id, name, resolved, os.getpid())

    def enter(self, state: RunState, text: str) -> None:
        SIGNALS.heed()
        self.settle(state)
        self.display.phase(text)

    def settle(self, state: RunState, reason: str = "", room_seconds: float = ROOM_SECONDS) -> None:
        """Into the registry, once the head's disk has room for it. DiskFull when it has none for so long."""
        deadline = time.monotonic() + room_seconds
        while True:
            try:
                self.registry.transition(self.id, state, reason)
                return
            except DiskFull as error:
                if time.monotonic() > deadline:
                    raise
                self.note_once(f"waits for room: {error}")
                time.sleep(1.0)

    def waits_for(self, text: str) -> None:
        """Says what for: on the screen, as an event, and in the run's row."""
        self.note(text)
        self.registry.set_reason(self.id, text)
        self.registry.add_event(self.id, "waiting", text)

    def note_once(self, text: str) -> None:
        """As `note`, unless it was said already."""
        if text not in self._said:
            self._said.add(text)
            self.note(text)

    def note(self, text: str) -> None:
        """A line for the person and for the driver's log."""
        self.display.note(text)
        path = self.folder / "logs" / "driver.log"
        with suppress(OSError), path.open("a", encoding="utf-8") as file:  # a full disk must not end the run here
            file.write(f"{log_stamp(time.time())} {text}\n")


def log_stamp(seconds: float) -> str:
    """Local time to the millisecond, as ranks write it, so that the lines of all can be put in order."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(seconds))},{int(seconds % 1 * 1000):03}"


def launch(
    config: LaunchConfig,
    config_path: Path,
    display: Display,
    resumed: str | None = None,
    submitted: str | None = None,
    batch_cache: bool = True,
    new_id: str | None = None,
    accept_changes: bool = False,
) -> Outcome:
    """Carry out a run from its configuration to its published adapter; its row ends in a terminal state in any case.

    With `resumed`, the id of a run that has ended, it goes on from that run's newest verified checkpoint; one that has
    succeeded and is asked for nothing more is left alone, and the outcome says so.
    accept_changes: also where that one was made from other data, another base or other adapters.
    With `submitted`, the id of a row that waits for this run, wrong inputs are told there too. `new_id`: of a new one.
    Raises UserError or ClusterError for what a person can put right, TrainingFailedError when training itself failed.
    """
    if resumed and (sentence := nothing_left(registry_of(gemfleet_home()), resumed, config)):
        return Outcome(resumed, RunState.SUCCEEDED, None, False, None, sentence)
    if submitted is None:
        check_everything(config)
    if resumed is not None:
        check_resume(config.train, gemfleet_home() / "runs" / resumed, accept_changes)
    with SIGNALS.held():
        run = Run(config, config_path, display, resumed, submitted, new_id)
    run.accept_changes = accept_changes
    with closing(run.lock), ends_in_the_registry(run):
        SIGNALS.heed()
        if submitted is not None:
            check_everything(config)
            check_resume(config.train, run.folder, accept_changes)
        run.config = with_clones(config, run.folder, display)
        return carry_out(run, batch_cache)


def carry_out(run: Run, batch_cache: bool) -> Outcome:
    """The phases of a run, on its cluster."""
    home, api = gemfleet_home(), run.config.api
    with connected(run.config.cluster) as owned, seen_to_the_end(home, api, owned), ends_in_the_registry(run):
        run.note(f"run {run.id} in {run.folder}")
        run.claims = Claims(run.registry, ray.get_runtime_context().gcs_address)
        tell_what_differs(run)
        try:
            with status_api(home, api, run.id, run.note):
                await_admission(run)
                placement = preflight(run)
                plan = settle_strategy(run, placement)
                model, folders = stage(run)
            ground = prepare_data(run, placement, model, folders)
            train = find_micro(run, placement, ground.source, folders, plan, batch_cache)
            fitted = fit(run, train, ground)
        except StoppedBeforeFit as stopped:
            return end_untrained(run, str(stopped))
        raise_failure(run, fitted.error)
        result = fitted.snapshot["result"]
        checkpoint = None if train.max_steps == 0 else newest_checkpoint(run, fitted.store, result)
        tell_if_nothing_changed(run, result)
        return finish(run, Trained(checkpoint, fitted.ground, result), fitted.interrupted)


def end_untrained(run: Run, reason: str) -> Outcome:
    """The end of a run that was stopped before ranks trained, or between two fits."""
    run.note(reason)
    SIGNALS.ending()
    run.settle(RunState.STOPPED, reason)
    return Outcome(run.id, RunState.STOPPED, None, False, None, reason)


def tell_what_differs(run: Run) -> None:
    """A line and an event for a choice in the configuration that is not carried out to the letter."""
    note = precision_note(run.config.train.precision)
    if note:
        run.note(note)
        run.registry.add_event(run.id, "precision", note, {"asked": run.config.train.precision})


def preflight(run: Run) -> Placement:
    """See that the nodes are fit for a run, decide on the ranks, and wait until the cluster has room for them."""
    run.enter(RunState.PREFLIGHT, "preflight")
    check_storage(run.config.cluster.storage, run.folder, is_new=run.is_new)
    findings = check_quickly(answering_nodes(), gemfleet_home())
    for warning in fitness(findings, uses_gpus=run.config.cluster.gpus_per_worker != 0):
        run.note(warning)
    return find_places(run)


def stage(run: Run) -> tuple[Path, dict[str, str]]:
    """The model on the head, and the folder of each node that holds it."""
    run.enter(RunState.STAGING, "staging model")
    folder = resolve_model_folder(run.config.train.model)
    check_context(folder, run.config.train.data.max_length)
    check_base(folder)
    if note := beside_note(folder):
        run.note(note)
    return folder, stage_to(run, folder, {})


def prepare_data(run: Run, placement: Placement, model: Path, folders: dict[str, str]) -> Ground:
    """Tokenise and pack on the cluster; says how many rows were used and which were not."""
    run.enter(RunState.PREPARING_DATA, "preparing data")
    train = run.config.train
    data = tokenise_on_cluster(train, folders, run.display.bars)
    source = pack_on_cluster(data, train, placement.workers, 0, run.display.bars)
    run.note(data.report.summary())
    heed_stop(run, "prepared its data")
    return Ground(placement, model, folders, data, source)


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


def tell_if_nothing_changed(run: Run, result: dict[str, Any] | None) -> None:
    """A line and an event for a run whose steps left the adapter as it was."""
    if result and result.get("adapter_changed") is False:
        run.note(UNCHANGED)
        run.registry.add_event(run.id, "unchanged", UNCHANGED)


def finish(run: Run, trained: Trained, interrupted: bool) -> Outcome:
    """Predict, publish, deliver, and end the run as succeeded or stopped."""
    predict_answers(run, trained)
    try:
        output = publish_and_deliver(run, trained)
    except OSError as error:  # a full disk, most likely
        message = f"the result could not be written ({error}); `gemfleet checkpoints {run.id}` has the whole checkpoint"
        raise TrainingFailedError(message, run.folder / "logs") from error
    state = RunState.STOPPED if trained.stopped else RunState.SUCCEEDED
    SIGNALS.ending()
    run.settle(state)
    return Outcome(run.id, state, output, interrupted, {**trained.result, "figures": run.registry.figures(run.id)})


@contextmanager
def ends_in_the_registry(run: Run) -> Iterator[None]:
    """Whatever ends the run, its row says so. After a signal that is KeyboardInterrupt, whatever broke meanwhile."""
    try:
        yield
    except BaseException as error:
        SIGNALS.ending()
        signalled = SIGNALS.asked is not None or isinstance(error, (KeyboardInterrupt, SystemExit))
        try:
            if not run.registry.get_run(run.id).state.is_terminal:
                run.settle(*end_state(run, error, signalled), END_ROOM_SECONDS)
        except RunConflict:
            pass  # another process has just called it interrupted
        except ClusterError as unwritten:
            run.note(f"the registry does not say how the run ended: {unwritten}")
        if signalled and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise


def end_state(run: Run, error: BaseException, signalled: bool) -> tuple[RunState, str]:
    """The state of a run that did not end well, and why."""
    reason = (str(error).strip() or repr(error)).splitlines()[0]
    if not signalled:
        return RunState.FAILED, reason
    state = run.registry.get_run(run.id).state
    ended_by = f"ended by {SIGNALS.asked or 'a signal'} in the state {state}"
    return RunState.INTERRUPTED, ended_by if isinstance(error, KeyboardInterrupt) else f"{ended_by}: {reason}"
