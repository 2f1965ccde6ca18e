"""Event streams: nothing lost, nothing twice, and an end."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from gemfleet.cluster.registry.registry_reader import Mark, RegistryReader
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.launcher.api import feed as feed_module
from gemfleet.launcher.api.feed import Feed
from support.servers.api_live import Live, step_record

Message = tuple[str, str, Any]


def messages(
    live: Live, path: str, last: str | None = None, at_most: int = 10_000, opened: threading.Event | None = None
) -> Iterator[Message]:
    """(kind, id, body) of each message until the server closes the stream; `opened` is set once it has answered."""
    headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
    with live.client.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        if opened is not None:
            opened.set()
        fields: dict[str, str] = {}
        for line in answer.iter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "data" in fields:
                yield fields.get("event", ""), fields.get("id", ""), json.loads(fields["data"])
                fields = {}
                at_most -= 1
                if not at_most:
                    return


def test_an_ended_run_is_told_from_its_beginning_and_the_stream_closes(live: Live) -> None:
    told = list(messages(live, "/api/v1/runs/alpha-1/events"))
    assert next(body["message"] for kind, _, body in told if kind == "event") == "queued"
    assert told[-1][0] == "end"
    assert told[-2][2]["message"] == "succeeded"
    assert list(messages(live, "/api/v1/runs/alpha-1/events", told[-2][1])) == [("end", told[-1][1], {})]


def test_a_reader_that_breaks_off_goes_on_where_it_was(live: Live) -> None:
    """Two hundred events and records are written while a reader comes and goes after every seventh message."""

    def write() -> None:
        for number in range(100):
            live.registry.add_event("alpha-2", "note", f"note {number}")
            live.registry.add_metrics("alpha-2", [step_record(4 + number, 200)])
            time.sleep(0.01)
        live.registry.transition("alpha-2", RunState.STOPPED)

    writer = threading.Thread(target=write)
    writer.start()
    told: list[Message] = []
    last: str | None = None
    while not told or told[-1][0] != "end":
        for part in messages(live, "/api/v1/runs/alpha-2/events?metrics=true", last, at_most=7):
            told.append(part)
            last = part[1]
    writer.join()
    notes = [body["message"] for kind, _, body in told if kind == "event" and body["type"] == "note"]
    steps = [body["step"] for kind, _, body in told if kind == "metric"]
    assert notes == [f"note {number}" for number in range(100)]
    assert steps == [*range(1, 104)]


def test_a_step_that_is_trained_again_is_told_again(live: Live) -> None:
    stream = messages(live, "/api/v1/runs/alpha-2/events?metrics=true")
    for _ in range(3 + 3):  # three steps, two states, the batch
        next(stream)
    live.registry.add_metrics("alpha-2", [{**step_record(3), "loss": 9.0}])
    kind, _, body = next(stream)
    assert (kind, body["step"], body["loss"]) == ("metric", 3, 9.0)
    stream.close()  # type: ignore[attr-defined]


def test_one_stream_tells_of_all_runs_from_now_on(live: Live) -> None:
    opened = threading.Event()
    stream = messages(live, "/api/v1/events?metrics=true", at_most=2, opened=opened)
    told: list[Message] = []
    reader = threading.Thread(target=lambda: told.extend(stream))
    reader.start()
    assert opened.wait(10)
    live.registry.add_metrics("alpha-2", [step_record(4)])
    live.registry.transition("alpha-3", RunState.FAILED)
    reader.join(10)
    assert [(kind, body["run_id"]) for kind, _, body in told] == [("metric", "alpha-2"), ("event", "alpha-3")]


def test_logs_follow_until_the_run_ends(live: Live) -> None:
    folder = live.home / "runs" / "alpha-2" / "logs"
    folder.mkdir(parents=True)
    log = folder / "rank-0.log"
    log.write_text("first\n")
    told: list[Message] = []
    reader = threading.Thread(target=lambda: told.extend(messages(live, "/api/v1/runs/alpha-2/logs?follow=true")))
    reader.start()
    time.sleep(0.5)
    with log.open("a") as file:
        file.write("second\n")
    live.registry.transition("alpha-2", RunState.SUCCEEDED)
    reader.join(10)
    assert [body.get("line") for _, _, body in told] == ["first", "second", None]


def test_an_id_that_was_never_given_is_refused(live: Live) -> None:
    headers = {"Accept": "text/event-stream", "Last-Event-ID": "x"}
    live.get("/api/v1/runs/alpha-1/events", status=422, headers=headers)


def test_a_resumed_run_is_followed_past_its_first_end(live: Live) -> None:
    live.registry.reopen("alpha-1", "{}", os.getpid())
    ending = threading.Timer(0.5, lambda: live.registry.transition("alpha-1", RunState.STOPPED))
    ending.start()
    told = [body["message"] for kind, _, body in messages(live, "/api/v1/runs/alpha-1/events") if kind == "event"]
    ending.join()
    assert [told[-3], told[-2], told[-1]] == ["succeeded", "queued: resumed", "stopped"]


@pytest.mark.timeout(60)
def test_readers_that_are_cancelled_twice_just_end(live: Live) -> None:
    """As a busy server does with streams whose readers have gone."""

    async def leave() -> list[object]:
        feed = Feed(RegistryReader(live.home / "gemfleet.db"), 60.0, lambda: None)
        readers = [asyncio.create_task(feed.wait(Mark(), 60.0)) for _ in range(20)]
        await asyncio.sleep(0.01)
        for _ in range(3):
            for reader in readers:
                reader.cancel()
            await asyncio.sleep(0)
        return [type(outcome) for outcome in await asyncio.gather(*readers, return_exceptions=True)]

    assert asyncio.run(leave()) == [asyncio.CancelledError] * 20


@pytest.fixture
def most_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pages of 50 rows; the sizes of all that is read of the registry."""
    sizes: list[int] = []
    real = RegistryReader._query

    def counted(reader: RegistryReader, query: str, values: Any) -> Any:
        rows = real(reader, query, values)
        sizes.append(len(rows))
        return rows

    monkeypatch.setattr(feed_module, "PAGE_ROWS", 50)
    monkeypatch.setattr(RegistryReader, "_query", counted)
    return sizes


