"""Each test here is a part of the proof on a GPU (docs/gpu-proof.md): it finds out figures and tells all that fail.

On their own (`make test-gpu`) they run at full size on this machine's GPU. Started by the proof
(`python -m support.gpu_proof`) they also tell it each finding, as JSON lines on the standard output; what libraries and
pytest print then goes to the standard error.
"""

from __future__ import annotations

import gc
import json
import os
import traceback
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.gpu_proof.settings import SETTINGS, Settings
from support.gpu_proof.stage import CPU, Stage

ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "GLOO_SOCKET_IFNAME": "lo"}
UNUSABLE = 3  # exit code
settings = SETTINGS or Settings()
events = None
if SETTINGS is not None:
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)


def tell(event: Mapping[str, Any]) -> None:
    if events is not None:
        events.write(json.dumps(event) + "\n")
        events.flush()


def pytest_itemcollected(item: pytest.Item) -> None:
    if settings.device == "cuda":
        item.add_marker(pytest.mark.gpu)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A part fails where a check does, and is skipped where all of them are."""
    stage = pyfuncitem.funcargs["stage"]
    tell({"event": "begin", "function": pyfuncitem.originalname})
    error: str | None = None
    try:
        found = yield
    except Exception as raised:
        traceback.print_exc()
        error = f"{type(raised).__name__}: {raised}"[:2000]
        raise
    finally:
        tell({"event": "end", "error": error})
    verdicts = {check.verdict for check in stage.checks}
    if "failed" in verdicts:
        pytest.fail("\n".join(str(check) for check in stage.checks if check.verdict == "failed"), pytrace=False)
    if verdicts == {"skipped"}:
        pytest.skip("; ".join(check.detail for check in stage.checks))
    return found


@pytest.fixture(scope="package")
def alone() -> Iterator[None]:
    """This process is a rank that is alone, as a run prepares it: environment, threads, a process group."""
    import torch
    import torch.distributed as dist
    from gemfleet.train.device.abilities import prepare_process

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ALONE, "NCCL_SOCKET_IFNAME": "lo"}.items():
            patch.setenv(name, value)
        prepare_process(ranks_on_node=1)
        if settings.quick:
            torch.set_num_threads(1)  # threads that wait for one another cost a busy machine more than tiny shapes do
        backend = "cpu:gloo,cuda:nccl" if settings.device == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        yield
        dist.destroy_process_group()


@pytest.fixture(scope="package")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("proof")


@pytest.fixture
def stage(alone: None, scratch: Path) -> Iterator[Stage]:
    """What a part works with. Afterwards all that it held is freed; a device that does not answer ends the process."""
    import torch
    from gemfleet.train.device.abilities import current_device

    cuda = settings.device == "cuda"
    facts = current_device(0) if cuda else CPU
    yield Stage(settings.numbers, tell, facts=facts, folder=scratch, quick=settings.quick)
    gc.collect()
    try:
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    except RuntimeError:
        traceback.print_exc()
        pytest.exit("the device does not answer any more", returncode=UNUSABLE)
