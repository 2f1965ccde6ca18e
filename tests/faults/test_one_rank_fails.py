"""An error that one rank alone meets: the others wait for it in a collective, and must not do so for half an hour."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from gemfleet.cluster.registry.recorder_client import start_recorder
from gemfleet.cluster.registry.run_registry import RunRegistry
from support.fault_table import tell
from support.tiny_run import local_ray


@pytest.mark.slow
def test_the_run_ends_at_once_and_is_not_restarted(tmp_path: Path) -> None:
    import ray.train
    from gemfleet.cluster.registry.event_kinds import EventKind
    from gemfleet.launcher.placement import Placement
    from gemfleet.launcher.rank.process_group import GroupConfig
    from gemfleet.launcher.run.training.callback import RestartOnlyWhereDecided
    from gemfleet.launcher.run.training.ray_trainer import FitThread, first_cause
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    registry = RunRegistry(tmp_path / "gemfleet.db")
    registry.create_run("one-1", "one", "{}")
    with local_ray():
        recorder = start_recorder(tmp_path, "one-1", lambda record: ())
        node = ray.get_runtime_context().get_node_id()

        def train() -> None:
            import torch.distributed as dist
            from gemfleet.train.errors import UserError

            rank = ray.train.get_context().get_world_rank()
            if rank == 1:
                fatal: dict[str, Any] = {"kind": "event", "event": "fatal", "message": "row 7 is bad", "cause": "user"}
                recorder.push(rank, [fatal], {"node": "n", "address": "a", "pid": 1})
                raise UserError("row 7 is bad")
            recorder.event(EventKind.NOTE, "rank 0 waits for rank 1")
            dist.barrier()

        attempts = tmp_path / "attempts"
        trainer = DataParallelTrainer(
            train,
            scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
            backend_config=GroupConfig(begin_attempt=lambda: attempts.open("a").write("x")),
            run_config=ray.train.RunConfig(
                storage_path=str(tmp_path / "ray"),
                failure_config=ray.train.FailureConfig(max_failures=3),
                callbacks=[RestartOnlyWhereDecided(recorder, Placement(2, 1.0, 0, "PACK"), [node], 3)],
            ),
        )
        fit = FitThread(trainer)
        fit.start()
        fit.join(150)
        ended = time.time()
        assert not fit.is_alive()
    assert fit.error is not None
    assert "row 7 is bad" in str(first_cause(fit.error))
    assert attempts.read_text() == "x"  # one attempt, no restart
    told = next(event["time"] for event in registry.events("one-1") if event["kind"] == "fatal")
    assert ended - told < 30
    tell("an error on one rank only, the other in a collective", "failed, says the cause", "-", None, ended - told)
