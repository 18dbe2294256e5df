"""Entropic OT with the rows split over the devices of a mesh."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ot_dd.explicit import auto_mesh, explicit_axes, on_auto_axes
from ot_dd.ot import _checks
from ot_dd.ot._costs import CostFn
from ot_dd.ot._geometry import Points
from ot_dd.ot._iterations import Options
from ot_dd.ot._sinkhorn import (
    Gibbs,
    OTResult,
    crop_rows,
    held_plan,
    pad_rows,
    run,
    with_weight,
)


def solve_sample_sharded(
    x: jax.Array,
    y: jax.Array,
    a: jax.Array | None = None,
    b: jax.Array | None = None,
    *,
    mesh: jax.sharding.Mesh,
    axis: str | tuple[str, ...] = "data",
    cost_fn: CostFn = "sqeuclidean",
    epsilon: float | jax.Array,
    block_size: int | None = None,
    num_iters: int | None = None,
    threshold: float = 1e-3,
    max_iters: int = 2000,
    init: tuple[jax.Array, jax.Array] | None = None,
    tau_a: float = 1.0,
    tau_b: float = 1.0,
    grad: str = "envelope",
    method: str = "auto",
) -> OTResult:
    """Solves one entropic OT problem with the rows of `x` split over devices.

    It is the global problem, not one for each device: potentials equal those of
    `solve_sample`. Every device holds its rows of `x` and all of `y` (a `y` that comes
    split is gathered once); an iteration exchanges the column sums, one vector `[m]`
    (in the log domain a maximum and a sum), and nothing of size `n` or `n x m`.

    Args:
      x: points `[n, d]`; any `n`, padded with points of zero weight.
      y: points `[m, d]`.
      a: weights `[n]`, default uniform.
      b: weights `[m]`, default uniform.
      mesh: a device mesh, its axes of type Auto or Explicit.
      axis: the mesh axis, or axes, over which the rows are split.
      cost_fn: see `solve_sample`.
      epsilon: see `solve_sample`.
      block_size: rows of the cost matrix that a device holds at a time; default all
        of its rows.
      num_iters: see `solve`, as all that follow.
      threshold: see `solve`.
      max_iters: see `solve`.
      init: see `solve`.
      tau_a: see `solve`.
      tau_b: see `solve`.
      grad: see `solve`.
      method: see `solve`.

    Returns:
      An `OTResult` whose `potentials[0]` is split like `x` and whose other fields
      every device has; `value` has a gradient in `x`, `y`, `a` and `b`.

    Raises:
      ValueError: see `solve`; also for an axis that the mesh does not have.
    """
    options = Options(
        num_iters, threshold, max_iters, tau_a, tau_b, grad, method, b is not None
    )
    _checks.options(options, epsilon, "sinkhorn", {})
    _checks.points(x, y, block_size)
    axes = (axis,) if isinstance(axis, str) else tuple(axis)
    for name in axes:
        _checks.one_of("axis", name, tuple(mesh.axis_names))
    n, m = len(x), len(y)
    _checks.init(init, n, m)
    balanced = tau_a == tau_b == 1.0
    a, b = _checks.weights(a, b, n, m, jnp.result_type(x, y), balanced)
    return _solve(
        x, y, a, b, epsilon, init, mesh=mesh, axes=axes, cost_fn=cost_fn,
        block_size=block_size, options=options,
    )  # fmt: skip


@functools.partial(
    jax.jit, static_argnames=("mesh", "axes", "cost_fn", "block_size", "options")
)
def _solve(x, y, a, b, epsilon, init, *, mesh, axes, **how):
    devices = _device_count(mesh, axes)
    # Only of Explicit axes is said how they split, and they do so evenly.
    named = tuple(name for name in axes if name in explicit_axes(mesh))
    rows = P() if len(x) % devices else P(named)

    def specs(shapes, *_):
        whole = jax.tree.map(lambda _: P(), shapes)
        split = (rows, P())
        geometry = dataclasses.replace(whole.coupling.geometry, x=rows)
        gibbs = whole.coupling._replace(geometry=geometry, potentials=split, a=rows)
        return whole._replace(potentials=split, coupling=gibbs)

    solve = functools.partial(_solve_rows, mesh=auto_mesh(mesh), axes=axes, **how)
    meshes = mesh, jax.typeof(x).sharding.mesh
    explicit = next((each for each in meshes if explicit_axes(each)), None)
    return on_auto_axes(solve, specs, explicit)(x, y, a, b, epsilon, init)


def _device_count(mesh, axes):
    return math.prod(mesh.shape[name] for name in axes)


def _solve_rows(x, y, a, b, epsilon, init, *, mesh, axes, cost_fn, block_size, options):
    n, dtype = len(x), jnp.result_type(x, y, jnp.float32)
    x, y, epsilon = (jnp.asarray(v, dtype) for v in (x, y, epsilon))
    x, y = with_weight(x, y, a, b)
    devices = _device_count(mesh, axes)
    local = -(-n // devices)
    block = min(block_size or local, local)
    x, a, init = pad_rows(x, a, init, devices * block)
    if init is None:
        init = (jnp.zeros_like(a), jnp.zeros_like(b))
    rows, everywhere = P(axes), P()

    def solve(x, y, a, b, epsilon, init):
        points = Points.make(x, y, epsilon, cost_fn, block, axes)
        result = run(points, a, b, epsilon, init, options)
        return result._replace(coupling=None)

    like = OTResult(*[everywhere] * 7)._replace(
        potentials=(rows, everywhere), coupling=None
    )
    result = jax.shard_map(
        solve,
        mesh=mesh,
        in_specs=(rows, everywhere, rows, everywhere, everywhere, (rows, everywhere)),
        out_specs=like,
        check_vma=False,
    )(x, y, a, b, epsilon, init)
    f, g = result.potentials
    points = Points.make(x, y, epsilon, cost_fn, block)
    gibbs = Gibbs(points, (f / epsilon, g / epsilon), a, b)
    return crop_rows(result._replace(coupling=held_plan(gibbs, options)), n)
