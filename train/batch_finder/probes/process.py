"""The parent's side of a probe process: starts it, sends it sizes, takes its answers, ends it. Only `kill` waits."""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Protocol

from .child import ProbeTask, task_line

Answer = dict[str, Any]


class ProbeHandle(Protocol):
    """One rank's probe process, here or on another node. After `kill`, it may be started again."""

    node: str

    def free_address(self) -> str:
        """A free host:port on this node, where the ranks of a group can meet."""
        ...

    def start(self, task: ProbeTask) -> None: ...

    def send(self, rows: int, evaluation: bool) -> None:
        """Asks for a trial of training, or of an evaluation."""
        ...

    def poll(self) -> list[Answer]:
        """The answers since the last call. After the process's end, the last one is `exited`."""
        ...

    def kill(self) -> None:
        """Sends SIGKILL and waits until the process is gone. Does nothing if none runs."""
        ...


class LocalProbe:
    """A probe process on this machine."""

    def __init__(self, address: str = "127.0.0.1", node: str = "this machine") -> None:
        self.node, self._address = node, address
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[Answer] = queue.Queue()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def free_address(self) -> str:
        with socket.socket() as listener:
            listener.bind(("", 0))
            return f"{self._address}:{listener.getsockname()[1]}"

    def start(self, task: ProbeTask) -> None:
        assert self._process is None
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed by kill)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"{__package__}.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(),
            text=True,
        )
        self._answers = queue.Queue()
        threading.Thread(target=_read, args=(self._process, self._answers), daemon=True).start()
        self._write(task_line(task))

    def send(self, rows: int, evaluation: bool) -> None:
        self._write(json.dumps({"rows": rows, "evaluation": evaluation}) + "\n")

    def poll(self) -> list[Answer]:
        answers = []
        while not self._answers.empty():
            answers.append(self._answers.get())
        for answer in answers:
            if answer["kind"] == "exited":
                answer["message"] = self._last_words()
        return answers

    def kill(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        process.wait()
        for stream in (process.stdin, self._errors):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue  # lines that the process has not read are lost with it

    def _write(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # it has ended, as `poll` will tell

    def _last_words(self) -> str:
        """The last line that the process wrote to its standard error."""
        assert self._process is not None
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return f"ended with code {self._process.wait()}" + (f": {lines[-1][:500]}" if lines else "")


def _read(process: subprocess.Popen[str], answers: queue.Queue[Answer]) -> None:
    """Takes answers until the process ends. A line that its death cut short is no answer."""
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            try:
                answers.put(json.loads(line))
            except ValueError:
                break
    answers.put({"kind": "exited", "message": ""})


def _environment() -> dict[str, str]:
    """This process's environment without torchrun's variables. From a checkout, with the package's root on the path."""
    assert __package__ is not None
    hidden = ("MASTER_", "TORCHELASTIC_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    if not __package__.startswith("gemfleet."):
        root = str(Path(__file__).resolve().parents[len(__package__.split("."))])
        kept["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [kept.get("PYTHONPATH")])])
    return kept
