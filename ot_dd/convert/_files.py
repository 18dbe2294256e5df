"""Tensor files as lazy mappings: safetensors, npz, and PyTorch's .pt, .pth, .bin, .ckpt."""

import argparse
import contextlib
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors

from ot_dd.convert import _pickle

# Where training scripts put the weights that count, most wanted first: DiT's own
# checkpoints hold {"model", "ema", "opt", "args"}.
_WRAPPERS = ("ema", "state_dict_ema", "state_dict", "model_state_dict", "model")
# What torch.compile and data parallelism put before every name.
_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")


class TensorFile(NamedTuple):
    """Tensors of a file, each read when it is asked for.

    Attributes:
      shapes: the shape of every tensor by key.
      read: reads one tensor by key.
    """

    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]


def open_tensors(path: Path) -> TensorFile:
    """Opens a file of tensors; nothing in it is executed.

    Args:
      path: a `.safetensors` or `.npz` file, or a `.pt`, `.pth`, `.bin` or `.ckpt`.

    Returns:
      Its tensors.

    Raises:
      FileNotFoundError: when there is no such file.
      ValueError: for another ending, a damaged file, or a pickle that holds more than
        tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"--input={path}: no such file")
    readers = {".safetensors": _safetensors, ".npz": _npz}
    readers |= dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), _torch)
    if path.suffix not in readers:
        raise ValueError(
            f"--input={path}: found {path.suffix or 'no ending'!r}, expected one of "
            f"{', '.join(readers)}"
        )
    with _explained(path):
        file = readers[path.suffix](path)
        for key, shape in file.shapes.items():
            if any(type(n) is not int or not 0 <= n < 2**40 for n in shape):
                raise ValueError(f"tensor {key!a} has the shape {shape!r:.80}")
        keys = {_PREFIXES.sub("", key, count=1): key for key in file.shapes}
        if len(keys) < len(file.shapes):
            raise ValueError("several of its tensors have one name but for prefixes")

    def read(key):
        with _explained(path):
            return np.asarray(file.read(keys[key]))

    return TensorFile({name: file.shapes[key] for name, key in keys.items()}, read)


@contextlib.contextmanager
def _explained(path):
    """Turns whatever a reader raises at a file made by others into one message."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ValueError(f"--input={path} is refused: {error}") from error
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"--input={path} is damaged: {text}") from error


def _safetensors(path):
    file = safetensors.safe_open(path, framework="numpy")
    shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    return TensorFile(shapes, file.get_tensor)


def _npz(path):
    shapes = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                version = np.lib.format.read_magic(member)
                read = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                shapes[name.removesuffix(".npy")] = read(member)[0]
    arrays = np.load(path, allow_pickle=False)
    return TensorFile(shapes, arrays.__getitem__)


def _torch(path):
    if find_spec("torch") is None:
        tensors = _unwrap(_pickle.load(path), _pickle.Tensor)
        shapes = {key: tensor.shape for key, tensor in tensors.items()}
        return TensorFile(shapes, lambda key: tensors[key].read())
    import torch

    try:
        # Files in the format before PyTorch 1.6 cannot be mapped into memory.
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(
                path,
                map_location="cpu",
                weights_only=True,
                mmap=zipfile.is_zipfile(path),
            )
    except pickle.UnpicklingError as error:
        # PyTorch's advice on how to run the file all the same is left out.
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"names {name[1]}" if name else "is no pickle of tensors"
        raise pickle.UnpicklingError(f"it {what}; only tensors are read") from error
    tensors = _unwrap(found, torch.Tensor)

    def read(key):
        tensor = tensors[key].detach()
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"tensor {key!a} is larger than its storage")
        if tensor.dtype == torch.bfloat16:  # NumPy has none: exact in float32.
            tensor = tensor.float()
        return tensor.numpy()

    return TensorFile({k: tuple(v.shape) for k, v in tensors.items()}, read)


def _unwrap(found, kind):
    """Returns the mapping of names to tensors, also from within a training checkpoint."""
    tensors = _named_tensors(found, kind)
    if not tensors:
        raise pickle.UnpicklingError(
            f"it holds a {type(found).__name__} without named tensors; save a model's "
            "state_dict()"
        )
    return tensors


def _named_tensors(found, kind):
    if not isinstance(found, Mapping):
        return {}
    for wrapper in _WRAPPERS:
        inside = _named_tensors(found.get(wrapper), kind)
        if any(tensor.shape for tensor in inside.values()):
            return inside  # Else settings of that name, such as a rate of decay.
    return {str(key): value for key, value in found.items() if isinstance(value, kind)}
