"""Meshes whose axes are of type Explicit, as `jax.make_mesh` makes them by default.

There every operation must say how its result is sharded where that is ambiguous, as it
is for the costs between two sharded clouds, and most libraries' do not.
"""

import functools
from collections.abc import Callable

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def on_auto_axes(
    fn: Callable, specs: Callable | None = None, mesh: Mesh | None = None
) -> Callable:
    """Returns a function that computes on Auto axes what it is given on Explicit ones.

    Its results are replicated unless `specs` says more, the cotangents of its arguments
    sharded as these are. Where no argument is split over Explicit axes nothing changes.

    Args:
      fn: any function; its array arguments may be within pytrees.
      specs: makes the tree of `PartitionSpec` of the results from the tree of their
        shapes and from the arguments. An axis that it names may not be one over which
        a `vmap` around the call splits its batch.
      mesh: the one with the Explicit axes, whether or not an argument is split over
        them; by default that of an argument that is.
    """

    @functools.wraps(fn)
    def call(*args, **kwargs):
        leaves, tree = jax.tree.flatten((args, kwargs))
        arrays = {i: v for i, v in enumerate(leaves) if isinstance(v, jax.Array)}
        grid = mesh or _explicit_mesh(arrays.values())
        if grid is None:
            return fn(*args, **kwargs)

        def with_arrays(*found):
            found = dict(zip(arrays, found))
            rest = [found.get(i, v) for i, v in enumerate(leaves)]
            args, kwargs = jax.tree.unflatten(tree, rest)
            return fn(*args, **kwargs)

        names = tuple(explicit_axes(grid))

        def computed(out):
            out = jax.tree.map(lambda spec: NamedSharding(grid, spec), out)
            return jax.sharding.auto_axes(with_arrays, axes=names, out_sharding=out)

        out = P()
        if specs is not None:
            shapes = jax.eval_shape(computed(out), *arrays.values())
            out = specs(shapes, *args, **kwargs)
        return computed(out)(*arrays.values())

    return call


def explicit_axes(mesh: Mesh) -> list[str]:
    """Returns the names of a mesh's axes of type Explicit."""
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return [name for name, kind in types if kind == AxisType.Explicit]


def auto_mesh(mesh: Mesh) -> Mesh:
    """Returns a mesh of the same devices whose Explicit axes are of type Auto."""
    types = [AxisType.Auto if t == AxisType.Explicit else t for t in mesh.axis_types]
    return mesh.update(axis_types=tuple(types))


def _explicit_mesh(arrays):
    """Returns the mesh of Explicit axes that some array is split over, if there is one.

    Where nothing is split nothing is ambiguous, and JAX (0.10) cannot differentiate
    `auto_axes` from outside of a partly manual `shard_map`.
    """
    for array in arrays:
        sharding = jax.typeof(array).sharding
        if any(sharding.spec) and AxisType.Explicit in sharding.mesh.axis_types:
            return sharding.mesh
    return None
