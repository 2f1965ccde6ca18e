"""The dashboard in a real browser, over a live server."""

from __future__ import annotations

import tarfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.launcher.api.settings import Tokens
from gemfleet.launcher.data_view.page import page
from gemfleet.launcher.runs.folder import DATA_FILE
from support.servers.api_live import DATA, TRACKER_PAGE, Live, add_sweep, serve, step_record
from support.servers.browser import complaints, emulate, give_token, points, text_of, wait_for

TOKENS = Tokens(read="r" * 43, admin="a" * 43)


def test_a_chart_gains_points_without_a_reload_and_stop_asks_first(live: Live, browser: Any) -> None:
    browser.get(f"{live.url}/#/runs/alpha-2")
    wait_for(lambda: points(browser) == 3)
    browser.execute_script("window.sameDocument = true; window.sameButton = document.getElementById('stop')")
    for step in range(4, 7):
        live.registry.add_metrics("alpha-2", [step_record(step)])
    wait_for(lambda: points(browser) == 6)
    wait_for(lambda: "6 of 8" in text_of(browser, ".facts"))
    assert [points(browser, MEMORY, rank) for rank in (0, 1, 2)] == [6, 6, 0]  # a line for each of two ranks
    # A button that is replaced between pressing and releasing hears no click.
    assert browser.execute_script("return document.getElementById('stop') === window.sameButton") is True
    browser.find_element("id", "stop").click()
    browser.find_element("css selector", "#confirm-dialog button[value=no]").click()
    assert not live.registry.stop_requested("alpha-2")
    browser.find_element("id", "stop").click()
    browser.find_element("css selector", "#confirm-dialog button[value=yes]").click()
    wait_for(lambda: live.registry.stop_requested("alpha-2"))
    wait_for(lambda: "Stopping" in text_of(browser, "#stop"))
    live.registry.transition("alpha-2", RunState.STOPPED)
    wait_for(lambda: text_of(browser, ".top .state") == "stopped")
    assert browser.execute_script("return window.sameDocument") is True
    assert complaints(browser) == []


def test_an_ended_run_is_resumed_and_what_is_refused_is_said(live: Live, browser: Any) -> None:
    browser.get(f"{live.url}/#/runs/alpha-1")
    wait_for(lambda: text_of(browser, ".top .state") == "succeeded")
    assert browser.find_elements("id", "resume") == []  # nothing is left to do
    live.registry.reopen("alpha-1", "{}")
    live.registry.transition("alpha-1", RunState.STOPPED)
    browser.refresh()
    wait_for(lambda: text_of(browser, "#resume") == "Resume")
    assert "8 (ddp)" in text_of(browser, ".facts")
    assert browser.find_element("link text", "Open").get_attribute("href") == TRACKER_PAGE
    browser.find_element("id", "resume").click()
    wait_for(lambda: text_of(browser, ".top .state") == "queued")
    live.registry.transition("alpha-1", RunState.TRAINING)
    live.registry.add_metrics("alpha-1", [step_record(9, 20)])
    wait_for(lambda: points(browser) == 9)
    live.registry.transition("alpha-1", RunState.STOPPED)
    wait_for(lambda: text_of(browser, "#resume") == "Resume")
    live.registry.reopen("alpha-1", "{}")
    browser.find_element("id", "resume").click()
    wait_for(lambda: "stop it first" in text_of(browser, ".card .problem"))


