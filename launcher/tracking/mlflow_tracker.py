"""MLflow: a server, or a folder or SQLite file on this disk. API: https://mlflow.org/docs/latest/api_reference/"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from gemfleet.cluster.registry.run_records import RunState

from .tracker import REQUEST_SECONDS, Opened, Points

MOST_METRICS, MOST_PARAMETERS = 1000, 100  # in one request, by MLflow's own rules
NAME_LETTERS = re.compile(r"[^\w./ :-]", re.ASCII)  # what a name may not hold
STATUS = {RunState.SUCCEEDED: "FINISHED", RunState.FAILED: "FAILED"}
# The defaults wait for minutes. A person's own values win.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(REQUEST_SECONDS),
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


class MlflowTracker:
    """One run of ours as a run of MLflow. See `Tracker`."""

    def __init__(self, uri: str, experiment: str, name: str) -> None:
        for key, value in ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        from mlflow import MlflowClient

        self._uri, self._experiment, self._name = uri, experiment, name
        self._client: Any = MlflowClient(uri)
        self._id = ""

    def open(self, known: str | None) -> Opened:
        run = self._known_run(known)
        if run is None:
            run = self._client.create_run(self._experiment_id(), run_name=self._name, tags={"gemfleet.run": self._name})
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
        self._id = run.info.run_id
        page = f"{self._uri.rstrip('/')}/#/experiments/{run.info.experiment_id}/runs/{self._id}"
        return Opened(self._id, page if self._uri.startswith("http") else None)

    def parameters(self, values: Mapping[str, Any]) -> None:
        """MLflow's parameters never change, so a value that a resumed run has anew becomes a tag."""
        from mlflow.entities import Param, RunTag

        texts = {_name(key): _text(value) for key, value in values.items()}
        there = self._client.get_run(self._id).data.params
        new = iter([Param(key, text) for key, text in texts.items() if key not in there])
        while page := list(islice(new, MOST_PARAMETERS)):
            self._client.log_batch(self._id, params=page)
        changed = [RunTag(f"resumed.{key}", text) for key, text in texts.items() if there.get(key, text) != text]
        if changed:
            self._client.log_batch(self._id, tags=changed[:MOST_PARAMETERS])

    def log(self, points: Sequence[Points]) -> None:
        figures = _figures(points)
        while page := list(islice(figures, MOST_METRICS)):
            self._client.log_batch(self._id, metrics=page)

    def finish(self, state: RunState, reason: str, files: Sequence[Path]) -> None:
        for path in files:
            self._client.log_artifact(self._id, str(path))
        self._client.set_tag(self._id, "gemfleet.state", f"{state}: {reason}" if reason else str(state))
        self._client.set_terminated(self._id, STATUS.get(state, "KILLED"))

    def _known_run(self, known: str | None) -> Any:
        """The run of this id, or that an earlier process made without learning its id. None where there is none."""
        from mlflow.exceptions import MlflowException

        if known is None:
            query = f"tags.`gemfleet.run` = '{self._name}'"
            found = self._client.search_runs([self._experiment_id()], query, max_results=1)
            return found[0] if found else None
        try:
            run = self._client.get_run(known)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is not None:
            return str(found.experiment_id)
        beside = self._uri.removeprefix("sqlite:///").partition("?")[0]
        place = f"file://{beside}-artifacts" if self._uri.startswith("sqlite:") else None
        return str(self._client.create_experiment(self._experiment, artifact_location=place))


def _figures(points: Sequence[Points]) -> Iterator[Any]:
    from mlflow.entities import Metric

    for point in points:
        for tag, value in point.values.items():
            yield Metric(_name(tag), value, int(point.time * 1000), point.step)


def _name(text: str) -> str:
    return NAME_LETTERS.sub("_", text)


def _text(value: Any) -> str:
    return str(value)[:6000]  # the longest that MLflow takes
