"""Reads PyTorch's checkpoint files without PyTorch, and without running a pickle.

An unpickler that knows tensors, storages, dictionaries and plain values, and refuses
every other name. Both formats: the zip archive written since PyTorch 1.6 and
the stream of pickles before it.
"""

import io
import math
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
        outside = 0 not in self.shape and last >= storage.count
        if min(numbers) < 0 or outside or math.prod(self.shape) > storage.count:
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
      pickle.UnpicklingError: when it names anything but tensors and containers.
      Exception: of any kind, for a damaged file.
    """
    path = Path(path)
    source = _Zip(path) if zipfile.is_zipfile(path) else _Stream(path)
    return source.value


def _refuse(what):
    raise pickle.UnpicklingError(
        f"it {what}; only tensors and containers are read, and nothing is executed"
    )


class _Ignored:
    """What stands for objects that hold settings, not weights; their state is dropped."""

    __slots__ = ()


def _make_dictionary(*arguments):
    return _refuse("fills a dictionary at once") if arguments else dict()


def _rebuild_tensor(storage, offset, shape, strides, *_):
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or any(type(n) is not int for n in numbers):
        _refuse("holds a tensor that is none")
    if min(numbers) < 0 or len(shape) != len(strides):
        _refuse("holds a tensor outside its storage")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor, *_):
    return tensor


_KNOWN = {
    ("argparse", "Namespace"): _Ignored,
    ("collections", "OrderedDict"): _make_dictionary,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): _StorageType(np.dtype(d)) for name, d in _DTYPES.items()},
}
_CALLABLE = (_make_dictionary, _rebuild_tensor, _rebuild_parameter)


# The one in Python: its memo is a dictionary, where the one in C allocates a list as
# long as the file says, and its instructions can be left out.
class _Unpickler(pickle._Unpickler):
    dispatch = {
        code: handler
        for code, handler in pickle._Unpickler.dispatch.items()
        if bytes([code])
        not in (
            pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2,
            pickle.EXT4, pickle.DICT, pickle.EMPTY_SET, pickle.ADDITEMS,
            pickle.FROZENSET,
        )
    }  # fmt: skip

    def __init__(self, file, source):
        super().__init__(file, encoding="utf-8")
        self._source = source

    def find_class(self, module, name):
        if (module, name) not in _KNOWN:
            _refuse(f"names {module}.{name}")
        return _KNOWN[module, name]

    def persistent_load(self, pid):
        kind, storage_type, key, _, count, *rest = pid
        fits = isinstance(storage_type, _StorageType) and type(key) is str
        if kind != "storage" or not fits or type(count) is not int:
            _refuse("holds a storage that is none")
        if rest and rest[0] is not None:
            _refuse("holds a view of another storage")
        self._source.item_sizes[key] = storage_type.dtype.itemsize
        return _Storage(self._source, key, storage_type.dtype, count)

    def load_reduce(self):
        arguments = self.stack.pop()
        if self.stack[-1] not in _CALLABLE:
            _refuse("calls what is no function")
        self.stack[-1] = self.stack[-1](*arguments)

    def load_newobj(self):
        self.stack.pop()
        if self.stack[-1] is not _Ignored:
            _refuse("makes an object")
        self.stack[-1] = _Ignored()

    def load_build(self):
        self.stack.pop()  # Attributes, such as a state dict's _metadata.

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._set(key, value)

    def load_setitems(self):
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._set(key, value)

    def _set(self, key, value):
        # Nested tuples would be hashed for ever.
        if type(key) not in (str, int) or type(self.stack[-1]) is not dict:
            _refuse("has a key that is no name")
        self.stack[-1][key] = value

    for _code, _handler in (
        (pickle.REDUCE, load_reduce), (pickle.NEWOBJ, load_newobj),
        (pickle.BUILD, load_build), (pickle.SETITEM, load_setitem),
        (pickle.SETITEMS, load_setitems),
    ):  # fmt: skip
        dispatch[_code[0]] = _handler


class _Source:
    """A file of storages; `value` is what was pickled."""

    def __init__(self):
        self.item_sizes: dict[str, int] = {}

    def _bytes(self, key: str, length: int) -> bytes:
        raise NotImplementedError

    def read(self, storage: _Storage) -> np.ndarray:
        """Returns a storage's values, one after another."""
        data = self._bytes(storage.key, storage.count * storage.dtype.itemsize)
        return np.frombuffer(data, storage.dtype, storage.count)


class _Zip(_Source):
    def __init__(self, path):
        super().__init__()
        self._archive = zipfile.ZipFile(path)
        members = self._archive.namelist()
        pickles = [name for name in members if name.endswith("data.pkl")]
        if not pickles:
            raise pickle.UnpicklingError("it is an archive without data.pkl")
        self._root = root = pickles[0].removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in members and self._read(order) != b"little":
            raise pickle.UnpicklingError("it is in big-endian byte order")
        self.value = _Unpickler(io.BytesIO(self._read(pickles[0])), self).load()

    def _read(self, member):
        if self._archive.getinfo(member).compress_type != zipfile.ZIP_STORED:
            raise pickle.UnpicklingError("it is compressed, which PyTorch never does")
        return self._archive.read(member)

    def _bytes(self, key, length):
        found = self._read(f"{self._root}data/{key}")
        if len(found) < length:
            raise ValueError(f"storage {key!a} holds {len(found)} bytes, not {length}")
        return found


class _Stream(_Source):
    def __init__(self, path):
        super().__init__()
        self._path, self._places = path, {}
        with path.open("rb") as file:
            if _Unpickler(file, self).load() != _OLD_MAGIC:
                raise pickle.UnpicklingError("it is no PyTorch checkpoint")
            _Unpickler(file, self).load()  # The protocol version.
            if not _Unpickler(file, self).load().get("little_endian", True):
                raise pickle.UnpicklingError("it is in big-endian byte order")
            self.value = _Unpickler(file, self).load()
            for key in _Unpickler(file, self).load():
                (count,) = struct.unpack("<q", file.read(8))
                self._places[key] = file.tell()
                file.seek(count * self.item_sizes[key], 1)

    def _bytes(self, key, length):
        with self._path.open("rb") as file:
            file.seek(self._places[key])
            found = file.read(length)
        if len(found) < length:
            raise ValueError(f"the file ends within storage {key!a}")
        return found