def test_a_sweep_shows_its_trials_live_on_a_phone_and_by_keyboard(live: Live, browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    add_sweep(live.registry, live.home)
    emulate(browser, "dark", 400, 900)
    browser.get(f"{live.url}/")
    wait_for(lambda: "4 of 6 trials" in text_of(browser, "[aria-label=Sweeps]"))
    browser.find_element("link text", "lr").send_keys(Keys.ENTER)
    wait_for(lambda: text_of(browser, "h1") == "Sweep lr")
    wait_for(lambda: (points(browser, 0, 0), points(browser, 0, 3)) == (5, 2))
    assert "trial 2 (r 8, format text)" in text_of(browser, "[aria-label=State]")
    assert "2.4 best" in text_of(browser, "tr.best")
    live.registry.add_metrics("lr-004", [step_record(3), step_record(4), {"kind": "eval", "step": 4, "eval_loss": 1.5}])
    wait_for(lambda: points(browser, 0, 3) == 3)
    wait_for(lambda: "Best: trial 4" in text_of(browser, "[aria-label=State]"))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
    browser.find_element("id", "trial-3").send_keys(Keys.ENTER)
    wait_for(lambda: text_of(browser, "h1") == "lr-003")
    wait_for(lambda: text_of(browser, "#sweep") == "lr")
    assert complaints(browser) == []


def test_a_run_shows_its_data_on_a_phone_and_by_keyboard(live: Live, browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    emulate(browser, "dark", 400, 900)
    browser.get(f"{live.url}/#/runs/alpha-1")
    wait_for(lambda: "2 no content" in text_of(browser, "[aria-label=Data] .reasons"))
    assert "Rows used\n10" in text_of(browser, "[aria-label=Data] .facts")
    assert text_of(browser, "details[open] mark") == "It is 4.<end_of_turn>"  # text, never markup
    marks = "return getComputedStyle(document.querySelector('details mark'), '::before').content"
    assert browser.execute_script(marks) == '"⟦"'  # colour is not the only mark
    sides = "return [...document.querySelectorAll('.pictures img')].map((image) => image.naturalWidth)"
    wait_for(lambda: browser.execute_script(sides) == [32])
    browser.find_elements("css selector", "[aria-label=Data] summary")[1].send_keys(Keys.ENTER)
    wait_for(lambda: "password: [hidden]" in text_of(browser, "[aria-label=Data] details:nth-of-type(2) pre"))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
    browser.get(f"{live.url}/#/runs/alpha-2")
    wait_for(lambda: text_of(browser, "h1") == "alpha-2")
    (live.home / "runs" / "alpha-2").mkdir(exist_ok=True)
    (live.home / "runs" / "alpha-2" / DATA_FILE).write_text(DATA.model_dump_json())
    live.registry.transition("alpha-2", RunState.RESTARTING)  # the page hears of a new phase and looks again
    wait_for(lambda: "Rows used" in text_of(browser, "[aria-label=Data]"))
    assert complaints(browser) == []


def test_a_page_in_a_file_shows_the_same_data(tmp_path: Path, browser: Any) -> None:
    (tmp_path / "data.html").write_text(page(DATA), encoding="utf-8")
    browser.get((tmp_path / "data.html").as_uri())
    wait_for(lambda: text_of(browser, "details[open] mark") == "It is 4.<end_of_turn>")
    assert "2 no content" in text_of(browser, ".reasons")
    wait_for(lambda: browser.execute_script("return document.querySelector('.pictures img').naturalWidth") == 32)
    assert complaints(browser) == []


def test_a_download_is_the_archive(live: Live, browser: Any, downloads: Path) -> None:
    browser.get(f"{live.url}/#/runs/alpha-1")
    wait_for(lambda: "verified" in text_of(browser, "#content"))
    browser.find_element("css selector", "[aria-label='Download checkpoint 8']").click()
    archive = downloads / "alpha-1-8.tar"
    wait_for(archive.exists)
    with tarfile.open(archive) as content:
        assert "checkpoint-8/adapter_model.safetensors" in content.getnames()


def test_it_fits_a_phone_and_has_a_dark_side(live: Live, browser: Any) -> None:
    for path in ("/", "/#/runs/alpha-1"):
        browser.get(f"{live.url}{path}")
        emulate(browser, "dark", 390, 800)
        wait_for(lambda: "alpha-1" in text_of(browser, "#content"))
        width = browser.execute_script("return document.documentElement.scrollWidth")
        assert width <= 390
        assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 27)"


def test_everything_that_can_be_used_has_a_name(live: Live, browser: Any) -> None:
    """By the browser's own accessibility tree, as a screen reader gets it."""
    browser.get(f"{live.url}/#/runs/alpha-1")
    wait_for(lambda: points(browser) == 8)
    tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    used = ("button", "link", "checkbox", "image", "img", "progressbar", "progress", "table", "ProgressIndicator")
    found = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in tree if not n.get("ignored")]
    nameless = [role for role, name in found if role in used and not name.strip()]
    assert nameless == []
    assert any("Loss: training: 8 points, newest 2.200 at step 8" in name for _, name in found)


def test_a_token_is_asked_for_once(tmp_path: Path, browser: Any) -> None:
    for guarded in serve(tmp_path, TOKENS):
        browser.get(f"{guarded.url}/#/runs/alpha-1")
        field = give_token(browser, TOKENS.read)
        wait_for(lambda: points(browser) == 8)
        assert not field.is_displayed()


