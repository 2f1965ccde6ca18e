"""Which process drives a run. The kernel's own counts and a lock tell; a clock does not, because people set it."""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from .errors import RunConflict

LOCK_FILE = "driver.lock"
WAIT_SECONDS = 10.0
POLL_SECONDS = 0.2
BOOT_FILE = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class ProcessIdentity:
    """One process, told apart from every other process that has had or will have its id.

    boot:  the kernel's random name of this boot; empty where the system has none
    ticks: from that boot to the start of the process, in the kernel's clock ticks
    """

    pid: int
    boot: str
    ticks: int

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """psutil.NoSuchProcess when no process has this id."""
        ticks = start_ticks(pid)
        if ticks is None:
            raise psutil.NoSuchProcess(pid)
        return cls(pid, boot_name(), ticks)

    def lives(self) -> bool:
        """Whether this very process still runs."""
        return self.boot == boot_name() and start_ticks(self.pid) == self.ticks


def boot_name() -> str:
    """See `ProcessIdentity.boot`."""
    try:
        return BOOT_FILE.read_text().strip()
    except OSError:
        return ""


def start_ticks(pid: int) -> int | None:
    """See `ProcessIdentity.ticks`. None when the process is dead; 0 when it lives and /proc is missing."""
    if not Path("/proc/self/stat").exists():
        return 0 if psutil.pid_exists(pid) else None
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold brackets, too
    return None if fields[0] in "ZXx" else int(fields[19])


def started_then(pid: int, started: float | None) -> bool:
    """Whether a living process with this id may have started then, in seconds since the epoch; None: at any time.

    A process whose command line names gemfleet always may: a clock that is set moves all starts.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        steady = started is None or abs(process.create_time() - started) < 2.0
        return steady or any("gemfleet" in part for part in process.cmdline())
    except psutil.NoSuchProcess:
        return False


class DriverLock:
    """A lock in a run's folder, held by the process that drives the run. The kernel frees it when that process ends."""

    def __init__(self, folder: Path, wait_seconds: float = WAIT_SECONDS) -> None:
        """Waits for a driver that is about to end. RunConflict when it still goes on after `wait_seconds`."""
        self.path = folder / LOCK_FILE
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._take(folder.name, time.monotonic() + wait_seconds)
        except BaseException:
            os.close(self._descriptor)
            raise
        with suppress(OSError):  # a full disk; the lock itself needs no room
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(asdict(ProcessIdentity.of(os.getpid()))).encode(), 0)

    def close(self) -> None:
        """Frees the lock. May be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _take(self, run_id: str, deadline: float) -> None:
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    holder = driver_of(self.path.parent)
                    who = f"process {holder.pid}" if holder else "another process"
                    raise RunConflict(
                        f"run {run_id} is carried out by {who} already; stop it first (`gemfleet stop {run_id} --wait`)"
                    ) from None
                time.sleep(POLL_SECONDS)
            except OSError:
                return  # the filesystem has no locks; the registry's rows alone keep drivers apart


def is_held(folder: Path) -> bool:
    """Whether a living driver holds the lock in this run's folder."""
    return is_locked(folder / LOCK_FILE)


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock on this file. No, where the file is absent or the disk has no locks."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def driver_of(folder: Path) -> ProcessIdentity | None:
    """The process that held the lock last. None when the file does not say."""
    try:
        return ProcessIdentity(**json.loads((folder / LOCK_FILE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
