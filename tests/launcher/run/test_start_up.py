"""What a process imports before it needs it is time that a person waits."""

from __future__ import annotations

import subprocess
import sys

import pytest
from gemfleet.cluster.inventory import Node
from gemfleet.launcher.placement import Placement
from gemfleet.launcher.run.training import ahead
from gemfleet.launcher.run.training.ahead import SpareRanks
from gemfleet.launcher.run.training.processes import places, spare_places

# Each takes a second or more of every process that a launch starts.
DEAR = ("torch._dynamo", "torch.distributed.fsdp", "transformers", "deepspeed", "peft", "datasets")
TORCH = ("torch", "pandas", "pyarrow", *DEAR)
BUDGETS = {  # a process, by what it imports: what it must do without
    "gemfleet.launcher.cli": ("ray", "yaml", "rich.console", *TORCH),  # `gemfleet --help`
    "gemfleet.launcher.run.early": ("ray", "yaml", *TORCH),
    "gemfleet.launcher.run.launch": DEAR,  # the driver, up to its checks
    "gemfleet.cluster.registry.run_recorder, gemfleet.train.step.record": ("ray", "numpy", "pydantic", *TORCH),
    "gemfleet.cluster.checkpoint_store.actor": TORCH,
    "gemfleet.launcher.run.data.node_tasks": TORCH,  # a data task, before it knows the tokenizer
    # Ray Train's controller, which unpickles the ranks' task and calls back; it has pandas by itself
    "gemfleet.launcher.rank.train_rank, gemfleet.launcher.run.training.callback": ("torch", *DEAR),
}


def imported(program: str, names: tuple[str, ...]) -> str:
    """Which of these modules a process has after this program."""
    whole = f"import sys; {program}; print([name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("modules", BUDGETS)
def test_a_process_imports_nothing_dear(modules: str) -> None:
    assert imported(f"import {modules}", BUDGETS[modules]) == "[]"


def test_a_rank_imports_ahead_what_it_needs_and_leaves_cuda_alone() -> None:
    """Its GPU is not chosen yet: whoever asks CUDA now would fix it on all that the node has."""
    program = """
import torch
asked = []
for name in ("is_available", "device_count", "init", "_lazy_init"):
    setattr(torch.cuda, name, lambda *_, name=name: asked.append(name) or 0)
from gemfleet.launcher.rank.ahead import MODULES, import_for_training
import_for_training()
assert not asked and not torch.cuda.is_initialized(), asked
missing = [name for name in MODULES if name not in sys.modules]
assert not missing, missing
"""
    assert imported(f"exec({program!r})", ("deepspeed", "bitsandbytes", "peft")) == "[]"


def test_a_rank_whose_base_is_not_quantised_leaves_bitsandbytes_out() -> None:
    program = """
from gemfleet.launcher.rank.ahead import leave_out_bitsandbytes
leave_out_bitsandbytes()
import torch
from peft import LoraConfig, get_peft_model
get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoraConfig(target_modules=["0"]))
"""
    assert imported(f"exec({program!r})", ("bitsandbytes.nn", "bitsandbytes.functional")) == "[]"


def node(name: str, cpus: float, gib: int = 100, kind: str = "") -> Node:
    return Node(name, "a", "h", False, cpus, 0, cpus, 0, gib * 2**30, 0, kind=kind)


def test_processes_start_where_ranks_will_be_and_where_that_is_open_none_do() -> None:
    two = Placement(2, 1.0, 0, "PACK")
    assert places(two, [node("a", 8)]) == {"a": 2}
    assert places(two, [node("a", 1), node("b", 1)]) == {"a": 1, "b": 1}
    assert places(two, [node(str(number), 8) for number in range(20)]) == {}


def test_spare_processes_take_little_of_a_nodes_memory() -> None:
    assert spare_places({"a": 2, "b": 2, "gone": 1}, [node("a", 8), node("b", 8, gib=8)]) == {"a": 2}


def test_ranks_train_on_while_the_cluster_cannot_be_asked_about_spare_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def down() -> list[Node]:
        raise RuntimeError("the head restarts")

    monkeypatch.setattr(ahead, "list_nodes", down)
    SpareRanks().look({"ranks": [{"pid": 1, "heartbeat": 1.0, "node": "a"}], "step": {"time": 2.0}})
