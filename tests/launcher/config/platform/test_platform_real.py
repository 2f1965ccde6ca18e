"""The reference request as it stands with the real 270M: int4, a batch that finds itself, two CPU workers."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from support.platform_run import (
    BRANCH,
    check_board,
    check_layout,
    check_loads,
    check_predictions,
    fresh_clone,
    gemfleet,
    make_remote,
    request_for,
)
from support.sources_on_disk import needs_git

pytestmark = [needs_git, pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(3000)]
RUN_SECONDS = 2700.0


def test_the_reference_request_runs_to_its_end_and_the_fresh_clone_passes(demo_model: Path, tmp_path: Path) -> None:
    """Only the repositories are replaced, and the cluster is this machine with two workers."""
    shutil.copytree(demo_model, tmp_path / "model-files")
    remote = make_remote(tmp_path / "remote", tmp_path / "model-files")
    work = tmp_path / "work"
    work.mkdir()
    request = json.dumps(request_for(remote), indent=1).encode()
    (work / "request.json").write_bytes(request)
    started = time.monotonic()
    changes = ("--set", "cluster.address=local", "--set", "cluster.workers=2")
    done = gemfleet(work, remote, "train", "request.json", *changes, timeout=RUN_SECONDS)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr[-4000:]
    clone = fresh_clone(remote, "result", BRANCH, tmp_path / "clones")
    check_layout(clone, request, work)
    losses = check_loads(clone, demo_model)
    check_board(clone)
    metrics = check_predictions(clone)
    config = json.loads((clone / "training_config.json").read_text())["train"]
    assert config["quantization"] == "int4"
    assert losses[-1] < losses[0]
    found = [line for line in (done.stdout + done.stderr).splitlines() if "micro-batch" in line]
    assert found
    size = sum(path.stat().st_size for path in clone.rglob("*") if path.is_file())
    print(
        f"the request took {seconds:.0f} s; losses {losses[0]:.3f} -> {losses[-1]:.3f}; {found[-1].strip()}; a fresh "
        f"clone of {size / 2**20:.0f} MiB passed: layout, peft and transformers, TensorBoard, log_history of "
        f"{len(losses)} steps, {metrics['examples']} predictions (chrF {metrics['chrf']:.1f}, ROUGE-L "
        f"{metrics['rouge_l']:.1f}, perplexity {metrics['perplexity']:.1f})"
    )
