"""Values that vary over the axes of a surrounding `jax.shard_map`.

With its default `check_vma=True` a loop's state must vary, from the start on, over the
mesh axes that the loop's body makes it vary over, and the cotangents of a custom
derivative as its arguments do.
"""

import jax


def vary_like(value, *like):
    """Returns a tree marked as varying over all the axes that `like` varies over.

    Autodiff of the mark sums the cotangents of what was replicated. Outside of a
    `shard_map` there are no such axes, and the tree is returned as it is.
    """

    def axes(array):
        kind = jax.typeof(array)  # Before JAX 0.10 the set is its `vma`.
        return kind.manual_axis_type.varying if hasattr(kind, "mat") else kind.vma

    union = frozenset().union(*map(axes, jax.tree.leaves(like)))
    if not union:
        return value

    def one(array):
        missing = tuple(sorted(union - axes(array)))
        return jax.lax.pcast(array, missing, to="varying") if missing else array

    return jax.tree.map(one, value)
