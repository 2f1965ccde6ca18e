"""axe-core, which looks at a page for what keeps people from using it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

VERSION = "4.14.1"
REPOSITORY = Path(__file__).parents[3]
RUN = """
const done = arguments[arguments.length - 1];
const told = (rule) => rule.nodes.map((node) => `${rule.id}: ${node.target.join(" ")}: ${node.failureSummary}`);
axe.run(document, { resultTypes: ["violations"] }).then(
  (found) => done(found.violations.flatMap(told)), (error) => done([String(error)]));
"""


def axe_script() -> str:
    """The script, kept among the tests' files; skips the test where it cannot be had."""
    cache = Path(os.environ.get("GEMFLEET_TEST_CACHE") or REPOSITORY / ".cache" / "tests").resolve()
    kept = cache / f"axe-core-{VERSION}.js"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _fetch(kept)
    return kept.read_text(encoding="utf-8")


def _fetch(kept: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs axe-core, and there is no npm to fetch it")
    with TemporaryDirectory() as folder:
        command = [npm, "pack", f"axe-core@{VERSION}", "--silent"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        if done.returncode:
            pytest.skip(f"needs axe-core, and `npm pack axe-core@{VERSION}` failed: {done.stderr.strip()[-200:]}")
        with tarfile.open(Path(folder) / done.stdout.split()[-1]) as archive:
            script = archive.extractfile("package/axe.min.js")
            assert script is not None
            kept.write_bytes(script.read())


def violations(browser: Any, script: str) -> list[str]:
    """What axe-core finds wrong in the page that is open: rule, element and remedy of each."""
    browser.execute_script(script)
    return list(browser.execute_async_script(RUN))
