"""The charts of a run's page: smoothed, in parts, over other axes, as tables, and of many ranks."""

from __future__ import annotations

from typing import Any

from gemfleet.cluster.registry.run_registry import RunState
from support.servers.api_live import Live, step_record
from support.servers.browser import complaints, points, text_of, wait_for

MEMORY = 5  # the place of its chart
LOSS = "document.querySelector('.chart')"


def layouts(browser: Any, path: str) -> list[Any]:
    """What each chart's layout has at a path such as `xaxis.range`."""
    script = (
        "return [...document.querySelectorAll('.chart')].map((chart) =>"
        " arguments[0].split('.').reduce((part, key) => part?.[key], chart._fullLayout))"
    )
    return list(browser.execute_script(script, path))


def test_charts_are_smoothed_and_looked_at_in_parts_together(live: Live, browser: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    losses = [{"kind": "eval", "step": step, "eval_loss": loss} for step, loss in ((0, 2.9), (2, 1.8), (3, 2.4))]
    live.registry.add_metrics("alpha-2", losses)
    browser.get(f"{live.url}/#/runs/alpha-2")
    wait_for(lambda: points(browser, 0, 1) == 3)
    wait_for(lambda: "best evaluation: 1.800 at step 2" in browser.execute_script(f"return {LOSS}.ariaLabel"))
    rough = browser.execute_script(f"return {LOSS}.data[0].y")
    browser.find_element("id", "smoothing").send_keys(Keys.END)
    wait_for(lambda: browser.execute_script(f"return {LOSS}.data[0].y[2]") > rough[2])
    assert browser.execute_script(f"return {LOSS}.data[1].y") == [2.9, 1.8, 2.4]  # no evaluation is smoothed
    browser.find_element("id", "log-scale").send_keys(Keys.SPACE)
    wait_for(lambda: layouts(browser, "yaxis.type") == ["log"] * 3 + ["linear"] + ["log"] * 3)  # waits are stacked
    browser.find_element("id", "axis").send_keys("tokens")
    wait_for(lambda: browser.execute_script(f"return {LOSS}.data[0].x") == [100, 200, 300])
    assert browser.execute_script(f"return {LOSS}.data[1].x") == [0, 200, 300]
    browser.find_element("id", "part-from").send_keys("150\t")
    wait_for(lambda: {found[0] for found in layouts(browser, "xaxis.range")} == {150})
    browser.find_element("id", "whole").send_keys(Keys.ENTER)
    wait_for(lambda: not browser.find_element("id", "whole").is_enabled())
    plot = browser.find_element("css selector", ".chart .nsewdrag")
    drag = ActionChains(browser).move_to_element_with_offset(plot, -130, 0).click_and_hold()
    drag.move_by_offset(260, 0).release().perform()
    wait_for(lambda: browser.find_element("id", "whole").is_enabled())
    parts = {tuple(found) for found in layouts(browser, "xaxis.range")}
    assert len(parts) == 1  # all charts show what was chosen on one
    browser.find_element("css selector", ".as-table summary").send_keys(Keys.ENTER)
    wait_for(lambda: "2.8\t1.8 best" in text_of(browser, ".as-table[open] table"))
    assert "2.7" not in text_of(browser, ".as-table[open] table")  # step 3 is not in this part
    ActionChains(browser).double_click(plot).perform()
    wait_for(lambda: not browser.find_element("id", "whole").is_enabled())
    wait_for(lambda: "2.7\t2.4" in text_of(browser, ".as-table[open] table"))
    assert complaints(browser) == []


def test_many_ranks_are_a_band_in_the_history_and_as_it_goes_on(live: Live, browser: Any) -> None:
    def record(step: int) -> dict[str, Any]:
        uses = [None, *(rank / 10 for rank in range(1, 10))]
        return {**step_record(step), "memory_bytes": [2**30 * (rank + 1) for rank in range(10)], "utilisation": uses}

    live.registry.create_run("wide", "wide", "{}")
    live.registry.transition("wide", RunState.TRAINING)
    live.registry.add_metrics("wide", [record(1)])
    browser.get(f"{live.url}/#/runs/wide")
    wait_for(lambda: points(browser, MEMORY) == 1)
    live.registry.add_metrics("wide", [record(2)])
    wait_for(lambda: points(browser, MEMORY) == 2)
    found = browser.execute_script(
        "return [...document.querySelectorAll('.chart')].slice(5)"
        ".map((chart) => chart.data.map((line) => [line.name, line.y]))"
    )
    names = ["lowest rank", "highest rank", "median of ranks"]
    wanted = [[1, 10, 5.5], [0.1, 0.9, 0.5]]
    assert found == [[[name, [value] * 2] for name, value in zip(names, values, strict=True)] for values in wanted]
