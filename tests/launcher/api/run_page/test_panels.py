"""The panels of a run's page below its charts: log, answers, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gemfleet.cluster.registry.run_registry import RunState
from support.servers.api_live import Live, make_checkpoint, publish_files
from support.servers.browser import complaints, points, text_of, wait_for


def test_the_log_is_searched_by_text_and_rank(live: Live, browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    logs = live.home / "runs/alpha-2/logs"
    logs.mkdir(parents=True)
    (logs / "rank-0.log").write_text("loss is low\nOut of <memory>\n")
    (logs / "rank-1.log").write_text("loss is high\n")
    live.registry.heartbeat("alpha-2", 1, "node-1", "127.0.0.1", 1)
    browser.get(f"{live.url}/#/runs/alpha-2")
    wait_for(lambda: "loss is high" in text_of(browser, "[aria-label=Log] pre"))
    browser.find_element("id", "log-rank").send_keys("1")
    wait_for(lambda: text_of(browser, "[aria-label=Log] pre") == "rank-1   loss is high\n")
    browser.find_element("id", "log-rank").send_keys(Keys.HOME)
    browser.find_element("id", "log-search").send_keys("of <MEM")
    wait_for(lambda: text_of(browser, "[aria-label=Log] pre") == "rank-0   Out of <memory>\n")
    with (logs / "rank-1.log").open("a") as log:
        log.write("out of luck\nout of <memory> too\n")
    wait_for(lambda: "out of <memory> too" in text_of(browser, "[aria-label=Log] pre"))
    assert "luck" not in text_of(browser, "[aria-label=Log] pre")
    browser.find_element("id", "log-search").send_keys(Keys.END, "zzz")
    wait_for(lambda: "No line with this text" in text_of(browser, "[aria-label=Log]"))
    assert complaints(browser) == []


def test_answers_and_the_adapter_appear_once_they_are_published(live: Live, browser: Any, downloads: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.get(f"{live.url}/#/runs/alpha-2")
    wait_for(lambda: points(browser) == 3)
    publish_files(live.home, "alpha-2")
    live.registry.transition("alpha-2", RunState.SUCCEEDED)
    wait_for(lambda: "EXACT MATCH" in text_of(browser, "[aria-label=Predictions]").upper())
    assert "What is <b>2 + 2</b>?" in text_of(browser, "[aria-label='Answer 1'] summary")
    assert "differs" in text_of(browser, "[aria-label='Answer 3'] h3")
    browser.find_element("id", "only-differing").send_keys(Keys.SPACE)
    wait_for(lambda: browser.find_elements("css selector", "[aria-label='Answer 1']") == [])
    wait_for(lambda: browser.find_elements("css selector", "[aria-label='Answer 4']"))
    wait_for(lambda: browser.find_elements("id", "get-adapter"))
    browser.find_element("id", "get-adapter").click()
    wait_for((downloads / "alpha-2-adapter.tar").exists)
    assert complaints(browser) == []


def test_checkpoints_are_a_short_table_with_their_losses(live: Live, browser: Any) -> None:
    for step in range(20, 32):
        folder = make_checkpoint(live.home, "alpha-1", step)
        live.registry.add_checkpoint("alpha-1", step, str(folder), 3009, 1)
    browser.get(f"{live.url}/#/runs/alpha-1")
    rows = "return [...document.querySelectorAll('[aria-label=Checkpoints] tbody tr')].map((row) => row.innerText)"
    wait_for(lambda: len(browser.execute_script(rows)) == 10)
    browser.find_element("id", "older-checkpoints").click()
    wait_for(lambda: len(browser.execute_script(rows)) == 14)
    assert ["best" in row for row in browser.execute_script(rows)] == [False] * 13 + [True]
    assert browser.execute_script(rows)[-1].startswith("4\t2.04 best")
