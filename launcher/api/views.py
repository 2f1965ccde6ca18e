"""Turns what the registry holds into what the API answers: pure functions, apart from looking at files' sizes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import yaml
from gemfleet.cluster.checkpoint_store.manifest import Manifest
from gemfleet.cluster.errors import StoreError
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.registry_reader import RegistryReader
from gemfleet.cluster.registry.run_registry import Run, RunState
from gemfleet.launcher.data_view.view import DataView, Span
from gemfleet.launcher.runs.folder import DATA_FILE
from gemfleet.launcher.runs.registry import early_end_of, published_of
from gemfleet.launcher.runs.sweeps import sweep_of
from gemfleet.launcher.tracking.state import TrackerState, tracker_states
from gemfleet.train.config.precision import describe_precision
from gemfleet.train.config.schema import Precision
from gemfleet.train.step.figure import Figure

from .figures import THROUGHPUT
from .published import has_adapter
from .redaction import redact, redact_text
from .schemas import (
    Checkpoint,
    CheckpointFile,
    CheckpointTotals,
    Event,
    FigureChart,
    FigureView,
    Metric,
    Progress,
    Rank,
    RunDetail,
    RunSummary,
    Throughput,
    TrackerView,
)

BATCH_EVENTS = (EventKind.BATCH_PLANNED, EventKind.BATCH_FOUND, EventKind.BATCH_CACHED)


def progress_of(step: Mapping[str, Any] | None, state: RunState) -> Progress:
    """How far a run is. One that succeeded is done, also where it ended early."""
    if step is None:
        return Progress()
    total = step.get("total_steps", 0)
    reached = 1.0 if state is RunState.SUCCEEDED else step["step"] / total if total else 0.0
    return Progress(
        step=step["step"],
        total_steps=total,
        epoch=step.get("epoch", 0.0),
        epochs=step.get("epochs", 0.0),
        fraction=min(1.0, reached),
        eta_seconds=None if state.is_terminal else step.get("seconds_left"),
    )


def summary_fields(
    run: Run, step: dict[str, Any] | None, evaluation: dict[str, Any] | None, figures: Mapping[str, Any]
) -> dict[str, Any]:
    """What the list and the single view share. figures: of the whole run, once it has ended."""
    return {
        "id": run.id,
        "name": run.name,
        "status": run.state,
        "reason": redact_text(run.reason),
        "model": model_of(run),
        "created_at": int(run.created_at),
        "updated_at": int(run.updated_at),
        "finished_at": None if run.ended_at is None else int(run.ended_at),
        "stop_requested": run.stop_requested,
        "tags": redact(dict(run.tags)),
        "archived": run.archived,
        "progress": progress_of(step, run.state),
        "loss": redact(figures.get("loss", (step or {}).get("loss"))),
        "eval_loss": redact((evaluation or {}).get("eval_loss")),
    }


def run_summary(reader: RegistryReader, run: Run) -> RunSummary:
    step, evaluation = reader.latest_metrics(run.id, "step"), reader.latest_metrics(run.id, "eval")
    sweep = sweep_of(reader.path.parent, run.id)
    return RunSummary(**summary_fields(run, step, evaluation, reader.end_figures(run.id)), sweep=sweep)


def run_detail(reader: RegistryReader, run: Run, folder: Path, prefix: str) -> RunDetail:
    """`folder`: the run's; `prefix`: the path of the run in the API, for links."""
    step, evaluation = reader.latest_metrics(run.id, "step"), reader.latest_metrics(run.id, "eval")
    batch = reader.last_event(run.id, *BATCH_EVENTS)
    strategy = reader.last_event(run.id, EventKind.STRATEGY)
    early, published = early_end_of(reader, run), published_of(reader, run.id)
    figures = reader.end_figures(run.id)
    known = redact({**(step or {}), **figures})
    throughput = {figure.name: known.get(figure.name) for figure in THROUGHPUT}
    return RunDetail(
        **summary_fields(run, step, evaluation, figures),
        sweep=sweep_of(reader.path.parent, run.id),
        waiting_for=waiting_for(reader, run),
        precision=precision_of(run),
        learning_rate=redact((step or {}).get("learning_rate")),
        grad_norm=redact((step or {}).get("grad_norm")),
        throughput=Throughput(**throughput) if step else None,
        strategy=redact(strategy["data"]) if strategy else None,
        batch_finder=redact(batch["data"]) if batch else None,
        ranks=[rank_view(row) for row in reader.ranks(run.id)],
        last_checkpoint=last_whole_checkpoint(reader, run.id, folder, prefix),
        checkpoint_totals=checkpoint_totals(reader, run.id),
        stopped_early=redact_text(early) if early else None,
        published=redact_text(published) if published else None,
        trackers=[tracker_view(state) for state in tracker_states(folder)],
        restarts=reader.restarts(run.id),
        adapter_url=f"{prefix}/adapter/download" if has_adapter(folder) else None,
        events_url=f"{prefix}/events",
        metrics_url=f"{prefix}/metrics",
        checkpoints_url=f"{prefix}/checkpoints",
    )


