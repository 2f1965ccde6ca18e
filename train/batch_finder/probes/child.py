"""A probe process: one rank of a probe group.

It reads its task, and then sizes to try, from standard input, answers on standard output, one JSON a line, and ends
with its parent. Answers: `ready`, `measured`, `failed`, and every second `alive`, by which the parent tells a busy
process from a stopped one.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import queue
import signal
import sys
import threading
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .trial import Failure

if TYPE_CHECKING:
    from ...config.schema import TrainConfig
    from ..typical import Steps
    from .probe import Probe

ALIVE_SECONDS = 1.0
PR_SET_PDEATHSIG = 1
GROUP_TIMEOUT = timedelta(hours=12)  # a parent ends what hangs much earlier


@dataclass(frozen=True)
class ProbeTask:
    """The task of one probe process. Memory in bytes.

    config:        the `train` section as JSON values
    address:       host:port where the ranks of this group meet
    memory_limit:  the most that the configuration lets this rank use; None: no limit
    besides_bytes: memory that a rank of the run holds and a probe does not, such as Ray or the data
    steps:         steps of the run, for timings; see `batch_finder/typical.py`
    """

    config: dict[str, Any]
    model_folder: str
    rank: int
    world_size: int
    local_rank: int
    ranks_on_node: int
    address: str
    memory_limit: int | None
    besides_bytes: int = 0
    steps: Steps = ()


class Answers:
    """Writes answers, one JSON a line, from any thread."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def put(self, kind: str, **facts: Any) -> None:
        with self._lock:
            self._stream.write(json.dumps({"kind": kind, **facts}) + "\n")
            self._stream.flush()


def main() -> None:
    end_with_parent()
    answers = Answers(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)  # what libraries print may not mix with the answers
    threading.Thread(target=_stay_alive, args=(answers,), daemon=True).start()
    sizes = _read_input()
    try:
        _serve(ProbeTask(**sizes.get()), sizes, answers)
    except BaseException as error:
        answers.put("failed", cause=_cause(error), message=str(error)[:2000] or type(error).__name__)
    # A rank that failed may not wait for others in a destructor. This process is thrown away.
    os._exit(0)


def _serve(task: ProbeTask, sizes: queue.Queue[dict[str, Any]], answers: Answers) -> None:
    for name in ("transformers.models.gemma3.modeling_gemma3", "peft"):
        importlib.import_module(name)
    from .probe import Probe

    config = _prepare(task)
    watched = _watch_memory(task, answers)
    probe = Probe(config, Path(task.model_folder), task.local_rank, task.steps)
    answers.put("ready", limit_bytes=watched or _gpu_limit(task, probe), device=probe.device_name)
    while True:
        asked = sizes.get()
        peak, seconds = (probe.measure_evaluation if asked["evaluation"] else probe.measure)(asked["rows"])
        answers.put("measured", rows=asked["rows"], peak_bytes=peak, seconds=seconds)


def _watch_memory(task: ProbeTask, answers: Answers) -> int | None:
    """On a CPU, starts a thread that ends this process beyond its limit, and returns the limit. None on a GPU."""
    import torch

    from ...device.memory import MemoryWatch, usable_limit

    if torch.cuda.is_available():
        return None
    limit = usable_limit(torch.device("cpu"), task.memory_limit, task.ranks_on_node) - task.besides_bytes

    def give_up(resident: int) -> None:
        answers.put("failed", cause=Failure.MEMORY, message=f"{resident} bytes resident, the limit is {limit}")
        os._exit(0)

    MemoryWatch(limit, give_up).start()
    return limit


def _gpu_limit(task: ProbeTask, probe: Probe) -> int:
    """The bytes that this rank may use of its GPU. Called after a step, when context and communication have theirs."""
    from ...device.memory import usable_limit

    return usable_limit(probe.device, task.memory_limit, task.ranks_on_node)


def _cause(error: BaseException) -> Failure:
    from ...device.out_of_memory import is_out_of_memory
    from ...errors import UserError

    if is_out_of_memory(error):
        return Failure.MEMORY
    return Failure.USER if isinstance(error, UserError) else Failure.ERROR


def _prepare(task: ProbeTask) -> TrainConfig:
    """Prepares threads, process group and configuration as for a rank of the run."""
    from ...config.schema import TrainConfig as Config
    from ...device.abilities import current_device, prepare_process
    from ...device.out_of_memory import apply_memory_limit

    prepare_process(task.ranks_on_node)
    device = current_device(task.local_rank).device
    os.environ["LOCAL_RANK"] = str(device.index or 0)  # under ZeRO-3, DeepSpeed takes it as the device's index
    _join_group(task)
    config = Config.model_validate_json(json.dumps(task.config))
    if device.type == "cuda":
        apply_memory_limit(config.batch, device)
    return config


def _join_group(task: ProbeTask) -> None:
    """Makes the process group of this probe group. A single rank has one, too: sharding needs it."""
    import torch
    import torch.distributed as dist

    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        init_method=f"tcp://{task.address}",
        rank=task.rank,
        world_size=task.world_size,
        timeout=GROUP_TIMEOUT,
    )


def end_with_parent() -> None:
    """Asks Linux to kill this process, also a stopped one, when its parent dies."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _read_input() -> queue.Queue[dict[str, Any]]:
    """The lines of standard input as they come. Their end means that the parent is gone."""
    lines: queue.Queue[dict[str, Any]] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(json.loads(line))
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    return lines


def _stay_alive(answers: Answers) -> None:
    beat = threading.Event()
    while not beat.wait(ALIVE_SECONDS):
        answers.put("alive")


def task_line(task: ProbeTask) -> str:
    """The task as the line that the child reads."""
    return json.dumps(asdict(task)) + "\n"


if __name__ == "__main__":
    main()
