"""An object store that is slow, refuses or cuts connections: nothing is lost, and every error is one sentence."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from gemfleet.cluster.checkpoint_store import location
from gemfleet.cluster.checkpoint_store.object_errors import said
from gemfleet.cluster.errors import StoreError
from support.servers.faulty_proxy import Fault, FaultyProxy
from support.servers.object_store import CONTENT, Kept, commit

VARIABLES = {"s3": "AWS_ENDPOINT_URL", "gs": "CLOUD_STORAGE_EMULATOR_ENDPOINT"}
REGION = "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-west-1'"


class Case(NamedTuple):
    """error: what the sentence says; None: the attempts overcome the fault. only: the store that answers so"""

    fault: Callable[[], Fault]
    error: str | None
    only: str | None = None


def writes(method: str, _: str) -> bool:
    return method in ("PUT", "POST")


CASES = {
    "slow": Case(lambda: Fault("slow", seconds=0.2), None),
    "503, twice": Case(lambda: Fault("refuse", times=2), None),
    "503, always": Case(lambda: Fault("refuse"), "has refused every attempt for the moment; try again later"),
    "a write cut off, once": Case(lambda: Fault("cut request", times=1, meets=writes), None),
    "writes cut off, always": Case(lambda: Fault("cut request", meets=writes), "the connection to the store broke"),
    "wrong region": Case(
        lambda: Fault("refuse", 400, "AuthorizationHeaderMalformed", REGION),
        "the bucket is in the region eu-west-1; set AWS_REGION=eu-west-1",
        "s3",
    ),
    "expired credentials": Case(
        lambda: Fault("refuse", 400, "ExpiredToken", "The provided token has expired."),
        "credentials have expired",
        "s3",
    ),
    "not allowed": Case(lambda: Fault("refuse", 403, "AccessDenied", "Access Denied"), "may not do that"),
}


@pytest.fixture(params=VARIABLES)
def proxy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, FaultyProxy]]:
    """A store behind a proxy, which the environment names."""
    request.getfixturevalue(request.param)
    with FaultyProxy(os.environ[VARIABLES[request.param]]).running() as running:
        monkeypatch.setenv(VARIABLES[request.param], running.address)
        monkeypatch.setattr(location, "ATTEMPTS", 3)
        monkeypatch.setattr(location, "REQUEST_SECONDS", 1)
        yield request.param, running


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_arrives_or_the_one_before_stays(
    name: str, proxy: tuple[str, FaultyProxy], tmp_path: Path
) -> None:
    place, disturbed = proxy
    case = CASES[name]
    if case.only not in (None, place):
        pytest.skip(f"only {case.only} answers so")
    kept = Kept.at(place, tmp_path)
    disk = kept.open()
    disk.begin_attempt()
    commit(disk, 1, 1)
    disturbed.fault = case.fault()
    if case.error is None:
        commit(disk, 2, 1)
    else:
        with pytest.raises(StoreError) as refused:
            commit(disk, 2, 1)
        assert case.error in str(refused.value)
        assert len(str(refused.value)) < 400
        assert "\n" not in str(refused.value)
    assert disturbed.fault.met > 0
    disturbed.fault = None
    whole = [2, 1] if case.error is None else [1]
    shelf = kept.open().shelf
    assert [step for step in reversed(shelf.steps()) if shelf.committed(step)] == whole
    again = kept.open()  # once the store is well, the same upload arrives
    again.begin_attempt()
    commit(again, 3, 2)
    assert kept.open().shelf.newest_verified()[0] is not None
    assert kept.read(3, "a.bin") == CONTENT


def test_a_read_that_is_cut_off_is_damage_and_the_checkpoint_before_counts(
    proxy: tuple[str, FaultyProxy], tmp_path: Path
) -> None:
    place, disturbed = proxy
    kept = Kept.at(place, tmp_path)
    disk = kept.open()
    disk.begin_attempt()
    commit(disk, 1, 1)
    commit(disk, 2, 1)
    disturbed.fault = Fault("cut answer", meets=lambda method, path: method == "GET" and "checkpoint-2" in path)
    newest, damaged = kept.open().shelf.newest_verified()
    assert newest is not None
    assert newest.step == 1
    assert len(damaged) == 1
    disturbed.fault = None
    newest, damaged = kept.open().shelf.newest_verified()
    assert newest is not None
    assert (newest.step, damaged) == (2, [])


def test_an_error_that_nobody_knows_keeps_its_text_in_one_line() -> None:
    assert said(OSError("it\nis   odd")) == "it is odd"
    assert len(said(OSError("x" * 5000))) == 300
