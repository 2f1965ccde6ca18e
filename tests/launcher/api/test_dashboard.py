"""The dashboard in a real browser, over a live server."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_live import Live, serve, step_record
from browser import complaints, emulate, open_browser, points, text_of, wait_for
from gemfleet.cluster.run_registry import RunState
from gemfleet.launcher.api.settings import Tokens

TOKENS = Tokens(read="r" * 43, admin="a" * 43)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def window(downloads: Path) -> Iterator[Any]:
    yield from open_browser(downloads)


@pytest.fixture
def browser(window: Any) -> Any:
    """The window, as new."""
    window.get("about:blank")
    emulate(window)
    complaints(window)
    return window


def test_a_chart_gains_points_without_a_reload_and_stop_asks_first(live: Live, browser: Any) -> None:
    browser.get(f"{live.url}/#/runs/alpha-2")
    wait_for(lambda: points(browser) == 3)
    browser.execute_script("window.sameDocument = true; window.sameButton = document.getElementById('stop')")
    for step in range(4, 7):
        live.registry.add_metrics("alpha-2", [step_record(step)])
    wait_for(lambda: points(browser) == 6)
    wait_for(lambda: "6 of 8" in text_of(browser, ".facts"))
    assert [points(browser, 3, rank) for rank in (0, 1, 2)] == [6, 6, 0]  # memory, a line for each of two ranks
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
    wait_for(lambda: text_of(browser, "#resume") == "Resume")
    assert "8 (ddp)" in text_of(browser, ".facts")
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


def test_the_list_is_live_leads_to_a_run_by_keyboard_and_compares(live: Live, browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.get(f"{live.url}/")
    wait_for(lambda: "alpha-4" in text_of(browser, "tbody"))
    live.registry.create_run("beta-1", "beta", "{}")
    wait_for(lambda: text_of(browser, "tbody tr:first-child a") == "beta-1")
    for run_id in ("alpha-1", "alpha-2"):
        browser.find_element("css selector", f"[aria-label='compare {run_id}']").send_keys(Keys.SPACE)
    browser.find_element("xpath", "//button[.='Compare']").send_keys(Keys.ENTER)
    wait_for(lambda: (points(browser, 0, 0), points(browser, 0, 1)) == (8, 3))
    browser.find_element("link text", "alpha-1").send_keys(Keys.ENTER)
    wait_for(lambda: text_of(browser, "h1") == "alpha-1")
    assert browser.execute_script("return document.activeElement.tagName") == "H1"
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
        field = wait_for(lambda: browser.find_element("id", "token"))
        wait_for(field.is_displayed)
        field.send_keys(TOKENS.read + "\n")
        wait_for(lambda: points(browser) == 8)
        assert not field.is_displayed()
