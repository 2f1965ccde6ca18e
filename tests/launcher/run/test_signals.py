"""One signal is heard once, whoever swallows it; and output that nobody reads ends nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from gemfleet.launcher.run import signals
from gemfleet.launcher.run.signals import ENDING, EndingSignals

pytestmark = pytest.mark.slow  # they send signals to their own process, which has to be the only one of the tests


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> Iterator[EndingSignals]:
    """Raises once: a machine that stalls before the test says `heard` would get the second one into pytest itself."""
    monkeypatch.setattr(signals, "AGAIN_SECONDS", 3600.0)
    ours, before = EndingSignals(), signal.signal(signal.SIGINT, signal.default_int_handler)
    with ours.installed():
        yield ours
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", ENDING)
def test_each_signal_interrupts_and_handlers_are_put_back(ours: EndingSignals, number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    assert ours.asked is not None
    before = [signal.getsignal(each) for each in ENDING]
    other = EndingSignals()
    with other.installed():
        assert [signal.getsignal(each) for each in ENDING] != before
    assert [signal.getsignal(each) for each in ENDING] == before


def test_one_that_a_library_swallowed_is_raised_again(ours: EndingSignals) -> None:
    with suppress(BaseException):
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        ours.heed()
    ours.heard()
    ours.heed()


def test_one_that_python_drops_is_raised_until_it_is_heard() -> None:
    code = """
class Odd:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)

with SIGNALS.installed():
    Odd()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        SIGNALS.heard()
        print("heard")
"""
    done = _in_a_process_of_its_own(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "heard\n", "")


def test_what_an_interrupt_caused_is_not_interrupted_again() -> None:
    code = """
def interrupted():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        try:
            {}["at all"]
        except KeyError:
            pass
        time.sleep(3 * AGAIN_SECONDS)
        print("tidied up")

with SIGNALS.installed():
    try:
        interrupted()
    except KeyboardInterrupt:
        SIGNALS.heard()
        print("heard")
"""
    done = _in_a_process_of_its_own(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "tidied up\nheard\n", "")


def test_one_that_comes_while_they_are_held_waits(ours: EndingSignals) -> None:
    with ours.held():
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        ours.heed()


def test_two_at_once_are_one_and_a_later_one_is_another(ours: EndingSignals, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
    ours.heard()
    os.kill(os.getpid(), signal.SIGHUP)  # as a service manager sends both
    ours.heed()
    assert ours.asked == "SIGTERM"
    monkeypatch.setattr(signals, "ONE_PRESS_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


def test_what_is_ignored_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with EndingSignals().installed():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_tidying_up_goes_on_until_somebody_insists() -> None:
    code = """
signals.ONE_PRESS_SECONDS = 0.0
with SIGNALS.installed():
    SIGNALS.ending()
    os.kill(os.getpid(), signal.SIGTERM)
    print("goes on", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("never")
"""
    done = _in_a_process_of_its_own(code)
    assert (done.returncode, done.stdout) == (130, "goes on\n")


def _in_a_process_of_its_own(code: str) -> subprocess.CompletedProcess[str]:
    begin = (
        "import os, signal, time\n"
        "from gemfleet.launcher.run import signals\n"
        "from gemfleet.launcher.run.signals import AGAIN_SECONDS, SIGNALS\n"
    )
    return subprocess.run([sys.executable, "-c", begin + code], capture_output=True, text=True, check=False)


UNREAD = """
import sys
from gemfleet.launcher.unread import output_may_go_unread
with output_may_go_unread():
    for n in range(2000):
        print("a line of some length", n)
        print("another", n, file=sys.stderr)
    open(sys.argv[1], "w").write("done")
"""


def test_who_reads_the_output_may_go(tmp_path: Path) -> None:
    command = f"{sys.executable} -c '{UNREAD}' {tmp_path / 'end'} 2>&1 | head -n 2; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2
    assert (tmp_path / "end").read_text() == "done"


def test_a_full_disk_below_the_output_costs_lines_only(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", UNREAD, str(tmp_path / "end")], stdout=full, stderr=full, check=False
        )
    assert done.returncode == 0
    assert (tmp_path / "end").read_text() == "done"
