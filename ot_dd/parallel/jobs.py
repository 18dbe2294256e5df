"""Independent jobs on the cores of one machine."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import jax

from ot_dd import platform


@contextlib.contextmanager
def side_by_side(
    stop: threading.Event, *, main_works: bool = False
) -> Iterator[Callable[..., Future]]:
    """Yields `submit(fn, *args) -> Future` for independent jobs.

    One small network keeps little more than one core busy, so on a CPU every core gets
    a thread with a job of its own. An accelerator runs one program at a time, and
    devices that work together must be given theirs in one order: there, jobs run when
    they are submitted, in turn.

    Args:
      stop: set when the body fails or is interrupted, for running jobs to end early;
        those that have not begun are dropped.
      main_works: whether the body computes too, and so needs a core.
    """
    alone = platform.backend() == "cpu" and jax.device_count() == 1
    threads = _cores() - main_works if alone else 0
    if threads < 1:
        yield _at_once
        return
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield pool.submit
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _at_once(fn, *args) -> Future:
    future: Future = Future()
    future.set_result(fn(*args))
    return future
