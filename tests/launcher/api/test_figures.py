"""Every figure of a record reaches each place that its description names, with its value."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from gemfleet.benchmarks.shared.record import Record, Run
from gemfleet.benchmarks.training.child import PER_STEP
from gemfleet.benchmarks.training.figures import figures as suite_figures
from gemfleet.cluster.registry.run_recorder import RunRecorder
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.launcher.runs.registry import registry_of
from gemfleet.train.local.reporter import LocalReporter
from gemfleet.train.step.figure import Figure
from gemfleet.train.step.record import FIGURES, STEP_FIGURES, points
from prometheus_client.parser import text_string_to_metric_families
from support.servers.api_live import Live, serve
from support.servers.browser import open_browser, text_of, wait_for
from support.step_records import a_step, an_evaluation
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RECORDS = {"step": a_step().to_dict(), "eval": an_evaluation().to_dict()}
RUN = "figures-1"
UNITS = {"", "1", "s", "steps", "epochs", "ranks", "examples", "tokens", "tokens/s", "bytes", "FLOP", "FLOP/s"}
UNITS |= {"pictures", "pictures/s"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a run whose recorder got a step and an evaluation."""
    home = tmp_path_factory.mktemp("home")
    registry = registry_of(home)
    registry.create_run(RUN, "figures", "{}")
    registry.transition(RUN, RunState.TRAINING)
    recorder = RunRecorder(str(home), RUN, points)
    recorder.push(0, list(RECORDS.values()), {"node": "node-1", "address": "127.0.0.1", "pid": 1})
    return home


@pytest.fixture(scope="module")
def live(home: Path) -> Iterator[Live]:
    yield from serve(home)


def shown_in(place: str) -> list[Figure]:
    """place: `curve`, `chart`, `tile`, `gauge` or `suites`"""
    found = [figure for figure in FIGURES if getattr(figure, place)]
    assert any(figure.name == "padding_share" for figure in found) == (place != "chart")
    return found


def values_of(figure: Figure) -> list[tuple[str, float]]:
    """Of the record: by rank (`0`, `1`, …) or set (`chat`), else one of no name; without those of no value."""
    value = RECORDS[figure.kind][figure.name]
    if figure.per_set:
        return list(value.items())
    named = [(str(rank), one) for rank, one in enumerate(value)] if figure.per_rank else [("", value)]
    return [(rank, one) for rank, one in named if one is not None]


def test_every_figure_says_what_it_is() -> None:
    for figure in FIGURES:
        assert figure.text.endswith("."), figure.name
        assert figure.unit in UNITS | {"nats/token"}, figure.name
    gauges = [figure.gauge for figure in shown_in("gauge")]
    assert len(gauges) == len(set(gauges))


def test_tensorboard_draws_it_in_a_run_and_without_one(home: Path, tmp_path: Path) -> None:
    with LocalReporter(tmp_path, 0, resume=False) as reporter:
        for record in RECORDS.values():
            reporter.log_step(record)
    wanted = {
        "/".join(filter(None, [figure.tag, f"rank-{name}" if figure.per_rank else name])): value
        for figure in shown_in("curve")
        for name, value in values_of(figure)
    }
    (in_a_run,) = (home / "runs" / RUN / "runs").iterdir()
    for folder in (in_a_run, tmp_path / "tensorboard"):
        board = EventAccumulator(str(folder)).Reload()
        drawn = {tag: board.Scalars(tag)[0].value for tag in board.Tags()["scalars"]}
        assert drawn == pytest.approx(wanted)


