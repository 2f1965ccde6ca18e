"""Nothing on the board keeps people from using it, by axe-core, in light, in the dark and on a phone."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from support.servers.api_live import Live, add_sweep, publish_files
from support.servers.axe import axe_script, violations
from support.servers.browser import emulate, points, screenshot, text_of, wait_for

PAGES: dict[str, Callable[[Any], bool]] = {
    "/": lambda browser: "alpha-1" in text_of(browser, "tbody"),
    "/#/runs/alpha-1": lambda browser: points(browser) == 8 and "Answer 1" in text_of(browser, "#content"),
    "/#/compare/alpha-1,alpha-2": lambda browser: points(browser, 0, 2) >= 3,
    "/#/cluster": lambda browser: "Not measured yet" in text_of(browser, "[aria-label=Links]"),
    "/#/sweeps/lr": lambda browser: points(browser, 0, 3) == 2,
}


@pytest.fixture(scope="module")
def axe() -> str:
    return axe_script()


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 400), ("dark", 400)])
def test_axe_finds_nothing(live: Live, browser: Any, axe: str, scheme: str, width: int) -> None:
    add_sweep(live.registry, live.home)
    publish_files(live.home, "alpha-1")
    emulate(browser, scheme, width)
    found = {}
    for path, ready in PAGES.items():
        browser.get("about:blank")
        browser.get(f"{live.url}{path}")
        wait_for(partial(ready, browser))
        for box in browser.find_elements("css selector", "details:not([open]) > summary"):
            browser.execute_script("arguments[0].click()", box)
        time.sleep(0.6)  # a redraw that is under way
        found[path] = violations(browser, axe)
        name = path.strip("/#").partition("/")[0] or "all-runs"
        screenshot(browser, f"{name}-{scheme}-{width}")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, path
    assert found == {path: [] for path in PAGES}
