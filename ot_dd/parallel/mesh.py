"""The mesh, and the rules that say what lies where on it."""

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

STRATEGIES = ("replicate", "fsdp")
AXIS = "data"
# Smaller arrays are copied to every device: to gather them in every step costs more than
# their memory is worth.
LEAST_TO_SPLIT = 2**20


def data_mesh() -> jax.sharding.Mesh | None:
    """Returns a mesh over all devices with one axis, "data", or None for one device.

    The axis is of type Auto: ott-jax and several optax losses fail on Explicit ones.
    """
    return _mesh(jax.devices())


def local_mesh() -> jax.sharding.Mesh | None:
    """Returns the same over the devices of this process."""
    return _mesh(jax.local_devices())


# Fewer images on a device than this cost more to exchange gradients of than they save.
_LEAST_ROWS = 16


def worth_dividing(rows: int, devices: int) -> bool:
    """Returns whether batches of so many rows go to one device or to all of a process."""
    return rows >= _LEAST_ROWS * devices


def mesh_for(rows: int) -> jax.sharding.Mesh | None:
    """Returns `local_mesh()` where batches of so many rows are worth dividing."""
    return local_mesh() if worth_dividing(rows, jax.local_device_count()) else None


def _mesh(devices):
    if len(devices) == 1:
        return None
    types = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=types, devices=devices)


def place(
    tree: Any, mesh: jax.sharding.Mesh | None, *axes: str | None, strategy: str = ""
):
    """Puts a tree of arrays, the same on every process, on a mesh.

    Args:
      tree: arrays, or None; of a `jax.ShapeDtypeStruct` there is its sharding to set.
      mesh: the mesh; None leaves the tree as it is.
      *axes: the mesh axis that splits each array axis in turn, or None; nothing at all
        gives every device a copy.
      strategy: instead of axes, a name of `STRATEGIES`.
    """
    if mesh is None:
        return tree

    def one(x):
        spec = _spec(x.shape, mesh.size, strategy) if strategy else P(*axes)
        sharding = NamedSharding(mesh, spec)
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(sharding, x.ndim):
            return x
        if jax.process_count() == 1:
            return jax.device_put(x, sharding)
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, sharding)
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            kind = jax.random.key_impl(x)
            return jax.random.wrap_key_data(one(jax.random.key_data(x)), impl=kind)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda rows: x[rows])

    return jax.tree.map(one, tree)


def _spec(shape, size: int, strategy: str) -> P:
    """Returns how an array of parameters or optimiser state is split.

    "replicate" copies it; "fsdp" splits its longest axis that the devices divide.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {STRATEGIES}, found {strategy!r}")
    if strategy == "replicate" or int(np.prod(shape)) < LEAST_TO_SPLIT:
        return P()
    divisible = [axis for axis, n in enumerate(shape) if n % size == 0]
    if not divisible:
        return P()
    longest = max(divisible, key=lambda axis: shape[axis])
    return P(*[None] * longest, AXIS)  # As XLA's outputs have it: nothing after that.


def split(tree):
    """Splits batches over the mesh of the surrounding `jax.set_mesh`, inside `jit`.

    A batch that the devices do not divide is left whole, as is everything where there
    is no mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree

    def one(x):
        if x.shape[0] % mesh.size:
            return x
        return jax.lax.with_sharding_constraint(x, P(AXIS))

    return jax.tree.map(one, tree)


def keep(tree, strategy: str):
    """Holds a training state to its strategy, inside `jit`; see `place`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    return jax.tree.map(
        lambda x: jax.lax.with_sharding_constraint(
            x, _spec(x.shape, mesh.size, strategy)
        ),
        tree,
    )
