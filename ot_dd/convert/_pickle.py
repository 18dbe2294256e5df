"""Reads PyTorch's checkpoint files without PyTorch, and without running a pickle.

An unpickler that knows tensors, storages, ordered dictionaries and plain values, and
refuses every other name. Both formats: the zip archive written since PyTorch 1.6 and
the stream of pickles before it.
"""

import collections
import pickle
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

_DTYPES = {
    "BFloat16Storage": ml_dtypes.bfloat16,
    "BoolStorage": np.bool_,
    "ByteStorage": np.uint8,
    "CharStorage": np.int8,
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "IntStorage": np.int32,
    "LongStorage": np.int64,
    "ShortStorage": np.int16,
}
_OLD_MAGIC = 0x1950A86A20F9469CFC6C


class _StorageType(NamedTuple):
    dtype: np.dtype


class _Storage(NamedTuple):
    """Bytes of a file that tensors are views of."""

    file: "_Source"
    key: str
    dtype: np.dtype
    count: int


class Tensor(NamedTuple):
    """A tensor that has not been read yet."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self) -> np.ndarray:
        """Returns a copy of the tensor's values."""
        storage = self.storage
        last = self.offset + sum(
            (n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)
        )
        numbers = (self.offset, *self.shape, *self.strides)
        if min(numbers) < 0 or (0 not in self.shape and last >= storage.count):
            raise ValueError(f"tensor {self.shape} lies outside its storage")
        flat = storage.file.read(storage)
        size = flat.itemsize
        view = np.lib.stride_tricks.as_strided(
            flat[self.offset :], self.shape, [size * s for s in self.strides]
        )
        return view.copy()


def load(path: Path):
    """Returns the pickled value with every tensor a `Tensor`.

    Args:
      path: a file written by `torch.save`.

    Raises:
      ValueError: when it names anything but tensors and containers, or is damaged.
    """
    path = Path(path)
    try:
        source = _Zip(path) if zipfile.is_zipfile(path) else _Stream(path)
        return source.value
    except pickle.UnpicklingError as error:
        raise ValueError(f"--input={path} is refused: {error}") from error
    except (KeyError, IndexError, TypeError, AttributeError, struct.error) as error:
        raise ValueError(f"--input={path} is no PyTorch checkpoint: {error}") from error


def _rebuild_tensor(storage, offset, shape, strides, *_):
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without storage")
    return Tensor(storage, int(offset), tuple(shape), tuple(strides))


def _rebuild_parameter(tensor, *_):
    return tensor


_KNOWN = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): _StorageType(np.dtype(d)) for name, d in _DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, source):
        super().__init__(file, encoding="utf-8")
        self._source = source

    def find_class(self, module, name):
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}; only tensors and containers are read, and "
                "nothing is executed"
            )
        return _KNOWN[module, name]

    def persistent_load(self, pid):
        kind, storage_type, key, _, count, *_ = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise pickle.UnpicklingError(f"unknown persistent id {kind!r}")
        return _Storage(self._source, str(key), storage_type.dtype, int(count))


class _Source:
    """A file of storages; `value` is what was pickled."""

    def _bytes(self, key: str, length: int) -> bytes:
        raise NotImplementedError

    def read(self, storage: _Storage) -> np.ndarray:
        """Returns a storage's values, one after another."""
        data = self._bytes(storage.key, storage.count * storage.dtype.itemsize)
        return np.frombuffer(data, storage.dtype, storage.count)


class _Zip(_Source):
    def __init__(self, path):
        self._archive = zipfile.ZipFile(path)
        members = self._archive.namelist()
        pickles = [name for name in members if name.endswith("data.pkl")]
        if not pickles:
            raise pickle.UnpicklingError("it is an archive without data.pkl")
        self._root = root = pickles[0].removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in members and self._archive.read(order) != b"little":
            raise pickle.UnpicklingError("it is in big-endian byte order")
        with self._archive.open(f"{root}data.pkl") as file:
            self.value = _Unpickler(file, self).load()

    def _bytes(self, key, length):
        found = self._archive.read(f"{self._root}data/{key}")
        if len(found) < length:
            raise ValueError(f"storage {key} holds {len(found)} bytes, not {length}")
        return found


class _Stream(_Source):
    def __init__(self, path):
        self._path, self._places = path, {}
        with path.open("rb") as file:
            magic = _Unpickler(file, self).load()
            if magic != _OLD_MAGIC:
                raise pickle.UnpicklingError("it is no PyTorch checkpoint")
            _Unpickler(file, self).load()  # The protocol version.
            if not _Unpickler(file, self).load().get("little_endian", True):
                raise pickle.UnpicklingError("it is in big-endian byte order")
            self.value = _Unpickler(file, self).load()
            keys = _Unpickler(file, self).load()
            self._locate(file, [str(key) for key in keys])

    def _locate(self, file, keys):
        sizes = {s.key: s.dtype.itemsize for s in _storages(self.value)}
        for key in keys:
            (count,) = struct.unpack("<q", file.read(8))
            self._places[key] = file.tell()
            file.seek(count * sizes.get(key, 4), 1)

    def _bytes(self, key, length):
        with self._path.open("rb") as file:
            file.seek(self._places[key])
            found = file.read(length)
        if len(found) < length:
            raise ValueError(f"the file ends within storage {key}")
        return found


def _storages(value):
    """Yields the storages of all tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value.storage
    elif isinstance(value, dict):
        for item in value.values():
            yield from _storages(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _storages(item)
