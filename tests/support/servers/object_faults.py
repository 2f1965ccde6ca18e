"""The faults of an object store that tests cause, what must come of each, and the documentation's table of both."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from gemfleet.cluster.checkpoint_store import location

from .faulty_proxy import Fault, FaultyProxy
from .object_store import STORES, scheme_of

VARIABLES = {"s3": "AWS_ENDPOINT_URL", "gs": "CLOUD_STORAGE_EMULATOR_ENDPOINT"}
S3 = ("s3", "s3rver")
REGION = "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-west-1'"
BROKE = "the connection to the store broke at every attempt; check the network, then try again"
HEADER = ("fault", "stores", "what becomes of a checkpoint, a source, a delivery", "what is said")
ARRIVES, ABSENT = "arrives", "absent; whole at the next attempt"

Meets = Callable[[str, str], bool]


class Case(NamedTuple):
    """fault: of the requests that carry content. said: the error's meaning; None: the attempts overcome the fault"""

    name: str
    fault: Callable[[Meets], Fault]
    said: str | None
    stores: tuple[str, ...] = STORES


def refuses(status: int, code: str, message: str = "") -> Callable[[Meets], Fault]:
    return lambda _: Fault("refuse", status, code, message)


CASES = (
    Case("slow", lambda _: Fault("slow", seconds=0.05), None),
    Case("503, twice", lambda _: Fault("refuse", times=2), None),
    Case(
        "503, always",
        lambda _: Fault("refuse"),
        "the store has refused every attempt for the moment; try again later",
    ),
    Case("a request is cut off, once", lambda meets: Fault("cut request", times=1, meets=meets), None),
    Case("requests are cut off, always", lambda meets: Fault("cut request", meets=meets), BROKE),
    Case("an answer is cut off, once", lambda meets: Fault("cut answer", times=1, meets=meets), None),
    Case("answers are cut off, always", lambda meets: Fault("cut answer", meets=meets), BROKE),
    Case(
        "wrong region",
        refuses(400, "AuthorizationHeaderMalformed", REGION),
        "the bucket is in the region eu-west-1; set AWS_REGION=eu-west-1",
        S3,
    ),
    Case(
        "expired credentials",
        refuses(400, "ExpiredToken", "The provided token has expired."),
        "its credentials have expired; renew them, then go on",
        S3,
    ),
    Case(
        "unknown credentials",
        refuses(403, "InvalidAccessKeyId", "The key does not exist in our records."),
        "the store does not know these credentials; set those that it gave out",
        S3,
    ),
    Case(
        "unknown or expired credentials",
        refuses(401, "Unauthorized", "Invalid Credentials"),
        "the store does not know these credentials; set those that it gave out",
        ("gs",),
    ),
    Case(
        "not allowed",
        refuses(403, "AccessDenied", "Access Denied"),
        "these credentials may not do that; let them list, read, write and delete",
    ),
)
STORE_CASES = [
    pytest.param(store, case, id=f"{store}-{case.name}", marks=[] if store == "s3" else pytest.mark.faults)
    for case in CASES
    for store in case.stores
]


@contextmanager
def disturbed(store: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A store that the environment names, behind a proxy. Attempts are few and short."""
    variable = VARIABLES[scheme_of(store)]
    with FaultyProxy(os.environ[variable]).running() as proxy:
        monkeypatch.setenv(variable, proxy.address)
        monkeypatch.setattr(location, "ATTEMPTS", 3)
        short = store == "gs" and case.said is not None  # Google's client tries until attempts x seconds are over
        monkeypatch.setattr(location, "REQUEST_SECONDS", 0.2 if short else 2)
        yield proxy


def faults_table() -> str:
    """In Markdown. Every row is what the tests assert of its stores, for checkpoints, sources and deliveries alike."""
    rows = [
        (case.name, ", ".join(case.stores), ABSENT if case.said else ARRIVES, case.said or "nothing") for case in CASES
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (HEADER, ("---",) * len(HEADER), *rows))
