"""The watchdog: fires once, within its limit, with the stacks of the threads that hang."""

from __future__ import annotations

import queue
import threading
import time

from gemfleet.launcher.rank.watchdog import Watchdog, stacks

Fired = tuple[str, float, str]


def test_a_hang_is_noticed_with_its_stack() -> None:
    fired: queue.Queue[Fired] = queue.Queue()
    release = threading.Event()

    def waits_for_a_peer_that_is_gone() -> None:
        release.wait(10)

    watchdog = Watchdog({"step": 0.2}, lambda *facts: fired.put(facts))
    watchdog.progress("step")
    thread = threading.Thread(target=waits_for_a_peer_that_is_gone)
    thread.start()
    phase, seconds, text = fired.get(timeout=2)
    release.set()
    thread.join()
    watchdog.close()
    assert phase == "step"
    assert 0.2 < seconds < 1.5
    assert "waits_for_a_peer_that_is_gone" in text


def test_progress_and_unwatched_phases_keep_it_quiet() -> None:
    fired: queue.Queue[Fired] = queue.Queue()
    watchdog = Watchdog({"step": 0.3}, lambda *facts: fired.put(facts))
    time.sleep(0.4)  # not begun
    for _ in range(6):
        watchdog.progress("step")
        time.sleep(0.1)
    watchdog.progress("finish")
    time.sleep(0.5)
    watchdog.close()
    assert fired.empty()


def test_without_limits_nothing_is_watched() -> None:
    watchdog = Watchdog({}, lambda *facts: None)
    watchdog.progress("step")
    watchdog.close()


def test_stacks_name_this_function() -> None:
    assert "test_stacks_name_this_function" in stacks()
