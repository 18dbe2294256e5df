"""Trained networks on disk: what `python -m ot_dd.convert` writes, `load` reads."""

import functools
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ot_dd.checkpoint import Checkpoints, read_json, write_json
from ot_dd.models._preprocess import Preprocess
from ot_dd.models._registry import create
from ot_dd.models.dit import DiT

_REMEDY = "convert the weights again"


class Loaded(NamedTuple):
    """A network with its weights.

    Attributes:
      module: the linen module.
      variables: its variables.
      preprocess: what its weights expect of uint8 images, or None.
      note: the model's name and options, and where the weights come from.
    """

    module: nn.Module
    variables: Any
    preprocess: Preprocess | None
    note: dict


def shapes(module: nn.Module, inputs: tuple[int, ...]) -> dict[tuple[str, ...], tuple]:
    """Returns the shape of every variable by `(collection, ..., leaf)`.

    Args:
      module: a module of the registry.
      inputs: shape of its images or latents `[b, h, w, c]`.
    """
    leaves, _ = jax.tree.flatten_with_path(_abstract(module, tuple(inputs)))
    return {tuple(k.key for k in path): leaf.shape for path, leaf in leaves}


@functools.lru_cache(maxsize=4)  # What is converted is loaded next; tracing takes long.
def _abstract(module, inputs):
    x = jax.ShapeDtypeStruct(inputs, jnp.float32)
    extra = ()
    if isinstance(module, DiT):
        row = jax.ShapeDtypeStruct(x.shape[:1], jnp.float32)
        extra = (row, jax.ShapeDtypeStruct(x.shape[:1], jnp.int32))
    return jax.eval_shape(module.init, jax.random.key(0), x, *extra)


def save(directory: Path, variables: Any, note: dict) -> None:
    """Writes variables and the note that describes them; all of it or nothing.

    Args:
      directory: must not exist.
      variables: nested dictionaries of arrays.
      note: at least "model", "options", "inputs" and "preprocess".
    """
    directory = Path(directory).absolute()
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        # Orbax copies NumPy's arrays before it writes, and JAX's a part at a time; on a
        # CPU `device_put` makes one of the other in place.
        arrays = jax.tree.map(lambda x: jax.device_put(np.asarray(x)), variables)
        checkpoints = Checkpoints(partial)
        try:
            checkpoints.save(0, arrays)
        finally:
            checkpoints.close()
        write_json(partial / "model.json", note)
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _read_note(directory: Path) -> dict:
    note = read_json(Path(directory) / "model.json", remedy=_REMEDY)
    if note is None:
        raise FileNotFoundError(
            f"{directory} has no model.json: make it with python -m ot_dd.convert"
        )
    if not isinstance(note, dict) or not {"model", "options", "inputs"} <= set(note):
        raise ValueError(f"{directory}/model.json is damaged: {_REMEDY}")
    return note


def module_of(directory: Path) -> nn.Module:
    """Returns the module of a stored network; its weights are not read.

    Args:
      directory: what `save` wrote.

    Raises:
      FileNotFoundError: when the directory is no stored network.
      ValueError: when its note is damaged.
    """
    note = _read_note(directory)
    return create(note["model"], **note["options"])


def load(directory: Path, *, dtype: Any = jnp.float32) -> Loaded:
    """Loads what `save`, and so `python -m ot_dd.convert`, wrote.

    Args:
      directory: the directory.
      dtype: the type of the variables.

    Returns:
      Module, variables, preprocessing and the note.

    Raises:
      FileNotFoundError: when the directory is no converted model.
      ValueError: when its note or its arrays are damaged.
    """
    directory = Path(directory)
    note = _read_note(directory)
    module = module_of(directory)
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype),
        _abstract(module, tuple(note["inputs"])),
    )
    checkpoints = Checkpoints(directory)
    try:
        variables = checkpoints.restore(abstract, remedy=_REMEDY)
    finally:
        checkpoints.close()
    if variables is None:
        raise FileNotFoundError(f"{directory} has no weights below steps/")
    preprocess = note.get("preprocess")
    if preprocess is not None:
        preprocess = Preprocess(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in preprocess.items()}
        )
    return Loaded(module, variables, preprocess, note)
