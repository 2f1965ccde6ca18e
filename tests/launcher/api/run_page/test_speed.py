"""A long run of many ranks opens at once."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from gemfleet.cluster.registry.run_registry import RunState
from support.servers.api_live import Live, step_record
from support.servers.browser import complaints

STEPS, RANKS = 5000, 64
MOST_SECONDS = 1.5
# Seconds from the request of the page until the last of its charts shows the newest step.
OPENED = """
const done = arguments[arguments.length - 1];
const [newest] = arguments;
const look = () => {
  const charts = [...document.querySelectorAll('.chart')];
  const whole = charts.length > 0 && charts.every((chart) => chart.data?.[0]?.x?.at(-1) === newest);
  if (whole) done(performance.now() / 1000);
  else setTimeout(look, 10);
};
look();
"""


@pytest.mark.timing
def test_five_thousand_steps_of_64_ranks_open_in_time(live: Live, browser: Any) -> None:
    chance = random.Random(0)
    live.registry.create_run("long", "long", "{}", os.getpid())
    live.registry.transition("long", RunState.TRAINING)
    for rank in range(RANKS):
        live.registry.heartbeat("long", rank, "node-1", "127.0.0.1", rank)
    for first in range(1, STEPS + 1, 500):
        live.registry.add_metrics("long", [wide_record(step, chance) for step in range(first, first + 500)])
    browser.get(f"{live.url}/")
    seconds = []
    for _ in range(3):
        browser.get("about:blank")
        browser.get(f"{live.url}/#/runs/long")
        seconds.append(browser.execute_async_script(OPENED, STEPS))
    print(f"{STEPS} steps x {RANKS} ranks: {', '.join(f'{one:.2f}' for one in seconds)} s until the charts are whole")
    assert min(seconds) < MOST_SECONDS
    assert complaints(browser) == []


def wide_record(step: int, chance: random.Random) -> dict[str, Any]:
    memory = [8 * 10**9 + chance.randrange(10**9) for _ in range(RANKS)]
    uses = [chance.random() for _ in range(RANKS)]
    many = {"memory_bytes": memory, "memory_total_bytes": [10**10] * RANKS, "utilisation": uses}
    return {**step_record(step, STEPS), "checkpoint_wait_seconds": 0.0, "world_size": RANKS, **many}
