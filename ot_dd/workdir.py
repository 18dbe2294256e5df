"""The work directory: what was made, under names that say from which recipe.

Everything that takes time is stored under `<kind>-<fingerprint>`, where the
fingerprint covers the config it depends on and the fingerprints of its inputs. What is
there is used, what is missing is made, and a changed field makes only what depends on
it. All writes are atomic, so a run that is killed goes on where it was.
"""

import collections
import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from ot_dd.checkpoint import Checkpoints, read_json, write_atomic, write_json
from ot_dd.data.stored import Stored, read_records, write_records
from ot_dd.metrics import Metrics
from ot_dd.parallel import (
    agree,
    barrier,
    from_leader,
    is_leader,
    is_there,
    told_to_end,
)


class WorkDir:
    """One run's directory.

    Attributes:
      path: the directory.
      metrics: progress and `metrics.jsonl`.
    """

    def __init__(self, path: Path, *, tensorboard: bool = False):
        """Creates the directory if needed, locks it and opens its metrics.

        Args:
          path: the directory.
          tensorboard: whether metrics also go to its folder `tensorboard`.

        Raises:
          BlockingIOError: when another process is at work in it.
        """
        self.path = Path(path).absolute()
        self.path.mkdir(parents=True, exist_ok=True)
        problem = _lock(self.path / ".lock") if is_leader() else None
        if agree(problem is not None):
            raise problem or BlockingIOError(f"{self.path} is in use")
        self.metrics = Metrics(
            self.path / "metrics.jsonl",
            tensorboard=str(self.path / "tensorboard") if tensorboard else "",
        )
        self._turns: dict[str, threading.Lock] = collections.defaultdict(threading.Lock)
        self._adding = threading.Lock()  # Threads may time one name.
        self._used = threading.local()
        self._asked: set[str] = set()

    def turn(self, name: str) -> threading.Lock:
        """Returns the lock of `name`: threads that need the same thing make it once."""
        self._asked.add(name)
        getattr(self._used, "names", []).append(name)
        return self._turns[name]

    def checkpoints(self, name: str) -> Checkpoints:
        """Opens the Orbax checkpoints called `name`."""
        self._asked.add(name)
        return Checkpoints(self.path / "checkpoints" / name)

    def arrays(
        self, name: str, make: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Returns the arrays stored as `name`, making and storing them if missing.

        Those of types that NumPy's files do not know, such as bfloat16, become float32.
        """

        def timed():
            with self.timed(name):
                return make()

        with self.turn(name):
            made = self._kept(self.path / "cache" / f"{name}.npz", name, timed)
            if is_leader():
                shutil.rmtree(self._pieces(name), ignore_errors=True)
            return made

    def piece(
        self, name: str, own: str, make: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Returns the piece called `own` of what `arrays` is making as `name`.

        It is kept until the whole is stored, so that a run that is ended goes on from it.
        """
        path = self._pieces(name) / f"{own}.npz"
        return self._kept(path, f"{name}, {own}", make)

    def _pieces(self, name):
        return self.path / "cache" / f"{name}.pieces"

    def _kept(self, path, label, make):
        if is_there(path):
            return _load_arrays(path)
        told_to_end()  # asked by all processes; `check` acts on it
        self.metrics.check(label)
        made = {key: _storable(value) for key, value in make().items()}
        write_atomic(path, lambda file: np.savez(file, **made))
        barrier(label)
        return made if is_leader() else _load_arrays(path)

    def unfinished(self, name: str) -> "Unfinished":
        """Returns the place of a part of what `json` is making as `name`."""
        return Unfinished(self.path / "cache" / f"{name}.part.npz")

    def records(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype,
        part: int,
        make: Callable[[range], np.ndarray],
    ) -> Stored:
        """Returns rows that are kept in parts, making those that are missing.

        Every process makes its share of the parts, all of which every process reads.

        Args:
          name: of the folder of parts.
          shape: of all rows together.
          dtype: of their elements.
          part: rows in a part.
          make: returns a range of rows, `[len(range), ...]`.
        """
        self._asked.add(name)
        folder = self.path / "cache" / name
        starts = range(0, shape[0], part)
        count = len(starts)
        paths = [folder / f"{i:05d}-of-{count:05d}.array_record" for i in range(count)]
        told_to_end()
        self.metrics.check(name)  # all together: none waits for one that has ended
        there = [is_leader() and path.exists() for path in paths]
        missing = np.flatnonzero(~from_leader(np.array(there, bool))).tolist()
        # What the others make meanwhile is none of this process's business.
        own = [i for i in missing if i % jax.process_count() == jax.process_index()]
        for done, i in enumerate(own):
            rows = range(starts[i], min(starts[i] + part, shape[0]))
            with self.timed(f"{name}-{i:05d}", everyone=True):
                write_records(paths[i], np.asarray(make(rows), dtype))
            if count > 1:
                self.metrics.progress(name.split("-")[0], done + 1, len(own))
        barrier(name)
        return read_records(paths, shape, dtype)

    def json(self, name: str, make: Callable[[], dict], *, alone: bool = False) -> dict:
        """Returns the JSON stored as `name`, making and storing it if missing.

        Args:
          name: under which it is stored.
          make: makes it.
          alone: whether this process makes it and no other does.
        """
        path = self.path / "cache" / f"{name}.json"
        with self.turn(name):
            if path.exists() if alone else is_there(path):
                return read_json(path)
            if not alone:
                told_to_end()
            self.metrics.check(name)
            with self.timed(name, everyone=alone):
                stored = make()
            write_json(path, stored, everyone=alone)
            if not alone:
                barrier(name)
                if not is_leader():
                    return read_json(path)
            return json.loads(json.dumps(stored))  # As the next run reads it.

    @contextlib.contextmanager
    def uses(self):
        """Yields a list that fills with the names of what this thread makes or reads."""
        self._used.names = names = []
        try:
            yield names
        finally:
            del self._used.names

    @contextlib.contextmanager
    def timed(self, name: str, *, everyone: bool = False):
        """Adds the seconds spent inside to the time of `name`, kept across runs."""
        start = time.monotonic()
        try:
            yield
        finally:
            if everyone or is_leader():
                path = self.path / "cache" / "seconds" / f"{name}.json"
                took = time.monotonic() - start
                with self._adding:
                    seconds = round((read_json(path) or 0.0) + took, 3)
                    write_json(path, seconds, everyone=everyone)

    def count_flops(
        self, name: str, operations: float, *, everyone: bool = False
    ) -> None:
        """Keeps the floating-point operations that making `name` takes."""
        path = self.path / "cache" / "flops" / f"{name}.json"
        write_json(path, operations, everyone=everyone)

    def flops(self) -> dict[str, float]:
        """Returns operations by name, of what `seconds` is of."""
        return self._numbers("flops")

    def seconds(self) -> dict[str, float]:
        """Returns seconds by name: of what this process made or read, no other's.

        Whichever runs made it; parts of `records` have names of their own.
        """
        return self._numbers("seconds")

    def _numbers(self, folder: str) -> dict[str, float]:
        paths = sorted((self.path / "cache" / folder).glob("*.json"))
        return {
            path.stem: read_json(path)
            for path in paths
            if {path.stem, path.stem.rpartition("-")[0]} & self._asked
        }


class Unfinished:
    """A tree of arrays that one process, or one thread of it, writes and goes on from.

    Processes share no such tree: Orbax's checkpoints are written by all of them together.
    """

    def __init__(self, path: Path):
        """Names the file; it is not there until `save`."""
        self._path = path

    def save(self, tree) -> None:
        """Puts a tree in the place of the last one."""
        leaves = {name: _storable(leaf) for name, leaf in _named(tree)}
        write_atomic(self._path, lambda file: np.savez(file, **leaves), everyone=True)

    def restore(self, example):
        """Returns what was saved, of the example's structure and types, or None.

        None as well where names or shapes differ: another version wrote it.
        """
        if not self._path.exists():
            return None
        saved, wanted = _load_arrays(self._path), _named(example)
        shapes = [(name, x.shape) for name, x in saved.items()]
        if shapes != [(name, like.shape) for name, like in wanted]:
            return None
        leaves = [saved[name].astype(like.dtype, copy=False) for name, like in wanted]
        return jax.tree.unflatten(jax.tree.structure(example), leaves)

    def delete(self) -> None:
        """Deletes the tree, if there is one."""
        self._path.unlink(missing_ok=True)


def _named(tree) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def _storable(array) -> np.ndarray:
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype.isbuiltin == 2 else array


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it, and the same command makes it again"
        ) from error


_LOCKS: dict[Path, IO] = {}  # Held until the process ends, however it does.


def _lock(path: Path) -> BlockingIOError | None:
    """Takes a directory for this process, as often as it asks; returns what hinders."""
    if path in _LOCKS:
        return None
    file = open(path, "a+")  # noqa: SIM115 - the lock lives as long as the file is open
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return None  # A file system without locks.
        file.seek(0)
        owner = file.read().strip() or "another one"
        file.close()
        return BlockingIOError(
            f"{path.parent} is in use by process {owner}: wait for it, stop it, or give "
            "another --workdir"
        )
    file.truncate(0)
    file.write(f"{os.getpid()} on {socket.gethostname()}")
    file.flush()
    _LOCKS[path] = file
    return None
