"""Launches a run on the head and takes it through its phases: preflight, staging, data, training, publishing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch  # noqa: F401  (before pyarrow and ray: after them it has failed to load in a driver)

# isort: split
import ray
from gemfleet.cluster.errors import ClusterError, RunConflict
from gemfleet.cluster.phases import PHASES
from gemfleet.cluster.registry.claims import Claims
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.launcher.api.start import seen_to_the_end, status_api
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.launcher.display import Display
from gemfleet.launcher.notices.start import first_tries
from gemfleet.launcher.result.chosen import refuse_unsaved
from gemfleet.launcher.runs.checkpoints import shelf_of
from gemfleet.launcher.runs.registry import registry_of
from gemfleet.launcher.runs.trace import write_trace
from gemfleet.launcher.tracking.processes import tracked
from gemfleet.train.config.home import gemfleet_home
from gemfleet.train.config.precision import precision_note
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.errors import UserError
from gemfleet.train.step.early_stopping import refuse_unknown_metric

from .admission import await_admission
from .batch_search.find import find_micro
from .beginning import Beginning, New, Resumed, Submitted
from .check_inputs import check_everything, with_clones
from .connect import connected
from .finish import Trained, finish, keep_early_facts, picked_checkpoint
from .outcome import Outcome, StoppedBeforeFit, TrainingFailedError
from .preflight import preflight
from .prepared import prepare_data, stage, stage_adapter
from .resume import check_resume, nothing_left
from .session import END_ROOM_SECONDS, RunSession
from .signals import SIGNALS
from .starting_adapter import with_adapter, with_kept_adapter
from .strategy import settle
from .training.ahead import start_ahead
from .training.controller import Fitted, fit
from .training.processes import Begun
from .training.ray_trainer import first_cause


def launch(
    config: LaunchConfig,
    config_path: Path,
    display: Display,
    beginning: Beginning = New(),
    batch_cache: bool = True,
    trace: Path | None = None,
    begun: Begun | None = None,
) -> Outcome:
    """Carry out a run from its configuration to its published adapter. Whatever happens, its row says how it ended.

    A resumed run that has succeeded, and of which the configuration asks nothing more, is left alone; the outcome says
    so. batch_cache: whether to use a micro-batch that an earlier run found; trace: a file for what each process did
    begun: see `start_ahead`
    Raises UserError or ClusterError for what a person can put right, TrainingFailedError when training failed.
    """
    PHASES.enter("checks its inputs")
    resumed = beginning.run_id if isinstance(beginning, Resumed) else None
    if resumed and (sentence := nothing_left(registry_of(gemfleet_home()), resumed, config)):
        return Outcome(resumed, RunState.SUCCEEDED, None, False, None, sentence)
    if beginning.run_id is not None:
        config = with_kept_adapter(config, gemfleet_home() / "runs" / beginning.run_id)
    if not isinstance(beginning, Submitted):
        check_everything(config)
    if isinstance(beginning, Resumed):
        check_resume(config.train, gemfleet_home() / "runs" / beginning.run_id, beginning.accept_changes)
    with SIGNALS.held():
        run = RunSession(config, config_path, display, beginning)
    with closing(run.lock), traced(run, trace), first_tries(), ends_in_the_registry(run):
        SIGNALS.heed()
        if isinstance(beginning, Submitted):
            check_everything(config)
            check_resume(config.train, run.folder, run.accepts_changes)
        resolved = with_adapter(with_clones(config, run.folder, display).train, run.folder)
        with tracked(run.registry, run.id, config.trackers, run.note):
            return carry_out(run, resolved, batch_cache, begun)


def carry_out(run: RunSession, resolved: TrainConfig, batch_cache: bool, begun: Begun | None) -> Outcome:
    """Take the run through its phases on its cluster. resolved: the settings with copies in place of remote sources"""
    home, api = gemfleet_home(), run.config.api
    PHASES.enter("joins Ray")
    with connected(run.config.cluster) as owned, seen_to_the_end(home, api, owned), ends_in_the_registry(run):
        run.note(f"run {run.id} in {run.folder}")
        run.claims = Claims(run.registry, ray.get_runtime_context().gcs_address)
        tell_what_differs(run)
        try:
            with status_api(home, api, f"/#/runs/{run.id}", run.note):
                await_admission(run)
                placement = preflight(run)
                actors = start_ahead(run, placement, begun)
                settled, plan = settle(run, resolved, placement)
                model, folders = stage(run, settled)
                adapters = stage_adapter(run, settled, model, {})
                ground = prepare_data(run, settled, placement, model, folders, adapters, actors.recorder)
                keep_early_facts(run, settled, ground)
                refuse_unknown_metric(settled, ground.source.eval_sets)
                settled.refuse_shared_pictures(len(ground.source.pictures))
                refuse_unsaved(run.config.output.checkpoint, settled, ground.source.steps_per_epoch)
                ready = find_micro(run, settled, placement, ground.source, folders, plan, batch_cache)
                run.keep_settled(ready)
                fitted = fit(run, ready, ground, actors)
            del actors  # the recorder and the store end before the result is made
        except StoppedBeforeFit as stopped:
            return end_untrained(run, str(stopped))
        raise_failure(run, fitted)
        result = fitted.snapshot["result"]
        with shelf_of(run.folder) as shelf:
            picked = None if ready.max_steps == 0 else picked_checkpoint(run, shelf, result)
            return finish(run, Trained(settled, picked, fitted.ground, result), fitted.interrupted)


@contextmanager
def traced(run: RunSession, file: Path | None) -> Iterator[None]:
    """Write the trace of the launch when it ends, however that is."""
    try:
        yield
    finally:
        if file is not None:
            try:
                write_trace(run.registry, run.id, run.folder, PHASES.taken("driver"), file)
            except (OSError, ClusterError) as error:  # the run's own end counts
                run.note(f"the trace {file} could not be written: {error}")


def tell_what_differs(run: RunSession) -> None:
    """Say, also as an event, which choice of the configuration the run carries out differently."""
    asked = run.config.train.precision
    if note := precision_note(asked):
        run.tell(EventKind.PRECISION, note, {"asked": asked})


def end_untrained(run: RunSession, reason: str) -> Outcome:
    """End a run that somebody stopped before its ranks trained, or between two fits."""
    run.note(reason)
    SIGNALS.ending()
    run.settle(RunState.STOPPED, reason)
    return Outcome(run.id, RunState.STOPPED, None, False, None, reason)


def raise_failure(run: RunSession, fitted: Fitted) -> None:
    """Raise UserError or TrainingFailedError if training failed. A rank's own words come before Ray's."""
    end, error = fitted.end, fitted.error
    if end.fault == "user":
        raise UserError(end.reason)
    if end.fault or error:
        text = end.reason or (str(first_cause(error)) if error else "")
        raise TrainingFailedError("\n".join(text.strip().splitlines()[-12:]), run.folder / "logs") from error


@contextmanager
def ends_in_the_registry(run: RunSession) -> Iterator[None]:
    """Write into the run's row how an error ends it. After a signal, raises KeyboardInterrupt in place of the error."""
    try:
        yield
    except BaseException as error:
        SIGNALS.ending()
        signalled = SIGNALS.asked is not None or isinstance(error, (KeyboardInterrupt, SystemExit))
        try:
            if not run.registry.get_run(run.id).state.is_terminal:
                run.settle(*end_state(run, error, signalled), END_ROOM_SECONDS)
        except RunConflict:
            pass  # another process has just marked it interrupted
        except ClusterError as unwritten:
            run.note(f"the registry does not say how the run ended: {unwritten}")
        if signalled and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise


def end_state(run: RunSession, error: BaseException, signalled: bool) -> tuple[RunState, str]:
    """The state in which an error leaves a run, and the reason."""
    reason = (str(error).strip() or repr(error)).splitlines()[0]
    if not signalled:
        return RunState.FAILED, reason
    state = run.registry.get_run(run.id).state
    ended_by = f"ended by {SIGNALS.asked or 'a signal'} in the state {state}"
    return RunState.INTERRUPTED, ended_by if isinstance(error, KeyboardInterrupt) else f"{ended_by}: {reason}"
