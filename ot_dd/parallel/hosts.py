"""Several processes: how they find one another, agree and exchange arrays."""

import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from ot_dd.config import ConfigError

# What a cluster sets on every one of its machines; JAX reads the rest from there.
# Beside TPU_WORKER_HOSTNAMES, which names one host or several.
_CLUSTERS = ("MEGASCALE_COORDINATOR_ADDRESS", "JAX_COORDINATOR_ADDRESS")


def start_processes(
    coordinator: str = "", num_processes: int = 0, process_id: int = -1
) -> None:
    """Joins this process to the others; must come before any use of a device.

    Where a cluster says that there are several machines (Cloud TPU, GKE, Slurm) it
    happens by itself; on a plain machine nothing does.

    Args:
      coordinator: `host:port` of the first process, which needs the other two; or
        "auto": JAX asks the machine, as on Cloud TPU, whose slices do not always say in
        their environment that they are several machines.
      num_processes: how many there are.
      process_id: which one this is, from 0.

    Raises:
      ConfigError: when only some of the three are given, or the id is out of range, or
        there is nothing that "auto" could find.
    """
    if coordinator == "auto":
        try:
            return jax.distributed.initialize()
        except ValueError as error:
            raise ConfigError(
                f"--coordinator=auto found no cluster here ({error}): give "
                "--coordinator=host:port, --num_processes and --process_id"
            ) from error
    given = (bool(coordinator), num_processes > 0, process_id >= 0)
    if any(given) and not all(given):
        raise ConfigError(
            "--coordinator=host:port, --num_processes and --process_id go together: "
            f"found {coordinator!r}, {num_processes} and {process_id}"
        )
    if all(given):
        if process_id >= num_processes:
            raise ConfigError(
                f"--process_id is {process_id}, but --num_processes is {num_processes}: "
                f"ids are 0 .. {num_processes - 1}"
            )
        if num_processes > 1:
            jax.distributed.initialize(coordinator, num_processes, process_id)
    elif _is_cluster():
        jax.distributed.initialize()


def _is_cluster() -> bool:
    """Whether the environment says that this is one machine of several."""
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if any(os.environ.get(name) for name in _CLUSTERS) or "," in hosts:
        return True
    return int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in os.environ


def is_leader() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits for every process; nothing where there is one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def from_leader(value: np.ndarray) -> np.ndarray:
    """Returns the leader's array, of one shape and type in all processes."""
    if jax.process_count() == 1:
        return value
    return np.asarray(multihost_utils.broadcast_one_to_all(value))


def agree(value: bool) -> bool:
    """Returns the leader's value, so that all processes take the same way."""
    return bool(from_leader(np.asarray(value)))


def is_there(path: Path) -> bool:
    """Whether the leader sees a file.

    The others do not look: a file server's client remembers for a while what was not
    there, and would not find what is written next.
    """
    return agree(is_leader() and path.exists())


def check_alike(digest: str) -> None:
    """Ends processes that were given another config, or read other data.

    Args:
      digest: hexadecimal digits that name both.

    Raises:
      ConfigError: in those whose digest is not the leader's.
    """
    own = np.frombuffer(bytes.fromhex(digest), np.uint8)
    if (from_leader(own) != own).any():
        raise ConfigError(
            f"process {jax.process_index()} has another config, or other data, than the "
            "first process: give all of them the same flags and files"
        )


# Set when this process is to end (SIGTERM): jobs save what they have and stop.
TOLD_TO_END = threading.Event()
_asked = itertools.count(1)


def told_to_end() -> bool:
    """Whether this process, or one of several, was told to end; all get one answer.

    Every process must ask as often as the others: a notice takes effect at a question
    that none of them has come to yet, and stays.
    """
    # JAX takes the signal where it has been initialised, for one process as well.
    if jax.distributed.is_initialized() and not TOLD_TO_END.is_set():
        if multihost_utils.reached_preemption_sync_point(next(_asked)):
            TOLD_TO_END.set()
    return TOLD_TO_END.is_set()


def to_host(tree):
    """Returns NumPy arrays, whole on every process, of arrays that lie anywhere."""

    def one(x):
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            if x.is_fully_replicated:
                x = x.addressable_data(0)
            else:
                x = multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(one, tree)


def gather_rows(count: int, make: Callable[[range], np.ndarray]) -> np.ndarray:
    """Makes rows `0 .. count - 1`, every process its share, and returns all of them.

    Args:
      count: rows in all.
      make: `range -> [len(range), ...]`, of any range of rows.
    """
    processes = jax.process_count()
    if processes == 1:
        return make(range(count))
    share = -(-count // processes)
    first = min(jax.process_index() * share, count - 1)
    rows = range(first, min(first + share, count))
    own = np.asarray(make(rows))
    padding = [(0, share - len(own))] + [(0, 0)] * (own.ndim - 1)
    own = np.pad(own, padding)
    every = np.empty((processes, *own.shape), own.dtype)
    # What is gathered lies on every device for a moment: it is never all of it.
    size = max(1, _GATHERED // (processes * max(1, own[0].nbytes)))
    for start in range(0, share, size):
        part = slice(start, start + size)
        every[:, part] = multihost_utils.process_allgather(own[part])
    return every.reshape(-1, *own.shape[1:])[:count]


_GATHERED = 2**26  # Bytes that processes exchange at once.