def test_the_schema_of_a_record_has_its_unit_and_what_it_means(live: Live) -> None:
    models = live.get("/api/v1/openapi.json")["components"]["schemas"]
    record, throughput = models["Metric"]["properties"], models["Throughput"]["properties"]
    for figure in FIGURES:
        assert figure.name in ("kind", "step") or record[figure.name]["x-unit"] == figure.unit
        assert figure.name in ("kind", "step") or figure.text in record[figure.name]["description"]
    assert {figure.name for figure in STEP_FIGURES if figure.over_run} == {*throughput, "loss"}
    told = live.get(f"/api/v1/runs/{RUN}/metrics")["data"]
    assert {record["kind"]: record for record in told} == {
        kind: {"object": "run.metric", **record} for kind, record in RECORDS.items()
    }
    assert live.get(f"/api/v1/runs/{RUN}")["throughput"]["padding_share"] == 0.75


def test_prometheus_has_it(live: Live) -> None:
    families = {f.name: f for f in text_string_to_metric_families(live.client.get("/metrics").text)}
    for figure in shown_in("gauge"):
        family = families[f"gemfleet_{figure.gauge}"]
        found = [
            (s.labels.get("set" if figure.per_set else "rank", ""), s.value)
            for s in family.samples
            if s.labels["run"] == RUN
        ]
        assert found == values_of(figure), figure.name
        assert family.documentation == figure.text


def test_a_run_that_has_ended_tells_what_all_steps_come_to(tmp_path: Path) -> None:
    registry = registry_of(tmp_path)
    registry.create_run(RUN, "figures", "{}")
    tokens = (200, 400, 800)
    registry.add_metrics(RUN, [a_step(step=n, tokens=t).to_dict() for n, t in enumerate(tokens)])
    registry.transition(RUN, RunState.SUCCEEDED)
    figures = registry.end_figures(RUN)
    assert set(figures) == {"steps"} | {f.name for f in FIGURES if f.over_run in ("mean", "median", "max")}
    assert figures["padding_share"] == 0.5


def test_the_suites_report_it() -> None:
    step = RECORDS["step"]
    facts: dict[str, Any] = {name: [step[name]] for name in PER_STEP}
    for name in ("ceiling_flops_per_second", "rated_flops_per_second", "peak_memory_bytes", "wire_bytes_per_step"):
        facts[name] = 1.0
    run = Run(
        repeat=0,
        started_at="",
        step_seconds=[step["step_seconds"]],
        tokens=[step["tokens"]],
        losses=[step["loss"]],
        facts={**facts, "communication_seconds": [0.0]},
    )
    empty: dict[str, Any] = {"hardware": {}, "versions": {}, "git_commit": None, "command": "", "finished_at": ""}
    found = suite_figures(Record(suite="a", case="b", config={"ranks": 4}, runs=[run], **empty))
    for figure in shown_in("suites"):
        value = found[figure.name]
        assert (value["median"] if isinstance(value, dict) else value) == step[figure.name], figure.name


def test_the_board_shows_it(live: Live, tmp_path: Path) -> None:
    for browser in open_browser(tmp_path):
        browser.get(f"{live.url}/#/runs/{RUN}")
        charts = wait_for(partial(drawn_charts, browser))
        for figure in shown_in("chart"):
            assert figure.chart is not None
            names = [name for name, _ in values_of(figure)]
            ranks = [f"rank {name}" for name in names]
            lines = ranks if figure.per_rank else names if figure.per_set else [figure.chart.line]
            assert set(lines) <= set(charts[figure.chart.title]), figure.name
        tiles = dict(zip(*[iter(text_of(browser, ".facts").split("\n"))] * 2, strict=True))
        for figure in shown_in("tile"):
            assert figure.tile is not None
            assert float(tiles[figure.tile]) == RECORDS[figure.kind][figure.name], figure.name


LINES_WITH_POINTS = """
return [...document.querySelectorAll('.chart')].map((chart) => [chart.parentElement.querySelector('h2').innerText,
  (chart.data ?? []).filter((line) => line.x?.length).map((line) => line.name)]);
"""


def drawn_charts(browser: Any) -> dict[str, list[str]]:
    """The lines that have points, by the title of the chart; empty until each chart has one."""
    charts = browser.execute_script(LINES_WITH_POINTS)
    return dict(charts) if charts and all(lines for _, lines in charts) else {}
