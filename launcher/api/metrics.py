"""The registry as Prometheus metrics: base units, and the label `run`, and `rank` or `set` where each has its own.

Only runs that go on or have just ended are shown, so that the number of series stays small.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.registry_reader import RegistryReader
from gemfleet.cluster.registry.run_registry import Run, RunState
from gemfleet.train.step.figure import Figure
from gemfleet.train.step.record import FIGURES
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from .totals import RunTotals

RECENT_SECONDS = 300.0  # a run that ended is shown so much longer, for the last scrape to see its end
MOST_RUNS = 20


class RunCollector(Collector):
    """Reads at every scrape what is newest; sums over a run's history come from `totals`."""

    def __init__(self, reader: RegistryReader, totals: RunTotals) -> None:
        self._reader, self._run_totals = reader, totals

    def collect(self) -> Iterator[Metric]:
        yield _states(self._reader.states())
        runs = self._reader.runs_since(time.time() - RECENT_SECONDS, MOST_RUNS)
        yield from self._newest(runs)
        yield from self._totals(runs)

    def _newest(self, runs: list[Run]) -> Iterator[Metric]:
        """Gauges of each run's newest step and evaluation, and its progress."""
        for kind in ("step", "eval"):
            newest = {run.id: self._reader.latest_metrics(run.id, kind) or {} for run in runs}
            for figure in FIGURES:
                if figure.gauge and figure.kind == kind:
                    yield _gauge(figure, newest)
            if kind == "step":
                yield _progress(newest)

    def _totals(self, runs: list[Run]) -> Iterator[Metric]:
        """What only grows while a run goes on. A step trained again after a restart counts once."""
        tokens = CounterMetricFamily("gemfleet_tokens", "Non-padding tokens trained on.", labels=["run"])
        steps = CounterMetricFamily("gemfleet_steps", "Optimizer steps done.", labels=["run"])
        seconds = CounterMetricFamily("gemfleet_training_seconds", "Wall time of all steps.", labels=["run"])
        restarts = CounterMetricFamily("gemfleet_restarts", "Attempts after the first.", labels=["run"])
        lost = CounterMetricFamily("gemfleet_checkpoints_failed", "Checkpoints that did not arrive.", labels=["run"])
        kept = CounterMetricFamily("gemfleet_checkpoints_saved", "Checkpoints that arrived.", labels=["run"])
        kept_bytes = CounterMetricFamily("gemfleet_checkpoints_saved_bytes", "Size of all of them.", labels=["run"])
        kept_seconds = CounterMetricFamily(
            "gemfleet_checkpoints_saved_seconds", "Time from the first file of each to its commit.", labels=["run"]
        )
        trials = CounterMetricFamily("gemfleet_batch_trials", "Settings the batch finder tried.", labels=["run"])
        saved = GaugeMetricFamily("gemfleet_checkpoint_bytes", "Size of the newest checkpoint.", labels=["run"])
        took = GaugeMetricFamily(
            "gemfleet_checkpoint_seconds", "Time from the newest checkpoint's first file to its commit.", labels=["run"]
        )
        age = GaugeMetricFamily(
            "gemfleet_checkpoint_timestamp_seconds", "When the newest checkpoint was committed.", labels=["run"]
        )
        known = self._run_totals.of(runs)
        for run in runs:
            newest = self._reader.latest_metrics(run.id, "step")
            steps.add_metric([run.id], newest["step"] if newest else 0)
            if (totals := known.get(run.id)) is not None:
                tokens.add_metric([run.id], totals.tokens)
                seconds.add_metric([run.id], totals.step_seconds)
                restarts.add_metric([run.id], totals.events["restarting"])
                lost.add_metric([run.id], totals.events[EventKind.CHECKPOINT_FAILED])
                trials.add_metric([run.id], totals.events[EventKind.BATCH_TRIAL])
                kept.add_metric([run.id], totals.events[EventKind.CHECKPOINT])
                kept_bytes.add_metric([run.id], totals.saved_bytes)
                kept_seconds.add_metric([run.id], totals.saved_seconds)
            for checkpoint in self._reader.checkpoints(run.id)[-1:]:
                saved.add_metric([run.id], checkpoint["bytes"])
                age.add_metric([run.id], checkpoint["created_at"])
                if checkpoint["seconds"] is not None:
                    took.add_metric([run.id], checkpoint["seconds"])
        yield from (tokens, steps, seconds, restarts, lost, kept, kept_bytes, kept_seconds, trials, saved, took, age)


def _gauge(figure: Figure, newest: Mapping[str, Mapping[str, Any]]) -> GaugeMetricFamily:
    """One figure of each run's newest record, or of each of its ranks or evaluation sets."""
    labels = ["run", *(["rank"] if figure.per_rank else ["set"] if figure.per_set else [])]
    gauge = GaugeMetricFamily(f"gemfleet_{figure.gauge}", figure.text, labels=labels)
    for run_id, record in newest.items():
        for name, value in figure.values(record):
            gauge.add_metric([run_id] if name is None else [run_id, name], value)
    return gauge


def _progress(steps: Mapping[str, Mapping[str, Any]]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily("gemfleet_progress_ratio", "Steps done of all steps, 0 to 1.", labels=["run"])
    for run_id, step in steps.items():
        if step.get("total_steps"):
            gauge.add_metric([run_id], step["step"] / step["total_steps"])
    return gauge


def _states(counts: Mapping[str, int]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily("gemfleet_runs", "Runs in each state.", labels=["state"])
    for state in RunState:
        gauge.add_metric([str(state)], counts.get(str(state), 0))
    return gauge
