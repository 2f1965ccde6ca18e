"""Whole runs as a person starts them: `gemfleet` in a process of its own, in a folder with a configuration and rows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import yaml
from gemfleet.cluster.registry.run_registry import RunRegistry
from gemfleet.train.errors import UserError

from .models import model_folder
from .processes import last_line

T = TypeVar("T")
COMMAND = (sys.executable, "-m", "gemfleet.launcher.cli")
WAIT_SECONDS = 300.0
ROWS, GLOBAL_BATCH, WORKERS = 256, 4, 2
STEPS_PER_EPOCH = ROWS // GLOBAL_BATCH


class Gemfleet:
    """`gemfleet ARGUMENTS`, started in `folder`, with runs below `home`. Ended when the context ends.

    grace: seconds from SIGTERM to SIGKILL; 0: it is killed at once
    """

    def __init__(self, folder: Path, home: Path, *arguments: str, grace: float = 0.0) -> None:
        self.home, self.log, self._grace = home, folder / f"{home.name}.log", grace
        own = {"GEMFLEET_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        self.environment = {**os.environ, **own}
        with self.log.open("wb") as log:
            command, environment = [*COMMAND, *arguments], self.environment
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)

    def __enter__(self) -> Gemfleet:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(subprocess.TimeoutExpired):
            if self._grace:
                self.process.terminate()
                self.process.wait(self._grace)
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Wait for a good end; UserError for any other."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(WAIT_SECONDS)
        if self.process.returncode != 0:
            raise self._error("before its good end")

    def wait_for(self, look: Callable[[], T | None], what: str) -> T:
        """What `look` finds. UserError if the command ends before it does, or time is over."""
        deadline = time.monotonic() + WAIT_SECONDS
        while (found := look()) is None:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise self._error(f"before {what}")
            time.sleep(0.2)
        return found

    def step(self, wanted: Callable[[dict[str, Any]], bool]) -> tuple[RunRegistry, str, dict[str, Any]]:
        """The first reported step that is wanted, with its run."""

        def look() -> tuple[RunRegistry, str, dict[str, Any]] | None:
            if not (self.home / "gemfleet.db").exists():
                return None
            registry = RunRegistry(self.home / "gemfleet.db")
            steps = ((run.id, step) for run in registry.list_runs() for step in registry.metrics(run.id, kind="step"))
            return next(((registry, run_id, step) for run_id, step in steps if wanted(step)), None)

        return self.wait_for(look, "the step that is waited for")

    def dashboard(self) -> tuple[str, str]:
        """The status API's address and the run's id, as the command prints them."""

        def look() -> tuple[str, str] | None:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
            address = next((line.split()[1] for line in lines if line.startswith("dashboard: http")), None)
            return None if address is None else (address.partition("/#")[0].rstrip("/"), address.rpartition("/")[2])

        return self.wait_for(look, "the line with the dashboard's address")

    def _error(self, before: str) -> UserError:
        code = self.process.poll()
        ended = f"took {WAIT_SECONDS:g} s" if code is None else f"ended with code {code}"
        return UserError(f"the command {ended} {before}; {last_line(self.log)}")


def write_run(folder: Path, rows: Sequence[Mapping[str, str]], train: Mapping[str, Any], **sections: Any) -> None:
    """`run.yaml` and `rows.jsonl`: whole steps of equal batches, without evaluation."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fixed = {"strategy": "ddp", "activation_checkpointing": "off", "evaluation": {"every": "never"}}
    data = {"train": "rows.jsonl", "eval_fraction": 0.0, **train["data"]}
    (folder / "run.yaml").write_text(yaml.safe_dump({"train": {**fixed, **train, "data": data}, **sections}))


@contextmanager
def tiny_runs(epochs: float, save_every: int | str) -> Iterator[Path]:
    """A folder with `run.yaml`: a run of a tiny model by `WORKERS` ranks of one thread each on a Ray cluster of this
    machine, which is up meanwhile. save_every: steps, or `never`"""
    from gemfleet.cluster.local import connect

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    connection = connect("local", workers=WORKERS + 2)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-runs-") as name:
            folder, cluster = Path(name), {"address": connection.address, "workers": WORKERS}
            # A link would be refused: the folder is staged to nodes.
            shutil.copytree(model_folder("tiny", None), folder / "model")
            save_byte_tokenizer(folder / "model")
            rows = [{"prompt": f"question {i}? ", "completion": f"answer {i % 7}"} for i in range(ROWS)]
            train = {"model": "./model", "data": {"max_length": 128}, "batch": {"global": GLOBAL_BATCH, "micro": 1}}
            fixed = {"epochs": epochs, "precision": "fp32", "checkpoint": {"every": save_every}}
            write_run(folder, rows, {**train, **fixed}, name="bench", cluster=cluster)
            yield folder
    finally:
        connection.close()


def save_byte_tokenizer(folder: Path) -> None:
    """One token for each byte, and Gemma's control tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    tokens = [*special.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