def waiting_for(reader: RegistryReader, run: Run) -> str | None:
    """What the run said last that it waits for, while it waits."""
    if run.state is RunState.QUEUED:
        return "the run's own process has not begun yet"
    event = reader.last_event(run.id, EventKind.WAITING) if run.state is RunState.PREFLIGHT else None
    return redact_text(event["message"]) if event else None


def model_of(run: Run) -> str | None:
    model = value_in(run.config, ("train", "model"))
    return redact_text(model) if model else None


def precision_of(run: Run) -> str | None:
    """What the run computes in, and what was asked for where that is something else."""
    asked = config_of(run).get("train", {}).get("precision")
    return describe_precision(asked) if asked in get_args(Precision) else None


def config_of(run: Run) -> dict[str, Any]:
    """The resolved configuration; empty where the row holds none."""
    try:
        content = yaml.load(run.config, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def value_in(config: str, field: tuple[str, ...]) -> str | None:
    """One value of a configuration as text, read no further than that: a list shows it of hundreds of runs."""
    keys: list[str | None] = []  # of the open mappings and sequences
    try:
        for event in yaml.parse(config, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if isinstance(event, yaml.CollectionStartEvent):
                keys.append(None)
            elif isinstance(event, yaml.CollectionEndEvent):
                keys.pop()
                keys[-1:] = [None for _ in keys[-1:]]
            elif isinstance(event, yaml.ScalarEvent) and keys:
                if tuple(keys) == field:
                    return str(event.value)
                keys[-1] = event.value if keys[-1] is None else None
    except yaml.YAMLError:
        return None
    return None


def data_view(folder: Path) -> DataView | None:
    """What a run trains on, without secrets. None where its folder has no description, or a damaged one."""
    try:
        view = DataView.model_validate(json.loads((folder / DATA_FILE).read_bytes()))
        hidden = [{"spans": _without_secrets(one.spans), "pictures": []} for one in view.examples]
        examples = [one.model_copy(update=parts) for one, parts in zip(view.examples, hidden, strict=True)]
        clean = DataView.model_validate(redact(view.model_copy(update={"examples": examples}).model_dump()))
        pictures = [one.pictures for one in view.examples]
        shown = [one.model_copy(update={"pictures": p}) for one, p in zip(clean.examples, pictures, strict=True)]
        return clean.model_copy(update={"examples": shown})
    except (OSError, ValueError):
        return None


def _without_secrets(spans: list[Span]) -> list[Span]:
    """The spans, or their whole text in one where a secret shows only in that: its name in one span, it in the next."""
    whole = redact_text("".join(span.text for span in spans))
    if whole == "".join(redact_text(span.text) for span in spans):
        return spans
    return [Span(text=whole, supervised=False)]


def rank_view(row: Mapping[str, Any]) -> Rank:
    return Rank(
        rank=row["rank"],
        node=row["node"],
        address=row["address"],
        pid=row["pid"],
        heartbeat_at=row["heartbeat"],
        heartbeat_age_seconds=max(0.0, time.time() - row["heartbeat"]),
    )


def tracker_view(state: TrackerState) -> TrackerView:
    """A link that is no page of the web is left out."""
    link = state.link if state.link and state.link.startswith(("http://", "https://")) else None
    return TrackerView(
        type=state.type,
        place=redact_text(state.place),
        link=redact_text(link) if link else None,
        problem=redact_text(state.problem),
    )


def event_view(row: Mapping[str, Any]) -> Event:
    return Event(
        id=str(row["seq"]),
        run_id=row["run_id"],
        created_at=row["time"],
        type=row["kind"],
        message=redact_text(row["message"]),
        data=redact(row["data"]),
    )


def figure_view(figure: Figure) -> FigureView:
    return FigureView(
        name=figure.name,
        kind=figure.kind,
        unit=figure.unit,
        description=figure.text,
        per_rank=figure.per_rank,
        per_set=figure.per_set,
        over_run=figure.over_run,
        tile=figure.tile,
        chart=FigureChart(**asdict(figure.chart)) if figure.chart else None,
        curve=figure.tag if figure.curve else None,
        gauge=f"gemfleet_{figure.gauge}" if figure.gauge else None,
    )


def metric_view(record: Mapping[str, Any]) -> Metric:
    return Metric(**redact(dict(record)))


def checkpoint_totals(reader: RegistryReader, run_id: str) -> CheckpointTotals:
    return CheckpointTotals(
        saved=reader.event_count(run_id, EventKind.CHECKPOINT),
        failed=reader.event_count(run_id, EventKind.CHECKPOINT_FAILED),
        bytes=int(reader.event_sum(run_id, EventKind.CHECKPOINT, "bytes")),
        seconds=reader.event_sum(run_id, EventKind.CHECKPOINT, "seconds"),
    )


def last_whole_checkpoint(reader: RegistryReader, run_id: str, folder: Path, prefix: str) -> Checkpoint | None:
    """The newest whose files are as its manifest says; one that is damaged or gone is passed over, as on resuming.

    One in an object store is taken at the registry's word.
    """
    views = (checkpoint_view(run_id, row, folder, prefix) for row in reader.checkpoints(run_id, newest_first=True))
    return next((view for view in views if view.state in ("verified", "remote")), None)


def checkpoint_folder(row: Mapping[str, Any], run_folder: Path) -> Path | None:
    """In the run's folder, though the home may have moved, or where it was written; None for an object store."""
    if "://" in row["path"]:
        return None
    ours = run_folder / "checkpoints" / f"checkpoint-{row['step']}"
    return ours if ours.exists() else Path(row["path"])


def checkpoint_view(run_id: str, row: Mapping[str, Any], run_folder: Path, prefix: str) -> Checkpoint:
    """One row, beside what its manifest says now. Hashes are checked again when it is downloaded."""
    folder = checkpoint_folder(row, run_folder)
    try:
        manifest = None if folder is None else Manifest.read(folder)
    except StoreError:
        manifest = None
    files: list[CheckpointFile] = []
    if folder is None:
        state = "remote"
    elif manifest is None:
        state = "missing" if not folder.exists() else "damaged"
    else:
        files = [CheckpointFile(path=f.path, bytes=f.size, sha256=f.sha256) for f in manifest.files]
        whole = all(_size(folder / entry.path) == entry.size for entry in manifest.files)
        state = "verified" if whole else "damaged" if folder.exists() else "missing"  # removed just now
    return Checkpoint(
        id=f"checkpoint-{row['step']}",
        run_id=run_id,
        step=row["step"],
        created_at=int(row["created_at"]),
        bytes=row["bytes"],
        seconds=row["seconds"],
        generation=row["generation"],
        eval_loss=redact(manifest.metrics.get("eval_loss")) if manifest else None,
        state=state,  # type: ignore[arg-type]
        files=files,
        download_url=f"{prefix}/checkpoints/{row['step']}/download",
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
