"""A whole run whose checkpoints rest in an object store: saved, resumed after a kill, and fetched from there."""

from __future__ import annotations

from pathlib import Path

import pytest
from gemfleet.cluster.checkpoint_store.manifest import Manifest
from support.servers.object_store import Kept, new_bucket, s3_server
from support.tiny_run import ends, gemfleet, local_ray, make_workplace, start, states, trained_steps, wait_for_step


@pytest.mark.slow
@pytest.mark.long
def test_a_run_goes_on_from_an_object_store(tmp_path: Path) -> None:
    workplace, home = make_workplace(tmp_path / "work"), tmp_path / "home"
    with s3_server(), local_ray() as address:
        storage = new_bucket()
        settings = (f"cluster.storage={storage}", "cluster.keep_checkpoints=2")
        process = start(workplace, home, address, 4.0, settings)
        registry = wait_for_step(home, 9)
        (run,) = registry.list_runs()
        process.kill()
        process.communicate()
        ends(gemfleet(workplace, home, "resume", "latest"))
        assert states(registry, run.id)[-1] == "succeeded"
        resumes = [event["message"] for event in registry.events(run.id) if event["kind"] == "resume"]
        assert resumes[0] == "training starts at step 0"
        assert resumes[-1].startswith("training goes on from checkpoint-")
        folder = home / "runs" / run.id
        assert trained_steps(folder / "output") == list(range(1, 61))
        assert list((folder / "checkpoints").glob("checkpoint-*")) == []
        shelf = Kept(storage, folder).open().shelf
        assert [manifest.step for manifest in shelf.manifests()] == [56, 60]
        assert registry.checkpoints(run.id)[-1]["path"] == f"{storage}/{run.id}/checkpoints/checkpoint-60"
        assert ends(gemfleet(workplace, home, "checkpoints", run.id, "verify")).count("whole") == 2
        ends(gemfleet(workplace, home, "checkpoints", run.id, "pull", "56", str(tmp_path / "copy")))
        Manifest.read(tmp_path / "copy").verify(tmp_path / "copy")
        ends(gemfleet(workplace, home, "checkpoints", run.id, "export", "latest", str(tmp_path / "adapter")))
        name = "adapter_model.safetensors"
        assert (tmp_path / "adapter" / name).read_bytes() == (folder / "output" / name).read_bytes()
        ends(gemfleet(workplace, home, "prune", "--keep", "0", "--checkpoints-only", "--yes"))
        assert [manifest.step for manifest in shelf.manifests()] == [60]
        ends(gemfleet(workplace, home, "prune", "--keep", "0", "--yes"))
        assert shelf.steps() == []
