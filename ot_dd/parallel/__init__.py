"""Devices: the mesh that large batches are split over, and jobs side by side."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import jax

from ot_dd import platform


def data_mesh() -> jax.sharding.Mesh | None:
    """Returns a mesh over all devices with one axis, "data", or None for one device.

    The axis is of type Auto: ott-jax and several optax losses fail on Explicit ones.
    """
    count = jax.device_count()
    if count == 1:
        return None
    return jax.make_mesh((count,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def place(tree, mesh: jax.sharding.Mesh | None, *axes: str | None):
    """Puts a tree of arrays on a mesh, where a restored one is on one device.

    Args:
      tree: arrays, or None.
      mesh: the mesh; None leaves the tree as it is.
      *axes: the mesh axis that splits each array axis in turn, or None; nothing at all
        gives every device a copy.
    """
    if mesh is None:
        return tree
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    return jax.device_put(tree, sharding)


@contextlib.contextmanager
def side_by_side(
    stop: threading.Event, *, main_works: bool = False
) -> Iterator[Callable[..., Future]]:
    """Yields `submit(fn, *args) -> Future` for independent jobs.

    One small network keeps little more than one core busy, so on a CPU every core gets
    a thread with a job of its own. An accelerator runs one program at a time: there,
    jobs run when they are submitted, in turn.

    Args:
      stop: set when the body fails or is interrupted, for running jobs to end early;
        those that have not begun are dropped.
      main_works: whether the body computes too, and so needs a core.
    """
    threads = _cores() - main_works if platform.backend() == "cpu" else 0
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
