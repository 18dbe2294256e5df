"""Meshes whose axes are of type Explicit, as `jax.make_mesh` makes them by default.

There every operation must say how its result is sharded where that is ambiguous, as it
is for the costs between two sharded clouds, and most libraries' do not.
"""

import functools
from collections.abc import Callable

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def on_auto_axes(fn: Callable, specs: Callable | None = None) -> Callable:
    """Returns a function that computes on Auto axes what it is given on Explicit ones.

    The cotangents of its arguments are sharded as these are. Where no argument is on a
    mesh with Explicit axes nothing changes.

    Args:
      fn: any function; its array arguments may be within pytrees.
      specs: makes the tree of `PartitionSpec` of the results from the tree of their
        shapes; without it they are replicated.
    """

    @functools.wraps(fn)
    def call(*args, **kwargs):
        leaves, tree = jax.tree.flatten((args, kwargs))
        arrays = {i: v for i, v in enumerate(leaves) if isinstance(v, jax.Array)}
        mesh = _explicit_mesh(arrays.values())
        if mesh is None:
            return fn(*args, **kwargs)

        def with_arrays(*found):
            found = dict(zip(arrays, found))
            rest = [found.get(i, v) for i, v in enumerate(leaves)]
            args, kwargs = jax.tree.unflatten(tree, rest)
            return fn(*args, **kwargs)

        names = tuple(n for n, t in zip(mesh.axis_names, mesh.axis_types) if t == _TYPE)

        def computed(out):
            out = jax.tree.map(lambda spec: NamedSharding(mesh, spec), out)
            return jax.sharding.auto_axes(with_arrays, axes=names, out_sharding=out)

        out = P()
        if specs is not None:
            out = specs(jax.eval_shape(computed(out), *arrays.values()))
        return computed(out)(*arrays.values())

    return call


def auto_mesh(mesh: Mesh) -> Mesh:
    """Returns a mesh of the same devices whose Explicit axes are of type Auto."""
    types = [AxisType.Auto if t == _TYPE else t for t in mesh.axis_types]
    return mesh.update(axis_types=tuple(types))


_TYPE = AxisType.Explicit


def _explicit_mesh(arrays):
    for array in arrays:
        mesh = jax.typeof(array).sharding.mesh
        if _TYPE in mesh.axis_types:
            return mesh
    return None
