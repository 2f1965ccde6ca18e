"""Every route, over a real registry, through a real socket."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.launcher.api import published
from support.servers.api_live import SQUARE, TRACKER_PAGE, Live, add_sweep, publish_files


def test_the_list_pages_newest_first(live: Live) -> None:
    first = live.get("/api/v1/runs?limit=3")
    assert (first["object"], first["has_more"]) == ("list", True)
    assert [run["id"] for run in first["data"]] == ["alpha-4", "alpha-3", "alpha-2"]
    rest = live.get(f"/api/v1/runs?limit=3&after={first['last_id']}")
    assert [run["id"] for run in rest["data"]] == ["alpha-1"]
    assert rest["has_more"] is False
    (training,) = live.get("/api/v1/runs?status=training")["data"]
    assert training["id"] == "alpha-2"
    progress = {"step": 3, "total_steps": 8, "epoch": 0.375, "epochs": 1.0, "fraction": 0.375, "eta_seconds": 2.5}
    assert training["progress"] == progress


def test_a_run_tells_all_that_is_known(live: Live) -> None:
    run = live.get("/api/v1/runs/alpha-1")
    assert (run["status"], run["model"]) == ("succeeded", "demo")
    assert run["loss"] == pytest.approx(2.55)  # it has ended: the mean of all steps
    assert run["eval_loss"] is None  # it was infinite, which JSON cannot say
    assert run["throughput"]["tokens_per_second"] == 200.0
    assert run["last_checkpoint"]["id"] == "checkpoint-8"
    assert run["last_checkpoint"]["state"] == "verified"
    assert run["last_checkpoint"]["seconds"] == 0.25
    assert run["checkpoint_totals"] == {"saved": 2, "failed": 1, "bytes": 6018, "seconds": 0.5}
    assert run["batch_finder"]["rows"] == 8
    assert live.get("/api/v1/runs/alpha-2")["batch_finder"] == {"rows": 4}
    assert run["ranks"][0]["address"] == "127.0.0.1"
    (tracker,) = run["trackers"]
    assert tracker == {"type": "mlflow", "place": "http://127.0.0.1:5000", "link": TRACKER_PAGE, "problem": ""}
    assert run["strategy"] == {"strategy": "ddp", "fitting": ["ddp"]}
    assert live.get("/api/v1/runs/alpha-3")["waiting_for"].startswith("asked for 8 workers")
    assert live.get("/api/v1/runs/alpha-4")["reason"] == "clone of https://[hidden]@hub/x failed"


def test_a_run_that_ended_early_is_done_and_tells_what_it_published(live: Live) -> None:
    live.registry.add_metrics("alpha-1", [{"kind": "step", "step": 99, "total_steps": 200, "loss": 1.0}])
    live.registry.add_event("alpha-1", "result", "", {"stopped_early": "stopped early at step 99 of 200"})
    live.registry.add_event("alpha-1", "published", "", {"step": 60, "reason": "step 60 of 200: lowest"})
    run = live.get("/api/v1/runs/alpha-1")
    assert (run["progress"]["step"], run["progress"]["total_steps"], run["progress"]["fraction"]) == (99, 200, 1.0)
    assert (run["stopped_early"], run["published"]) == ("stopped early at step 99 of 200", "step 60 of 200: lowest")
    training = live.get("/api/v1/runs/alpha-2")
    assert (training["stopped_early"], training["published"]) == (None, None)


def test_a_run_that_is_not_there_is_a_problem_document(live: Live) -> None:
    answer = live.client.get("/api/v1/runs/beta")
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["title"]) == (404, 404, "Not Found")
    assert problem["instance"] == "/api/v1/runs/beta"
    assert "beta" in problem["detail"]
    assert live.get("/api/v1/runs?limit=x", status=422)["errors"][0]["field"] == "query.limit"
    assert live.get("/nowhere", status=404)["title"] == "Not Found"


def test_a_sweep_tells_of_its_trials_and_a_run_of_its_sweep(live: Live) -> None:
    assert live.get("/api/v1/sweeps")["data"] == []
    add_sweep(live.registry, live.home)
    (listed,) = live.get("/api/v1/sweeps")["data"]
    assert (listed["id"], listed["status"], listed["wanted"], listed["ended"]) == ("lr", "interrupted", 6, 4)
    sweep = live.get("/api/v1/sweeps/lr")
    states = ["succeeded", "succeeded", "pruned", "training", "failed", "waiting"]
    assert [trial["status"] for trial in sweep["trials"]] == states
    assert sweep["best"] == listed["best"] == sweep["trials"][1]
    assert (sweep["best"]["run_id"], sweep["best"]["best_step"]) == ("lr-002", 8)
    assert sweep["best"]["value"] == pytest.approx(2.4)
    assert [one["step"] for one in sweep["trials"][3]["evaluations"]] == [0, 2]
    assert sweep["trials"][4]["value"] is None  # only the evaluation before its first step
    assert "hunter2" not in str(sweep)
    assert live.get("/api/v1/runs/lr-003")["sweep"] == "lr"
    assert live.get("/api/v1/runs/alpha-1")["sweep"] is None
    assert "no sweep 'x'" in live.get("/api/v1/sweeps/x", status=404)["detail"]


def test_a_run_is_tagged_and_archived_and_lists_are_filtered_by_that(live: Live) -> None:
    def changed(run_id: str, status: int, **change: object) -> Any:
        answer = live.client.patch(f"/api/v1/runs/{run_id}", json=change)
        assert answer.status_code == status, answer.text
        return answer.json()

    run = changed("alpha-1", 200, tags={"team": "search", "password": "hunter2"}, archived=True)
    assert (run["tags"], run["archived"]) == ({"team": "search", "password": "[hidden]"}, True)
    assert "alpha-1" not in [run["id"] for run in live.get("/api/v1/runs")["data"]]
    assert [run["id"] for run in live.get("/api/v1/runs?archived=true&tag=team=search")["data"]] == ["alpha-1"]
    assert live.get("/api/v1/runs?archived=true&tag=team=search&tag=other")["data"] == []
    assert changed("alpha-1", 200, tags={"password": None})["tags"] == {"team": "search"}
    assert "has ended" in changed("alpha-2", 409, tags={"team": "x"}, archived=True)["detail"]
    assert live.get("/api/v1/runs/alpha-2")["tags"] == {}
    changed("alpha-2", 422, tags={"a b": "x"})
    changed("alpha-2", 422, name="other")
    changed("alpha-9", 404, archived=True)
    config = {"name": "demo", "train": {"model": "demo", "data": {"train": "demo"}}}
    assert live.post("/api/v1/runs", 201, json={"config": config, "tags": {"a": "b"}})["tags"] == {"a": "b"}


def test_metrics_page_without_losing_a_step(live: Live) -> None:
    seen, since = [], 0
    while True:
        page = live.get(f"/api/v1/runs/alpha-1/metrics?since_step={since}&limit=3")
        seen += [(record["step"], record["kind"]) for record in page["data"]]
        if not page["has_more"]:
            break
        since = page["next_since_step"]
    assert seen == [*((step, "step") for step in range(1, 8)), (8, "eval"), (8, "step")]
    assert [r["kind"] for r in live.get("/api/v1/runs/alpha-1/metrics?kind=eval")["data"]] == ["eval"]
    thinned = live.get("/api/v1/runs/alpha-1/metrics?points=3")
    assert [(r["step"], r["kind"]) for r in thinned["data"]] == [(1, "step"), (4, "step"), (8, "eval"), (8, "step")]
    assert thinned["has_more"] is False


def test_events_page_by_their_ids(live: Live) -> None:
    first = live.get("/api/v1/runs/alpha-1/events?limit=2")
    assert [event["type"] for event in first["data"]] == ["state", "state"]
    rest = live.get(f"/api/v1/runs/alpha-1/events?after={first['last_id']}")
    assert [event["message"] for event in rest["data"]][-1] == "succeeded"
    assert rest["has_more"] is False


def test_logs_give_whole_lines_without_secrets(live: Live) -> None:
    lines = live.get("/api/v1/runs/alpha-1/logs?tail=2")["data"]
    assert [(line["source"], line["line"]) for line in lines] == [
        ("driver", "two"),
        ("driver", "HF_TOKEN=[hidden]"),
        ("rank-1", "hello"),
    ]
    assert [line["source"] for line in live.get("/api/v1/runs/alpha-1/logs?rank=1")["data"]] == ["rank-1"]


def test_a_text_is_found_in_all_of_a_log_but_not_in_what_it_hides(live: Live) -> None:
    log = live.home / "runs/alpha-1/logs/rank-1.log"
    log.write_text("Out of Memory at step 3\n" + "step\n" * 300 + "unfinished: out of memory")
    found = live.get("/api/v1/runs/alpha-1/logs?tail=2&contains=OUT OF memory")["data"]
    assert found == [{"source": "rank-1", "line": "Out of Memory at step 3"}]
    assert len(live.get("/api/v1/runs/alpha-1/logs?contains=HF_TOKEN")["data"]) == 1
    for guess in ("hf_abc", "abcdefghijkl"):
        assert live.get(f"/api/v1/runs/alpha-1/logs?contains={guess}")["data"] == []


def test_the_configuration_has_no_secrets(live: Live) -> None:
    config = live.get("/api/v1/runs/alpha-1/config")["config"]
    assert config["train"]["model"] == "demo"
    assert config["train"]["hub_token"] == "[hidden]"


def test_the_data_of_a_run_is_told_without_secrets(live: Live) -> None:
    view = live.get("/api/v1/runs/alpha-1/data")["view"]
    assert view["sets"][0]["left_out"][0]["first"] == ["line 3 (HF_TOKEN=[hidden])"]
    first, second = view["examples"]
    assert [span["supervised"] for span in first["spans"]] == [False, True]
    # A secret whose name is in one span and whose value is in the next one.
    assert second["spans"] == [{"text": "password: [hidden]", "supervised": False}]
    assert live.get("/api/v1/runs/alpha-2/data")["view"] is None


def test_a_download_is_a_valid_archive_with_its_hash_and_its_length(live: Live) -> None:
    (newest, _) = live.get("/api/v1/runs/alpha-1/checkpoints")["data"]
    answer = live.client.get(newest["download_url"])
    digest = base64.b64encode(hashlib.sha256(answer.content).digest()).decode()
    assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"
    assert int(answer.headers["content-length"]) == len(answer.content)
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        names = sorted(archive.getnames())
        member = archive.extractfile("checkpoint-8/adapter_model.safetensors")
        assert member is not None
        weights = member.read()
    assert names == [f"checkpoint-8/{n}" for n in ("adapter_config.json", "adapter_model.safetensors", "manifest.json")]
    stored = live.home / "runs/alpha-1/checkpoints" / "checkpoint-8" / "adapter_model.safetensors"
    assert weights == stored.read_bytes()
    assert live.client.get(newest["download_url"]).content == answer.content
    assert newest["eval_loss"] == 2.08


def test_the_published_adapter_is_an_archive_without_other_forms(live: Live) -> None:
    assert live.get("/api/v1/runs/alpha-1")["adapter_url"] is None
    live.get("/api/v1/runs/alpha-1/adapter/download", status=404)
    folder = publish_files(live.home, "alpha-1")
    (folder / "tokenizer.json").symlink_to("/etc/passwd")
    answer = live.client.get(live.get("/api/v1/runs/alpha-1")["adapter_url"])
    digest = base64.b64encode(hashlib.sha256(answer.content).digest()).decode()
    assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        found = {member.name: archive.extractfile(member).read().decode() for member in archive}  # type: ignore[union-attr]
    names = ("README.md", "adapter_config.json", "adapter_model.safetensors")
    assert found == {f"alpha-1-adapter/{name}": f"content of {name}" for name in names}
    folder.rename(live.home / "elsewhere")
    folder.symlink_to(live.home / "elsewhere")
    assert live.get("/api/v1/runs/alpha-1")["adapter_url"] is None
    live.get("/api/v1/runs/alpha-1/adapter/download", status=404)


def test_answers_stand_beside_the_truth_without_secrets(live: Live) -> None:
    path = "/api/v1/runs/alpha-1/predictions"
    assert live.get(path)["data"] == []
    folder = publish_files(live.home, "alpha-1")
    page = live.get(f"{path}?limit=1")
    assert (page["metrics"], page["has_more"]) == ({"exact_match": 0.25, "bleu": None}, True)
    assert [(one["number"], one["same"], one["pictures"]) for one in page["data"]] == [(1, True, SQUARE)]
    second, third = live.get(f"{path}?after=1")["data"]  # the damaged line is left out
    assert second["pictures"] == third["pictures"] == []
    assert (second["number"], second["same"], second["prediction"]) == (3, False, "password: [hidden]")
    assert (third["number"], len(third["prompt"])) == (4, 4002)
    assert [one["number"] for one in live.get(f"{path}?differing=true")["data"]] == [3, 4]
    (folder / "predictions.jsonl").unlink()
    (folder / "predictions.jsonl").symlink_to("/etc/passwd")
    assert live.get(path)["data"] == []
    live.get("/api/v1/runs/beta/predictions", status=404)


def test_a_line_that_is_too_long_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "LARGEST_LINE_BYTES", 100)
    lines = [json.dumps({"prompt": text, "reference": "a", "prediction": "a"}) for text in ("one", "x" * 300, "three")]
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "predictions.jsonl").write_text("\n".join(lines))
    found = published.prediction_page(tmp_path, "one-1", 0, 10, False).data
    assert [(one.number, one.prompt) for one in found] == [(1, "one"), (3, "three")]


def test_a_damaged_checkpoint_is_not_sent(live: Live) -> None:
    folder = live.home / "runs/alpha-1/checkpoints/checkpoint-4"
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(os.urandom(weights.stat().st_size))
    assert "damaged" in live.get("/api/v1/runs/alpha-1/checkpoints/4/download", status=409)["detail"]
    weights.unlink()
    weights.symlink_to("/etc/hostname")
    live.get("/api/v1/runs/alpha-1/checkpoints/4/download", status=409)
    assert live.get("/api/v1/runs/alpha-1/checkpoints")["data"][1]["state"] == "damaged"
    assert live.get("/api/v1/runs/alpha-1")["last_checkpoint"]["step"] == 8
    (folder.parent / "checkpoint-8" / "manifest.json").unlink()
    assert live.get("/api/v1/runs/alpha-1")["last_checkpoint"] is None
    live.get("/api/v1/runs/alpha-1/checkpoints/5/download", status=404)
    folder.rename(folder.with_name(".removed-checkpoint-4"))  # by retention, which then tells the registry
    assert live.get("/api/v1/runs/alpha-1/checkpoints")["data"][1]["state"] == "missing"
    assert "was removed" in live.get("/api/v1/runs/alpha-1/checkpoints/4/download", status=404)["detail"]


def test_stop_asks_a_living_run_and_refuses_an_ended_one(live: Live) -> None:
    assert live.post("/api/v1/runs/alpha-2/stop", 202)["stop_requested"] is True
    assert live.registry.stop_requested("alpha-2")
    assert "succeeded already" in live.post("/api/v1/runs/alpha-1/stop", 409)["detail"]
    live.post("/api/v1/runs/beta/stop", 404)


def test_resume_launches_an_ended_run_again_and_refuses_one_that_goes_on(live: Live) -> None:
    assert "nothing is left to do" in live.post("/api/v1/runs/alpha-1/resume", 409)["detail"]
    live.registry.reopen("alpha-1", "{}")
    live.registry.transition("alpha-1", RunState.STOPPED)
    run = live.post("/api/v1/runs/alpha-1/resume", 202)
    assert (run["status"], run["finished_at"]) == ("queued", None)
    assert live.get("/api/v1/runs/alpha-1/events?limit=1000")["data"][-1]["message"] == "queued: resumed"
    for run_id, state in (("alpha-1", "queued"), ("alpha-2", "training")):
        assert f"is {state}" in live.post(f"/api/v1/runs/{run_id}/resume", 409)["detail"]
    live.post("/api/v1/runs/beta/resume", 404)


def test_a_run_without_a_kept_configuration_or_process_is_not_left_queued(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gemfleet.cluster.errors import RunConflict
    from gemfleet.launcher.api import submissions

    submitter = submissions.ProcessSubmitter(live.home)
    with pytest.raises(RunConflict, match="before its configuration was kept"):
        submitter.resume(live.registry.get_run("alpha-1"))
    (live.home / "runs/alpha-1/config.resolved.yaml").write_text("{}")

    def broken(*arguments: object) -> int:
        raise OSError("no more processes")

    monkeypatch.setattr(submissions, "start_detached", broken)
    with pytest.raises(OSError, match="no more processes"):
        submitter.resume(live.registry.get_run("alpha-1"))
    assert "no more processes" in live.get("/api/v1/runs/alpha-1")["reason"]


def test_submit_starts_a_run(live: Live) -> None:
    config = {"name": "mine", "train": {"model": "demo", "data": {"train": "demo"}}}
    answer = live.client.post("/api/v1/runs", json={"config": config})
    assert answer.status_code == 201, answer.text
    run = answer.json()
    assert run["id"].startswith("mine-")
    assert answer.headers["location"] == f"/api/v1/runs/{run['id']}"
    ((started, resolved),) = live.submitter.started
    assert started == run["id"]
    assert resolved["train"]["lora"]["r"] == 16


def test_health_cluster_and_prometheus_answer(live: Live) -> None:
    for path in ("/healthz", "/readyz", "/api/v1/healthz", "/api/v1/readyz"):
        assert live.get(path)["status"] == "ok"
    cluster = live.get("/api/v1/cluster")
    assert cluster["connected"] is False
    assert cluster["head"]["memory_bytes"] > 0
    (rank,) = cluster["ranks"]  # of runs that go on
    assert (rank["run_id"], rank["rank"], rank["memory_bytes"], rank["utilisation"]) == ("alpha-2", 0, 8 * 10**8, 0.75)
    (waiting,) = cluster["waiting"]
    assert (waiting["run_id"], waiting["ranks"]) == ("alpha-3", None)
    assert waiting["waiting_for"].startswith("asked for 8 workers")
    assert cluster["examination"] is None
    text = live.client.get("/metrics").text
    assert 'gemfleet_runs{state="training"} 1.0' in text
    assert 'gemfleet_tokens_total{run="alpha-2"} 300.0' in text
