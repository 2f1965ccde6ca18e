"""The head's actors on a real cluster of two nodes: checkpoints, Ray Train's filesystem, the recorder."""

from __future__ import annotations

import errno
import gc
import json
import os
import pickle
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
import ray
from gemfleet.cluster import head as head_module
from gemfleet.cluster.checkpoint_store import client as client_module
from gemfleet.cluster.checkpoint_store import ray_snapshots
from gemfleet.cluster.checkpoint_store.actor import start_store
from gemfleet.cluster.checkpoint_store.client import StoreClient
from gemfleet.cluster.checkpoint_store.ray_snapshots import StoreFileSystemHandler, store_filesystem
from gemfleet.cluster.errors import ClusterError, StaleGeneration
from gemfleet.cluster.head import HeadActor
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.recorder_client import start_recorder
from gemfleet.cluster.registry.run_registry import RunRegistry
from gemfleet.train.step.record import points as points_of
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from support.servers.object_store import Kept

pytestmark = pytest.mark.slow

SMALL_CHUNK = 64 << 10


@pytest.fixture(scope="module", params=["head", "s3"])
def kept(request: pytest.FixtureRequest, two_nodes: Any, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return Kept.at(request.param, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def store(kept: Kept) -> Iterator[HeadActor]:
    actor = start_store(f"test-{uuid.uuid4().hex[:8]}", kept.run_folder, None, storage=kept.storage)
    yield actor
    ray.kill(actor.handle)


@pytest.fixture(params=["stream", "calls"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How files travel: over connections of their own, or where the head accepts none, through Ray's calls."""
    if request.param == "calls":

        def blocked(*_: Any) -> None:
            raise ConnectionError("blocked")

        monkeypatch.setattr(client_module, "send_file", blocked)
    return str(request.param)


@pytest.fixture
def client(store: HeadActor) -> StoreClient:
    return StoreClient(store).attempt(StoreClient(store).begin_attempt())


@pytest.fixture
def filesystem(store: HeadActor) -> pyarrow.fs.PyFileSystem:
    return store_filesystem(store)


def folder_of(base: Path, **files: bytes) -> Path:
    base.mkdir(parents=True)
    for name, content in files.items():
        (base / name).write_bytes(content)
    return base


def kill(actor: HeadActor) -> None:
    ray.kill(actor.handle, no_restart=False)


def test_many_ranks_at_once(
    client: StoreClient, way: str, tmp_path: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "CHUNK_BYTES", SMALL_CHUNK)
    step = {"stream": 10, "calls": 12}[way]
    content = {rank: bytes([rank]) * (300_000 + rank) for rank in range(8)}
    folders = {rank: folder_of(tmp_path / str(rank), **{f"rank-{rank}.bin": content[rank]}) for rank in range(8)}
    with ThreadPoolExecutor(8) as pool:
        commits = list(pool.map(lambda rank: client.upload(step, folders[rank], rank, range(9)), reversed(range(8))))
    assert not any(commits)
    assert step not in [manifest.step for manifest in client.manifests()]
    assert client.upload(step, folder_of(tmp_path / "empty"), 8, range(9))  # a rank without files declares too
    fetched, _ = client.fetch_resume_point(tmp_path / "fetched")
    assert fetched is not None
    assert {path.name: path.read_bytes() for path in fetched.iterdir()} == {
        f"rank-{rank}.bin": data for rank, data in content.items()
    }
    assert "manifest.json" in kept.names(step)


def test_a_worker_node_writes_to_the_disk_of_the_head(client: StoreClient, two_nodes: Any, tmp_path: Path) -> None:
    def upload(store: StoreClient, folder: Path) -> tuple[str, bool]:
        return ray.get_runtime_context().get_node_id(), store.upload(11, folder, 0, [0])

    where = NodeAffinitySchedulingStrategy(two_nodes.worker, soft=False)
    task = ray.remote(upload).options(num_cpus=0, scheduling_strategy=where)
    assert ray.get(task.remote(client, folder_of(tmp_path / "up", a=b"1"))) == (two_nodes.worker, True)
    actors = ray._private.state.actors().values()
    nodes = {entry["Address"]["NodeID"] for entry in actors if entry["Name"] == client.store.name}
    assert nodes == {two_nodes.head}


def test_a_killed_store_costs_a_retry_and_nothing_else(
    client: StoreClient, way: str, tmp_path: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "CHUNK_BYTES", SMALL_CHUNK)
    monkeypatch.setattr(client_module, "PAUSE_SECONDS", 0.1)
    step = {"stream": 20, "calls": 21}[way]
    folder = folder_of(tmp_path / "up", big=bytes(range(256)) * ((32 if way == "stream" else 4) << 12))
    part = kept.run_folder / "checkpoints" / f".incoming-{step}-{client.generation}" / ".big.part"
    killed = threading.Event()

    def kill_when_some_has_arrived() -> None:
        while not (part.exists() and part.stat().st_size):
            time.sleep(0.001)
        kill(client.store)
        killed.set()

    killer = threading.Thread(target=kill_when_some_has_arrived)
    killer.start()
    assert client.upload(step, folder, 0, [0])
    killer.join(30)
    assert killed.is_set()
    fetched, _ = client.fetch_resume_point(tmp_path / "fetched")
    assert fetched is not None
    assert (fetched / "big").read_bytes() == (folder / "big").read_bytes()


def test_an_older_attempt_is_refused_without_retries(client: StoreClient, tmp_path: Path) -> None:
    client.begin_attempt()
    with pytest.raises(StaleGeneration, match="of this run has begun"):
        client.upload(30, folder_of(tmp_path / "up", a=b"late"), 0, [0])


def test_a_damaged_newest_one_is_passed_over(client: StoreClient, tmp_path: Path, kept: Kept) -> None:
    client.upload(40, folder_of(tmp_path / "old", a=b"old"), 0, [0])
    client.upload(41, folder_of(tmp_path / "new", a=b"new"), 0, [0])
    kept.write(41, "a", b"bad")
    fetched, damaged = client.fetch_resume_point(tmp_path / "fetched")
    assert fetched is not None
    assert (fetched / "a").read_bytes() == b"old"
    assert "checkpoint-41" in damaged[0]
    client.upload(42, folder_of(tmp_path / "late", a=b"late"), 0, [0])
    again, _ = client.fetch_resume_point(tmp_path / "again")
    assert again is not None
    assert again.name == "checkpoint-40"  # all ranks of an attempt start from the same one, also a slow one


@pytest.mark.parametrize("root", ["exp", "/exp"])
def test_everything_ray_train_does_with_its_storage(
    filesystem: pyarrow.fs.PyFileSystem, tmp_path: Path, root: str
) -> None:
    source = folder_of(tmp_path / "source", a=b"1", b=b"22")
    folder_of(source / "deep", c=b"333")
    filesystem.create_dir(f"{root}/run")
    pyarrow.fs.copy_files(str(source), f"{root}/run", destination_filesystem=filesystem, chunk_size=64 << 20)
    pyarrow.fs.copy_files(f"{root}/run", str(tmp_path / "back"), source_filesystem=filesystem)
    back = {
        str(p.relative_to(tmp_path / "back")): p.read_bytes() for p in (tmp_path / "back").rglob("*") if p.is_file()
    }
    assert back == {"a": b"1", "b": b"22", "deep/c": b"333"}
    listed = filesystem.get_file_info(pyarrow.fs.FileSelector(f"{root}/run"))
    assert [(info.path, info.type.name, info.size) for info in listed] == [
        (f"{root}/run/a", "File", 1),
        (f"{root}/run/b", "File", 2),
        (f"{root}/run/deep", "Directory", None),
    ]
    filesystem.move(f"{root}/run/a", f"{root}/run/moved")
    filesystem.copy_file(f"{root}/run/b", f"{root}/run/copied")
    with filesystem.open_input_file(f"{root}/run/copied") as file:
        file.seek(1)
        assert file.read() == b"2"
    filesystem.delete_file(f"{root}/run/b")
    names = {info.base_name for info in filesystem.get_file_info(pyarrow.fs.FileSelector(f"{root}/run"))}
    assert names == {"moved", "copied", "deep"}
    filesystem.delete_dir_contents(f"{root}/run/deep")
    assert filesystem.get_file_info(pyarrow.fs.FileSelector(f"{root}/run/deep")) == []
    filesystem.delete_dir(f"{root}/run")
    assert filesystem.get_file_info(f"{root}/run").type == pyarrow.fs.FileType.NotFound
    absent = pyarrow.fs.FileSelector(f"{root}/run", allow_not_found=True)
    assert filesystem.get_file_info(absent) == []
    with pytest.raises(FileNotFoundError):
        filesystem.open_input_stream(f"{root}/run/moved")


def test_the_handler_pickles_and_stays_equal(filesystem: pyarrow.fs.PyFileSystem, store: HeadActor) -> None:
    data = pickle.dumps(filesystem)
    with ThreadPoolExecutor(2) as pool:
        copies = list(pool.map(pickle.loads, [data, data]))  # other threads, as Ray Train's uploads
    assert copies[0] == copies[1] == filesystem
    assert StoreFileSystemHandler(HeadActor("another")) != filesystem.handler
    copies[0].create_dir("pickled")
    assert filesystem.get_file_info("pickled").type == pyarrow.fs.FileType.Directory


class FullStore(HeadActor):
    """A store whose disk is full for the first calls."""

    def __init__(self, full_for: int, error: int = errno.ENOSPC) -> None:
        super().__init__("full")
        self.left, self.error = full_for, error
        self.done: list[str] = []

    def call(self, method: str, *arguments: Any) -> Any:
        if self.left:
            self.left -= 1
            raise OSError(self.error, os.strerror(self.error))
        self.done.append(str(arguments[0]))


def test_a_snapshot_waits_for_room_on_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_snapshots, "ROOM_PAUSE_SECONDS", 0.0)
    store = FullStore(full_for=3)
    StoreFileSystemHandler(store).create_dir("run", True)
    assert store.done == ["make_folder"]
    with pytest.raises(PermissionError):
        StoreFileSystemHandler(FullStore(1, errno.EACCES)).create_dir("run", True)
    monkeypatch.setattr(ray_snapshots, "ROOM_SECONDS", 0.0)
    with pytest.raises(OSError, match="No space left"):
        StoreFileSystemHandler(FullStore(10**9)).create_dir("run", True)


def test_only_a_stream_that_was_closed_in_order_publishes(filesystem: pyarrow.fs.PyFileSystem) -> None:
    def exists(path: str) -> bool:
        return bool(filesystem.get_file_info(path).is_file)

    dropped = filesystem.open_output_stream("streams/dropped")
    dropped.write(b"half")
    del dropped
    gc.collect()
    assert not exists("streams/dropped")

    def leave_early() -> None:
        with filesystem.open_output_stream("streams/failed") as stream:
            stream.write(b"half")
            raise RuntimeError("the disk of the sender failed")

    with pytest.raises(RuntimeError, match="of the sender"):
        leave_early()
    assert not exists("streams/failed")

    try:
        raise KeyError("an earlier error, being handled")
    except KeyError:
        with filesystem.open_output_stream("streams/whole") as stream:
            stream.write(b"whole")
    assert filesystem.open_input_stream("streams/whole").read() == b"whole"


def test_a_snapshot_is_never_half_written(filesystem: pyarrow.fs.PyFileSystem, store: HeadActor) -> None:
    """Read all the time while it is rewritten and the store is killed: every reading is one whole version."""
    path, sizes = "snapshots/checkpoint_manager_snapshot.json", [10, 200_000]

    def write(version: int) -> None:
        with filesystem.open_output_stream(path) as stream:
            stream.write(json.dumps({"version": version, "filler": "x" * sizes[version % 2]}).encode())

    write(0)
    done, seen = threading.Event(), []

    def read() -> None:
        while not done.is_set():
            seen.append(json.loads(filesystem.open_input_stream(path).read())["version"])

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        try:
            for version in range(1, 21):
                if version == 10:
                    kill(store)
                write(version)
        finally:
            done.set()
        reader.result()
    assert seen == sorted(seen)
    assert json.loads(filesystem.open_input_stream(path).read())["version"] == 20


def test_the_recorder_goes_on_after_it_was_killed(two_nodes: Any, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    registry = RunRegistry(tmp_path / "gemfleet.db")
    registry.create_run("run-1", "run", "")
    recorder = start_recorder(tmp_path, "run-1", points_of)
    who = {"node": two_nodes.worker, "address": "127.0.0.1", "pid": 1}

    def push(step: int) -> bool:
        """As an outbox does: one mark a batch."""
        batch = [
            {"kind": "step", "step": step, "loss": 3.0 - step, "tokens_per_second": None, "learning_rate": 1e-3},
            {"kind": "eval", "step": step, "eval_loss": 2.0},
            {"kind": "log", "time": time.time(), "line": f"line {step}"},
        ]
        return recorder.push(0, batch, who, f"mark-{step}")

    assert push(1) is False
    kill(recorder.actor)
    registry.request_stop("run-1")
    assert push(2) is True
    recorder.event(EventKind.NOTE, "something happened")
    assert [record["loss"] for record in registry.metrics("run-1", kind="step")] == [2.0, 1.0]
    snapshot = recorder.snapshot()
    assert (snapshot["step"]["step"], snapshot["eval"]["eval_loss"], snapshot["state"]) == (2, 2.0, "queued")
    assert [rank["node"] for rank in snapshot["ranks"]] == [two_nodes.worker]
    assert (tmp_path / "runs" / "run-1" / "logs" / "rank-0.log").read_text() == "line 1\nline 2\n"
    points: dict[int, float] = {}
    for folder in (tmp_path / "runs" / "run-1" / "runs").iterdir():
        board = EventAccumulator(str(folder))
        board.Reload()
        points |= {event.step: event.value for event in board.Scalars("train/loss")}
        assert "eval/loss" in board.Tags()["scalars"]
        assert "train/tokens_per_second" not in board.Tags()["scalars"]
    assert points == {1: 2.0, 2: 1.0}


def test_a_second_driver_of_the_same_run_is_refused(
    two_nodes: Any, store: HeadActor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_module, "NAME_SECONDS", 2.0)
    with pytest.raises(ClusterError, match="running already"):
        start_store(store.name.removeprefix("gemfleet-store-"), tmp_path, None)


def test_actors_live_while_their_creator_holds_them_and_end_with_it(two_nodes: Any, tmp_path: Path) -> None:
    run_id = f"test-{uuid.uuid4().hex[:8]}"
    actor = start_store(run_id, tmp_path, None)
    name = actor.name
    assert pickle.loads(pickle.dumps(actor)).call("free_bytes") > 0
    gc.collect()
    time.sleep(1.0)
    assert actor.call("free_bytes") > 0
    del actor
    gc.collect()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            ray.get_actor(name, namespace="gemfleet")
        except ValueError:
            break
        time.sleep(0.1)
    with pytest.raises(ValueError, match="Failed to look up actor"):
        ray.get_actor(name, namespace="gemfleet")
