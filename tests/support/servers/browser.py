"""A real headless Chromium for tests of pages."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

WAIT_SECONDS = 20.0


def open_browser(downloads: Path) -> Iterator[Any]:
    """A browser window of 1280 by 1000; skips the test where Chromium, its driver or selenium is missing."""
    selenium = pytest.importorskip("selenium.webdriver", reason="needs selenium, of the dev extra")
    from selenium.webdriver.chrome.service import Service

    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = selenium.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(argument)
    options.add_argument("--disable-background-networking")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = selenium.Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


def wait_for(look: Callable[[], Any], seconds: float = WAIT_SECONDS) -> Any:
    """The first true value of `look`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := look():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds:g} s")


def text_of(browser: Any, selector: str) -> str:
    """What a person reads there."""
    return str(browser.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector))


def give_token(browser: Any, token: str) -> Any:
    """Write it into the field that the page shows for it. Returns the field."""
    field = wait_for(lambda: browser.find_element("id", "token"))
    wait_for(field.is_displayed)
    field.send_keys(token + "\n")
    return field


def points(browser: Any, chart: int = 0, line: int = 0) -> int:
    """How many points the chart shows."""
    script = "return document.querySelectorAll('.chart')[arguments[0]]?.data?.[arguments[1]]?.x?.length ?? 0"
    return int(browser.execute_script(script, chart, line))


def complaints(browser: Any) -> list[str]:
    """What the browser's console says against the page: scripts that failed, and what its policy kept out."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def emulate(browser: Any, scheme: str = "light", width: int = 1280, height: int = 1000) -> None:
    """Colours and size of the screen."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def screenshot(browser: Any, name: str) -> None:
    """Kept in $GEMFLEET_SCREENSHOTS where a person wants to look at them."""
    if folder := os.environ.get("GEMFLEET_SCREENSHOTS"):
        time.sleep(1.0)
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))