MEMORY = 5  # the place of its chart
LEGEND_AND_PLOT = """
return [...document.querySelectorAll('.chart')].filter((chart) => chart.querySelector('.legend')).map((chart) => {
  const box = (selector) => chart.querySelector(selector).getBoundingClientRect();
  return { legend: box('.legend').bottom, plot: box('.nsewdrag').top, height: box('.nsewdrag').height,
    below: box('.legend').top >= chart.getBoundingClientRect().top - 1, lines: chart.data.length };
});
"""


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("ranks", [2, 8, 16])
def test_a_legend_covers_no_line(live: Live, browser: Any, width: int, ranks: int) -> None:
    live.registry.add_metrics("alpha-2", [{**step_record(4), "memory_bytes": [10**9 + n for n in range(ranks)]}])
    browser.get("about:blank")
    emulate(browser, width=width)
    browser.get(f"{live.url}/#/runs/alpha-2")
    lines = ranks if ranks <= 8 else 2 + 3  # the first steps were of two ranks; a band is three lines
    wait_for(lambda: points(browser, MEMORY, lines - 1) >= 1)
    time.sleep(0.6)  # a redraw that is under way
    found = browser.execute_script(LEGEND_AND_PLOT)
    assert [chart["lines"] for chart in found] == [2, 2, lines, 2]  # losses, waits, memory, utilisation
    for chart in found:
        assert chart["legend"] <= chart["plot"] + 1, chart
        assert chart["below"], chart  # nor is it cut off above
        assert chart["height"] > 40, chart


def test_more_lines_than_can_be_told_apart_have_no_legend(live: Live, browser: Any) -> None:
    losses = {f"set-{number}": 2.0 + number for number in range(17)}
    live.registry.add_metrics("alpha-2", [{"kind": "eval", "step": 3, "eval_loss": 2.0, "eval_losses": losses}])
    browser.get(f"{live.url}/#/runs/alpha-2")
    wait_for(lambda: points(browser, 0, 18) == 1)
    time.sleep(0.6)
    assert [chart["lines"] for chart in browser.execute_script(LEGEND_AND_PLOT)] == [2, 2, 2]


def chart_texts(browser: Any) -> list[str]:
    """What stands in each chart, without the places where lines are broken."""
    texts = browser.execute_script("return [...document.querySelectorAll('.chart')].map((chart) => chart.textContent)")
    return ["".join(text.split()) for text in texts]


def test_an_empty_chart_says_why(live: Live, browser: Any) -> None:
    live.registry.create_run("beta-1", "beta", "{}")
    live.registry.transition("beta-1", RunState.PREPARING_DATA)
    for run_id, why in (
        ("alpha-3", "No step yet: asked for 8 workers"),
        ("alpha-4", "The run ended before its first step (failed"),
        ("beta-1", "No step yet: the run is preparing its data."),
    ):
        browser.get(f"{live.url}/#/runs/{run_id}")
        said = partial(
            lambda words: [words in text for text in chart_texts(browser)] == [True] * 7, why.replace(" ", "")
        )
        wait_for(said)
        labels = "return [...document.querySelectorAll('.chart')].map((chart) => chart.getAttribute('aria-label'))"
        assert all(why in label for label in browser.execute_script(labels))
    live.registry.transition("beta-1", RunState.TRAINING)
    live.registry.add_metrics("beta-1", [step_record(1)])
    wait_for(lambda: points(browser) == 1)
    assert not any("Nostepyet" in text for text in chart_texts(browser))
    browser.get(f"{live.url}/#/compare/alpha-3,alpha-4")
    wait_for(lambda: all("Noneoftheseruns" in text for text in chart_texts(browser)))


def test_the_end_is_shown_though_the_api_ends_with_it(tmp_path: Path, browser: Any) -> None:
    """As on a cluster that was started for the run: the event is the last thing that the page hears."""
    ending = serve(tmp_path)
    live = next(ending)
    browser.get(f"{live.url}/#/runs/alpha-2")
    wait_for(lambda: points(browser) == 3)
    wait_for(lambda: text_of(browser, ".top .state") == "training")
    time.sleep(1.5)  # no look at the run is due any more
    live.registry.transition("alpha-2", RunState.FAILED, "rank 1 found no memory")
    time.sleep(0.4)
    next(ending, None)
    wait_for(lambda: text_of(browser, ".top .state") == "failed")
    assert "rank 1 found no memory" in text_of(browser, ".top ~ p")
    facts = text_of(browser, ".facts").split("\n")
    assert facts[facts.index("Loss (mean)") + 1] == "2.8"
    assert facts[facts.index("Tokens/s (median)") + 1] == "200"
    for hidden in ("true", "false"):  # another tab, and back
        browser.execute_script(f"Object.defineProperty(document, 'hidden', {{ value: {hidden}, configurable: true }})")
        browser.execute_script("document.dispatchEvent(new Event('visibilitychange'))")
    wait_for(lambda: "this is what was heard last" in text_of(browser, "#connection"))
    assert text_of(browser, ".top .state") == "failed"
