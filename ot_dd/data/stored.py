"""Rows that stay on disk: read when they are asked for, and in batches while training."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


class Stored:
    """An array whose rows are read when they are asked for.

    Indexed by its first axis alone: by a number, a slice, a mask or an array of rows.
    `np.asarray` reads everything.

    Attributes:
      shape: of the whole array.
      dtype: of its elements.
      marks: returns a number for every row, `[n]`, of what the row is read from; None
        where nothing is known of it.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        read: Callable[[np.ndarray], np.ndarray],
        marks: Callable[[], np.ndarray] | None = None,
    ):
        """Wraps `read`, which returns the rows of an index array `[k]`, in its order."""
        self.shape, self.dtype, self._read = tuple(shape), np.dtype(dtype), read
        self.marks = marks

    @property
    def nbytes(self) -> int:
        """Size of the whole array."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index) -> np.ndarray:
        rows = np.arange(len(self))[index]
        found = self._read(np.atleast_1d(rows).ravel())
        return found.reshape(*rows.shape, *self.shape[1:])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)


class Batch(NamedTuple):
    """One step's rows of every column of a `Stream`, on the devices."""

    columns: tuple[jax.Array, ...]


class Stream(NamedTuple):
    """Columns of equal length, read batch by batch while a network trains.

    Every epoch is shuffled anew by grain, which reads ahead in threads. The rows of a
    step depend on seed and step alone: a run that goes on from a step needs no state.
    Over several devices each process reads the rows of its own devices.

    Attributes:
      columns: arrays or `Stored`, `[n, ...]` each.
      size: rows in a batch.
      seed: of the order.
    """

    columns: tuple[Any, ...]
    size: int
    seed: int

    def example(self, length: int, mesh=None) -> Batch:
        """Returns the shapes of `length` batches, as `feed` yields them on the mesh."""
        sharding = None if mesh is None else self._sharding(mesh)
        return Batch(
            tuple(
                jax.ShapeDtypeStruct(
                    (length, self.size, *c.shape[1:]), c.dtype, sharding=sharding
                )
                for c in self.columns
            )
        )

    def chunk(self, most: int) -> int:
        """Returns how many steps' batches to hold on a device at once, at most `most`."""
        one = sum(c.nbytes // len(c) for c in self.columns) * self.size
        return int(np.clip(_HELD_BYTES // max(one, 1), 1, most))

    def feed(self, mesh, first: int, lengths: Iterator[int]) -> Iterator[Batch]:
        """Yields the batches of successive chunks of steps, placed on the mesh.

        Args:
          mesh: devices, or None for one.
          first: the first step.
          lengths: steps in each chunk.
        """
        rows = self._own_rows(mesh)
        steps = self._steps(rows, first)
        for length in lengths:
            parts = [next(steps) for _ in range(length)]
            yield Batch(
                tuple(
                    self._placed(np.stack(column), rows, mesh) for column in zip(*parts)
                )
            )

    def _steps(self, rows, first):
        import grain

        order = grain.MapDataset.range(len(self.columns[0])).seed(self.seed)
        order = order.shuffle().repeat()

        def read(step):
            chosen = np.array([order[step * self.size + row] for row in rows])
            return tuple(np.asarray(column[chosen]) for column in self.columns)

        threads = min(16, 2 * (os.cpu_count() or 1))
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        steps = grain.MapDataset.range(first, np.iinfo(np.int32).max).map(read)
        return iter(steps.to_iter_dataset(options))

    def _sharding(self, mesh):
        """Batches are divided among devices where these divide them."""
        split = self.size % mesh.size == 0
        return NamedSharding(mesh, P(None, mesh.axis_names[0]) if split else P())

    def _own_rows(self, mesh) -> np.ndarray:
        """Returns the rows of a batch that this process's devices hold."""
        rows = np.arange(self.size)
        if mesh is None:
            return rows
        own = self._sharding(mesh).addressable_devices_indices_map((1, self.size))
        return np.unique(np.concatenate([rows[index[1]] for index in own.values()]))

    def _placed(self, column, rows, mesh):
        """Puts the own rows `[length, own, ...]` of a column on the devices."""
        if mesh is None:
            return jax.device_put(column)
        shape = (len(column), self.size, *column.shape[2:])

        def part(index):
            wanted = np.arange(self.size)[index[1]]
            return column[:, np.searchsorted(rows, wanted)]

        return jax.make_array_from_callback(shape, self._sharding(mesh), part)


_HELD_BYTES = 2**28


def write_records(path: Path, rows: np.ndarray) -> None:
    """Writes rows `[n, ...]` as an ArrayRecord file, whole or not at all."""
    from array_record.python.array_record_module import ArrayRecordWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        writer = ArrayRecordWriter(str(temporary), "group_size:1")
        for row in rows:
            writer.write(np.ascontiguousarray(row).tobytes())
        writer.close()
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except RuntimeError as error:  # ArrayRecord's, such as of a full disk.
        raise OSError(f"{path}: {str(error).splitlines()[0]}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _damage_explained(paths):
    """Says of what ArrayRecord finds wrong with a file what to do about it."""
    try:
        yield
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"{paths[0].parent} is damaged ({str(error).splitlines()[0]}): delete it, "
            "and the same command makes it again"
        ) from error


def read_records(paths: list[Path], shape: tuple[int, ...], dtype: Any) -> Stored:
    """Returns the rows that `write_records` wrote into several files, in their order.

    Args:
      paths: the files.
      shape: of all rows together.
      dtype: of their elements.

    Raises:
      ValueError: when the files hold another number of rows.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    with _damage_explained(paths):
        source = ArrayRecordDataSource([str(path) for path in paths])
        count = len(source)
    if count != shape[0]:
        raise ValueError(
            f"{paths[0].parent} holds {count} rows in its parts, expected "
            f"{shape[0]}: delete it, and the same command makes it again"
        )

    def read(rows):
        with _damage_explained(paths):
            records = source.__getitems__(rows.tolist())
        flat = np.frombuffer(b"".join(records), dtype)
        return flat.reshape(len(rows), *shape[1:])

    return Stored(shape, dtype, read)
