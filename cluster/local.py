"""Connects to Ray: attaches to a running cluster, or starts one on this machine for as long as a run needs it."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from .errors import ClusterError
from .network import LOCAL_ADDRESSES, check_address

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Connection:
    """This process's connection to a cluster. `owned`: the cluster was started here, and `close` ends it."""

    address: str
    owned: bool

    def close(self) -> None:
        """Leaves the cluster; a cluster that was started here ends. May be called twice."""
        leave()


def leave() -> None:
    """This process leaves its cluster, if it has joined one."""
    import ray

    with _signals_held():  # Ray's core removes any handler of SIGTERM
        ray.shutdown()


@contextmanager
def _signals_left_alone() -> Iterator[None]:
    """While Ray starts, this process keeps its signal handlers, and Ray's processes get a session of their own.

    Ray replaces the handler of SIGTERM, and its core sets another one below Python's that ends the process with a stack
    trace. Signals wait until our handlers are back. Without a session of their own, Ray's processes would get every
    signal to the driver's group, such as Ctrl-C, and end before the ranks have saved a checkpoint.
    """
    from ray._private import services, utils, worker

    popen, set_handler, join = services.ConsolePopen, utils.set_sigterm_handler, worker.connect

    def joined(*arguments: Any, **options: Any) -> Any:
        with _signals_held():
            return join(*arguments, **options)

    services.ConsolePopen = partial(popen, start_new_session=True)
    utils.set_sigterm_handler = lambda handler: None
    worker.connect = joined
    try:
        yield
    finally:
        services.ConsolePopen, utils.set_sigterm_handler, worker.connect = popen, set_handler, join


@contextmanager
def _signals_held() -> Iterator[None]:
    """Holds signals back during the block. Afterwards they reach the handlers that were set before it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in ENDING}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def resolve_address(address: str | None) -> str | None:
    """The address to attach to: `address`, else RAY_ADDRESS. None stands for a new cluster on this machine."""
    chosen = address or os.environ.get("RAY_ADDRESS") or None
    return None if chosen == "local" else chosen


def connect(
    address: str | None,
    workers: int = 1,
    cpus_per_worker: float = 1.0,
    *,
    dashboard: bool = False,
    temp_dir: str | None = None,
    object_store_bytes: int | None = None,
    log_to_driver: bool = False,
    runtime_env: dict[str, Any] | None = None,
    timeout_s: float = 5.0,
) -> Connection:
    """Attaches to the cluster at `address` or RAY_ADDRESS; otherwise starts one here that has CPUs for all workers.

    The CPUs are logical: there may be more of them than cores. ClusterError when nobody answers at the address within
    `timeout_s`, or Ray cannot be started or joined.
    """
    import ray

    from .head import NAMESPACE

    chosen = resolve_address(address)
    common: dict[str, Any] = {
        "namespace": NAMESPACE,
        "log_to_driver": log_to_driver,
        "logging_level": logging.WARNING,
        "runtime_env": runtime_env,
    }
    if chosen is None:
        common |= {
            "address": "local",
            "num_cpus": max(os.cpu_count() or 1, math.ceil(workers * cpus_per_worker)),
            "include_dashboard": dashboard,
            "_temp_dir": temp_dir,
            "object_store_memory": object_store_bytes,
        }
    else:
        if chosen not in LOCAL_ADDRESSES:
            check_address(chosen, timeout_s)
        common["address"] = chosen
    try:
        with _signals_left_alone():
            context = ray.init(**common)
    except KeyboardInterrupt:
        ray.shutdown()  # ends what was started so far
        raise
    except Exception as error:  # Ray raises plain Exception when a node is too slow to start
        where = f"at {chosen!r}" if chosen else "on this machine"
        raise ClusterError(f"no Ray cluster could be {'joined' if chosen else 'started'} {where}: {error}") from error
    return Connection(str(context.address_info["address"]), owned=chosen is None)
