"""Checks submitted configurations, and starts runs as processes that outlive the API."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from gemfleet.cluster.errors import RunConflict
from gemfleet.cluster.registry.run_registry import Run, RunState
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.launcher.runs.folder import RESOLVED_FILE, refuse_leftovers
from gemfleet.launcher.runs.registry import registry_of
from gemfleet.train.config.deepspeed_json import read_deepspeed_json
from gemfleet.train.config.errors import explain
from pydantic import ValidationError

from .allowed import Allowed
from .problems import ApiError
from .refusals import refused
from .schemas import ProblemDetail

RAY_KEPT = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def checked_config(content: dict[str, Any], allowed: Allowed) -> LaunchConfig:
    """The validated configuration. Raises ApiError 422 with every field that is wrong or not allowed over the API.

    Opens files and addresses only below places that `allowed` names.
    """
    found = list(refused(content, allowed))
    if not found:
        content, found = _with_deepspeed(content, allowed)
    problems = [ProblemDetail(field=field, detail=reason) for field, reason in found]
    try:
        config = LaunchConfig.model_validate(content if not found else _without_files(content))
    except ValidationError as error:
        lines = [line.partition(": ") for line in explain(error, LaunchConfig)]
        problems += [ProblemDetail(field=field, detail=detail) for field, _, detail in lines]
    if not problems and config.cluster.address not in ("auto", "local"):
        detail = "runs started over the API use this head's own cluster; leave it out"
        problems = [ProblemDetail(field="cluster.address", detail=detail)]
    if "api" in content:  # this section could open the API, or folders, to others
        problems.append(ProblemDetail(field="api", detail="is set on the head, never over the API; leave it out"))
    if problems:
        raise ApiError(422, "the configuration is not accepted; `errors` lists every field", problems)
    return config


def _with_deepspeed(content: dict[str, Any], allowed: Allowed) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Put the content of a DeepSpeed file in place of its path. Returns the configuration and its new refusals."""
    section = _section(content, "train", "deepspeed")
    path = section.get("config")
    if not isinstance(path, str):
        return content, []
    try:
        inline = read_deepspeed_json(path)
    except ValueError as error:
        return content, [("train.deepspeed.config", str(error))]
    train = {**content["train"], "deepspeed": {**section, "config": inline}}
    content = {**content, "train": train}
    return content, list(refused(content, allowed))


def _without_files(content: dict[str, Any]) -> dict[str, Any]:
    """The configuration without paths of a DeepSpeed file and a chat template, so that validation opens nothing."""
    train = _section(content, "train")
    deepspeed, data = _section(train, "deepspeed"), _section(train, "data")
    if isinstance(deepspeed.get("config"), str):
        train = {**train, "deepspeed": {**deepspeed, "config": None}}
    if isinstance(data.get("chat_template"), str):
        train = {**train, "data": {**data, "chat_template": "gemma"}}
    return {**content, "train": train} if "train" in content and train else content


def _section(content: dict[str, Any], *names: str) -> dict[str, Any]:
    value: Any = content
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


class ProcessSubmitter:
    """Starts `gemfleet train` or `resume` as a process on the head. The process survives the API's end and Ray's."""

    def __init__(self, home: Path, ray_address: str | None = None) -> None:
        """ray_address: of the cluster for the runs; None: this machine's cluster, or one that each run starts"""
        self._home, self._ray_address = home, ray_address
        self._registry = registry_of(home)

    def start(self, run_id: str, config: dict[str, Any]) -> None:
        """See `Submitter.start`. The row comes first, so that the answer can show the run."""
        refuse_leftovers(self._home / "runs" / run_id)
        folder = self._home / "submitted" / run_id
        folder.mkdir(parents=True)
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        (folder / "config.yaml").write_text(text, encoding="utf-8")
        self._registry.create_run(run_id, config.get("name") or "run", text, os.getpid())
        self._launch(run_id, folder, "train", "config.yaml", "--run-id", run_id)

    def resume(self, run: Run) -> None:
        """See `Submitter.resume`. The row opens before the process starts, so a second request is a conflict."""
        if run.state.is_terminal and not (self._home / "runs" / run.id / RESOLVED_FILE).is_file():
            raise RunConflict(f"run {run.id} ended before its configuration was kept; start it anew")
        folder = self._home / "submitted" / run.id
        folder.mkdir(parents=True, exist_ok=True)
        self._registry.reopen(run.id, run.config, os.getpid())
        self._launch(run.id, folder, "resume", run.id, "--reopened")

    def _launch(self, run_id: str, folder: Path, *arguments: str) -> None:
        """Start the command as the run's driver. If that fails, the run's row says so."""
        command = [sys.executable, "-m", "gemfleet.launcher.cli", *arguments]
        try:
            self._registry.set_driver(run_id, start_detached(command, folder, self._environment()))
        except (OSError, subprocess.SubprocessError) as error:
            self._registry.transition(run_id, RunState.FAILED, f"its process did not start: {error}")
            raise

    def _environment(self) -> dict[str, str]:
        """This process's environment, without the variables that Ray sets for an actor."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        kept |= {key: os.environ[key] for key in RAY_KEPT if key in os.environ}
        ray = {"RAY_ADDRESS": self._ray_address} if self._ray_address else {}
        return {**kept, **ray, "GEMFLEET_HOME": str(self._home), "PYTHONUNBUFFERED": "1"}


def start_detached(command: Sequence[str], folder: Path, environment: dict[str, str]) -> int:
    """Start a process whose parent ends at once, because Ray ends an actor's children with it. Returns its id."""
    line = f"setsid {shlex.join(command)} < /dev/null >> output.log 2>&1 & echo $!"
    done = subprocess.run(
        ["sh", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=30
    )
    return int(done.stdout)
