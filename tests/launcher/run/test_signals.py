"""One signal is heard once, whoever swallows it; and output that nobody reads ends nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from gemfleet.launcher.run import signals
from gemfleet.launcher.run.signals import ENDING, EndingSignals

pytestmark = pytest.mark.slow  # they send signals to their own process, which has to be the only one of the tests


@pytest.fixture
def ours() -> Iterator[EndingSignals]:
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


def test_one_that_python_drops_is_raised_until_it_is_heard(
    ours: EndingSignals, capfd: pytest.CaptureFixture[str]
) -> None:
    class Odd:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    Odd()
    with pytest.raises(KeyboardInterrupt):
        time.sleep(5)
    ours.heard()
    assert capfd.readouterr().err == ""


def test_what_an_interrupt_caused_is_not_interrupted_again(ours: EndingSignals) -> None:
    tidy: list[str] = []
    nothing: dict[str, str] = {}

    def interrupted() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            with suppress(KeyError):
                tidy.append(nothing["at all"])
            time.sleep(1.5)
            tidy.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert tidy == ["all of it"]


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
    code = (
        "import os, signal\n"
        "from gemfleet.launcher.run import signals\n"
        "signals.ONE_PRESS_SECONDS = 0.0\n"
        "with signals.SIGNALS.installed():\n"
        "    signals.SIGNALS.ending()\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('goes on', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('never')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "goes on\n")


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
