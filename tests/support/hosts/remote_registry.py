"""The registry of a host, read from outside it: a process in the host answers, line by line.

Its file cannot be opened through `/proc/<pid>/root`, because SQLite resolves that link to our own `/`.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

from gemfleet.cluster.registry.run_registry import Run, RunState
from support.hosts.hosts import Host

SERVER = """
import json, sys
from gemfleet.cluster.registry.run_registry import RunRegistry
from gemfleet.train.config.home import gemfleet_home
registry = RunRegistry(gemfleet_home() / "gemfleet.db")
for line in sys.stdin:
    method, arguments, options = json.loads(line)
    print(json.dumps(getattr(registry, method)(*arguments, **options), default=lambda run: run.to_dict()), flush=True)
"""
LIVES_S = 1500.0


class RemoteRegistry:
    """The reading methods of `RunRegistry`; they outlive whoever kills the process that answers."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._process: subprocess.Popen[str] | None = None

    def get_run(self, run_id: str) -> Run:
        return _run(self._ask("get_run", run_id))

    def list_runs(self) -> list[Run]:
        return [_run(values) for values in self._ask("list_runs")]

    def events(self, run_id: str) -> list[dict[str, Any]]:
        return list(self._ask("events", run_id))

    def metrics(self, run_id: str, kind: str) -> list[dict[str, Any]]:
        return list(self._ask("metrics", run_id, kind=kind))

    def latest_metrics(self, run_id: str, kind: str) -> dict[str, Any] | None:
        newest: dict[str, Any] | None = self._ask("latest_metrics", run_id, kind)
        return newest

    def checkpoints(self, run_id: str) -> list[dict[str, Any]]:
        return list(self._ask("checkpoints", run_id))

    def ranks(self, run_id: str) -> list[dict[str, Any]]:
        return list(self._ask("ranks", run_id))

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        for _ in range(2):
            process = self._process or self._start()
            try:
                print(json.dumps([method, arguments, options]), file=process.stdin, flush=True)
                answer = process.stdout.readline() if process.stdout else ""
            except BrokenPipeError:
                answer = ""
            if answer:
                return json.loads(answer)
            self.close()
        raise AssertionError(f"the registry of {self._host.name} did not answer {method}{arguments}")

    def _start(self) -> subprocess.Popen[str]:
        command = self._host.command(["python", "-c", SERVER], timeout_s=LIVES_S)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self._process


def _run(values: dict[str, Any]) -> Run:
    return Run(**{**values, "state": RunState(values["state"])})