def write_steps(live: Live, first: int, last: int) -> None:
    """Of two runs in turn."""
    for step in range(first, last + 1, 10):
        for run_id in ("alpha-2", "alpha-3"):
            live.registry.add_metrics(run_id, [step_record(n, 10_000) for n in range(step, min(step + 10, last + 1))])


def steps_of(told: list[Message]) -> list[int]:
    return [body["step"] for kind, _, body in told if kind == "metric" and body["kind"] == "step"]


def test_a_long_history_is_read_in_pages(live: Live, most_rows: list[int]) -> None:
    write_steps(live, 4, 700)
    for number in range(120):
        live.registry.add_event("alpha-2", "note", f"note {number}")
    live.registry.transition("alpha-2", RunState.STOPPED)
    most_rows.clear()
    told = list(messages(live, "/api/v1/runs/alpha-2/events?metrics=true"))
    assert steps_of(told) == list(range(1, 701))
    assert sum(body.get("type") == "note" for _, _, body in told) == 120
    assert max(most_rows) <= 50


def test_a_stream_of_events_reads_no_records(live: Live, most_rows: list[int]) -> None:
    write_steps(live, 4, 700)
    live.registry.transition("alpha-2", RunState.STOPPED)
    time.sleep(1)  # the feed itself has looked at them by then
    most_rows.clear()
    assert [kind for kind, _, _ in messages(live, "/api/v1/runs/alpha-2/events")][-1] == "end"
    assert sum(most_rows) < 50


def test_a_page_gets_a_thinned_history_and_then_all_that_comes(live: Live, most_rows: list[int]) -> None:
    write_steps(live, 4, 700)
    live.registry.add_metrics("alpha-2", [{"kind": "eval", "step": 350, "eval_loss": 1.0}])
    time.sleep(0.5)
    most_rows.clear()
    path = "/api/v1/runs/alpha-2/events?metrics=true&points=20"
    stream = messages(live, path)
    told = [next(stream) for _ in range(20 + 1 + 3)]  # steps, an evaluation, two states, the batch
    steps = steps_of(told)
    assert (len(steps), steps[0], steps[-1]) == (20, 1, 700)
    assert max(b - a for a, b in pairwise(steps)) < 40
    assert max(most_rows) <= 50
    live.registry.add_metrics("alpha-2", [step_record(701), step_record(702)])
    assert steps_of([next(stream), next(stream)]) == [701, 702]
    stream.close()  # type: ignore[attr-defined]
    again = messages(live, path, told[10][1])  # broken off within the history: it comes again, as nothing was seen
    assert steps_of([next(again) for _ in range(21)])[-1] == 702
    again.close()  # type: ignore[attr-defined]
    after = messages(live, path, told[-1][1])
    assert steps_of([next(after), next(after)]) == [701, 702]
    after.close()  # type: ignore[attr-defined]


def test_a_page_gets_the_newest_of_many_events(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "MOST_EVENTS", 10)
    for number in range(30):
        live.registry.add_event("alpha-2", "note", f"note {number}")
    live.registry.transition("alpha-2", RunState.STOPPED)
    told = list(messages(live, "/api/v1/runs/alpha-2/events?metrics=true&points=20"))
    shown = [body["message"] for kind, _, body in told if kind == "event"]
    assert shown == [*(f"note {number}" for number in range(21, 30)), "stopped"]


@pytest.mark.slow
def test_a_burst_is_told_whole_and_not_remembered_whole(
    live: Live, most_rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "REMEMBERED_ITEMS", 100)
    ending = threading.Timer(0.5, lambda: live.registry.transition("alpha-2", RunState.STOPPED))
    stream = messages(live, "/api/v1/runs/alpha-2/events?metrics=true")
    told = [next(stream)]
    live.registry.add_metrics("alpha-2", [step_record(n, 10_000) for n in range(4, 2000)])
    ending.start()
    told += list(stream)
    assert steps_of(told) == list(range(1, 2000))
    assert max(most_rows) <= 50
