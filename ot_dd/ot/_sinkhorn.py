"""Entropic optimal transport (Cuturi 2013; Peyre & Cuturi 2019; Schmitzer 2019)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ot_dd.explicit import on_auto_axes
from ot_dd.ot import _checks
from ot_dd.ot._costs import CostFn, cost_matrix
from ot_dd.ot._geometry import Dense, Points, Problem, target_marginal
from ot_dd.ot._iterations import Options, iterate
from ot_dd.vma import vary_like


class OTResult(NamedTuple):
    """What a solver returns; a pytree of arrays, so it jits, vmaps and scans.

    Attributes:
      value: the regularised cost, scalar: the dual objective, which is `<P, C> +
        epsilon KL(P | a b^T)` (and the penalties of an unbalanced problem) at
        convergence and below it before.
      value_linear: the transport part `<P, C>`, scalar.
      potentials: the dual potentials `(f [n], g [m])`, in units of the cost, with
        `P = a b^T exp((f + g - C) / epsilon)`; `solve` defines them at zero-weight
        points too, `solve_sample` gives such points those of another point of their
        own cloud. None from a low-rank solver.
      marginal_error: total variation `sum |P 1 - a| + sum |P^T 1 - b|`; in an
        unbalanced problem, from the marginals that optimal potentials would have.
      n_iters: iterations run.
      converged: whether `marginal_error` is at most `threshold` (of the total mass);
        false, too, for a result that is not finite.
      coupling: what `plan` is made from: the cost or the points; `scan` stacks it.
    """

    value: jax.Array
    value_linear: jax.Array
    potentials: tuple[jax.Array, jax.Array] | None
    marginal_error: jax.Array
    n_iters: jax.Array
    converged: jax.Array
    coupling: Any

    @property
    def plan(self) -> jax.Array:
        """The transport plan `P [n, m]`, computed when it is asked for.

        It has a gradient with `grad="unroll"` alone.
        """
        matrix = type(self.coupling).matrix
        for _ in range(self.value.ndim):  # A result that came out of `vmap`.
            matrix = jax.vmap(matrix)
        return matrix(self.coupling)


def _split_like_rows(_, coupling):
    """Returns the spec of a plan: its rows are where their potentials are."""
    return P(*jax.typeof(coupling.potentials[0]).sharding.spec)


class Gibbs(NamedTuple):
    """The plan that belongs to potentials, all in units of epsilon."""

    geometry: Dense | Points
    potentials: tuple[jax.Array, jax.Array]
    a: jax.Array
    b: jax.Array

    @functools.partial(on_auto_axes, specs=_split_like_rows)
    def matrix(self) -> jax.Array:
        problem = Problem(self.a, self.b, 1.0, 1.0)
        return self.geometry.plan(*self.potentials, problem)


def solve(
    cost: jax.Array,
    a: jax.Array | None = None,
    b: jax.Array | None = None,
    *,
    epsilon: float | jax.Array,
    num_iters: int | None = None,
    threshold: float = 1e-3,
    max_iters: int = 2000,
    init: tuple[jax.Array, jax.Array] | None = None,
    tau_a: float = 1.0,
    tau_b: float = 1.0,
    grad: str = "envelope",
    method: str = "auto",
    solver: str = "sinkhorn",
    **ott_options: Any,
) -> OTResult:
    """Solves entropic OT between two weighted point sets given their costs.

    Points of zero weight take no part, as long as they are finite: that is how padding
    and masks are written. The gradient in a weight is for weights above zero.
    The values and gradients are those of Sinkhorn's iterations in exact arithmetic,
    whatever the method.

    Args:
      cost: cost matrix `[n, m]`; an ott-jax geometry with `solver="ott"`.
      a: weights `[n]`, default uniform `1/n`.
      b: weights `[m]`, default uniform `1/m`.
      epsilon: entropic regularisation, in units of the cost; may be traced.
      num_iters: run exactly this many iterations (`"kernel"` may stop early). Without
        it, iterate until `threshold` or `max_iters`.
      threshold: marginal error, as a share of the total mass, that counts as
        converged.
      max_iters: the limit when `num_iters` is not given.
      init: potentials `(f, g)` to start from; the iteration begins with `f`.
      tau_a: `rho / (rho + epsilon)` for a KL penalty `rho` on the row marginal; 1
        is the balanced problem.
      tau_b: the same for the column marginal.
      grad: `"envelope"` differentiates with the plan held fixed (exact for `value` at
        convergence; once, not twice: a Hessian needs `"unroll"`), `"unroll"` goes
        through the iterations (needs `num_iters`; rematerialised: memory grows by some
        vectors an iteration, and with `method="kernel"` by some matrices every 40),
        `"none"` stops gradients.
      method: `"log"` iterates in the log domain, safe at any epsilon. `"kernel"`
        iterates by matrix-vector products with a stabilised kernel, several times
        faster; a new one is made where the scalings leave a kernel's range, and where
        that serves for no iteration it stops: `marginal_error` and `converged` tell.
        `"auto"` goes on in the log domain there (loops of variable length: with
        unrolled gradients `"auto"` means `"log"`, and `"kernel"` makes a new one
        every 40 iterations).
      solver: `"sinkhorn"`, or `"ott"` for ott-jax's solvers (whose unbalanced problems
        are regularised by the plan's entropy instead of `KL(P | a b^T)`, and whose
        `value_linear` and `plan` have ott-jax's gradients).
      **ott_options: with `solver="ott"`, keywords of `ott.solvers.linear.solve`, such
        as `rank=10` for its low-rank Sinkhorn.

    Returns:
      An `OTResult`. Inside `jit` nothing is raised: look at `converged`.

    Raises:
      ValueError: for mismatched shapes, unknown names, unrolling a loop of variable
        length; outside `jit` also for values that are not finite, negative weights,
        masses that differ in a balanced problem, and an epsilon that is not positive.
    """
    options = Options(
        num_iters, threshold, max_iters, tau_a, tau_b, grad, method, b is not None
    )
    _checks.options(options, epsilon, solver, ott_options)
    if solver == "ott":
        from ot_dd.ot import _ott  # Its import takes longer than all others.

        return _ott.solve(cost, a, b, epsilon, options, init, ott_options, OTResult)
    _checks.cost(cost)
    _checks.init(init, *cost.shape)
    a, b = _checks.weights(a, b, *cost.shape, cost.dtype, tau_a == tau_b == 1.0)
    return _solve_dense(cost, a, b, epsilon, init, options=options)


def solve_sample(
    x: jax.Array,
    y: jax.Array,
    a: jax.Array | None = None,
    b: jax.Array | None = None,
    *,
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
    solver: str = "sinkhorn",
    **ott_options: Any,
) -> OTResult:
    """Solves entropic OT between two point clouds.

    Args:
      x: points `[n, d]`.
      y: points `[m, d]`.
      a: weights `[n]`, default uniform.
      b: weights `[m]`, default uniform.
      cost_fn: see `cost_matrix`. A callable is compiled for: pass the same object.
      epsilon: entropic regularisation, in units of the cost.
      block_size: rows of the cost matrix in memory at a time: value and gradient in
        `O(n + m)` memory, at the price of computing the costs in every iteration.
        Without it the matrix is held.
      num_iters: see `solve`, as all that follow.
      threshold: see `solve`.
      max_iters: see `solve`.
      init: see `solve`.
      tau_a: see `solve`.
      tau_b: see `solve`.
      grad: see `solve`.
      method: see `solve`.
      solver: see `solve`.
      **ott_options: see `solve`.

    Returns:
      An `OTResult`; `value` has a gradient in `x`, `y`, `a` and `b`.

    Raises:
      ValueError: see `solve`.
    """
    options = Options(num_iters, threshold, max_iters, tau_a, tau_b, grad, method)
    return checked_sample(
        x, y, a, b, options, cost_fn=cost_fn, epsilon=epsilon, block_size=block_size,
        init=init, solver=solver, **ott_options,
    )  # fmt: skip


def checked_sample(
    x, y, a, b, options: Options, *, cost_fn, epsilon, block_size=None, init=None,
    solver="sinkhorn", **ott_options,
) -> OTResult:  # fmt: skip
    """Does what `solve_sample` does, with options that are not all its caller's."""
    options = options._replace(masked=b is not None)
    tau_a, tau_b = options.tau_a, options.tau_b
    _checks.options(options, epsilon, solver, ott_options)
    _checks.points(x, y, block_size)
    if solver == "ott":
        from ot_dd.ot import _ott

        if block_size is not None:
            raise ValueError("block_size must be None with solver='ott'")
        cost = _ott.point_cloud(x, y, cost_fn)
        if cost is None:
            balanced = tau_a == tau_b == 1.0
            kind = jnp.result_type(x, y)
            a, b = _checks.weights(a, b, len(x), len(y), kind, balanced)
            cost = cost_matrix(*with_weight(x, y, a, b), cost_fn)
        return _ott.solve(cost, a, b, epsilon, options, init, ott_options, OTResult)
    n, m = len(x), len(y)
    _checks.init(init, n, m)
    balanced = tau_a == tau_b == 1.0
    a, b = _checks.weights(a, b, n, m, jnp.result_type(x, y), balanced)
    return _solve_points(
        x, y, a, b, epsilon, init, cost_fn=cost_fn, block_size=block_size,
        options=options,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames="options")
@on_auto_axes
def _solve_dense(cost, a, b, epsilon, init, *, options):
    dtype = jnp.promote_types(cost.dtype, jnp.float32)
    cost, epsilon = cost.astype(dtype), jnp.asarray(epsilon, dtype)
    return run(Dense(cost / epsilon), a, b, epsilon, init, options)


@functools.partial(jax.jit, static_argnames=("cost_fn", "block_size", "options"))
@on_auto_axes
def _solve_points(x, y, a, b, epsilon, init, *, cost_fn, block_size, options):
    n, dtype = len(x), jnp.result_type(x, y, jnp.float32)
    x, y, epsilon = (jnp.asarray(v, dtype) for v in (x, y, epsilon))
    x, y = with_weight(x, y, a, b)
    if block_size is None:
        # Scaled is what is smaller, the points or the matrix.
        if n * len(y) < (n + len(y)) * x.shape[1]:
            cost = cost_matrix(x, y, cost_fn) / epsilon
        else:
            cost = Points.make(x, y, epsilon, cost_fn, n).matrix()
        return run(Dense(cost), a, b, epsilon, init, options)
    block_size = min(block_size, n)
    x, a, init = pad_rows(x, a, init, block_size)
    points = Points.make(x, y, epsilon, cost_fn, block_size)
    return crop_rows(run(points, a, b, epsilon, init, options), n)


@on_auto_axes
def with_weight(x, y, a, b):
    """Returns the points, those of zero weight moved onto one of their own with some.

    They take no part, and where they lie may not cost the others digits: squared
    distances are computed from the mean. No pair is new: at one, a cost may have no
    derivative.
    """

    def moved(points, weights):
        some, rows = weights > 0, jnp.arange(len(weights))
        # A least number and a sum: devices with rows of their own need not send them.
        first = rows == jnp.where(some, rows, len(rows)).min()
        one = jnp.where(first[:, None], jax.lax.stop_gradient(points), 0).sum(0)
        return jnp.where(some[:, None], points, one)

    return moved(x, a), moved(y, b)


def pad_rows(x, a, init, multiple):
    """Pads `x`, `a` and the row potentials with points of zero weight."""
    extra = -len(x) % multiple
    if not extra:
        return x, a, init
    # Copies of a real point: costs, and so potentials, stay as they are elsewhere.
    x = jnp.concatenate([x, jnp.broadcast_to(x[:1], (extra, x.shape[1]))])
    a = jnp.concatenate([a, jnp.zeros((extra,), a.dtype)])
    if init is not None:
        init = (jnp.concatenate([init[0], jnp.zeros((extra,), init[0].dtype)]), init[1])
    return x, a, init


def crop_rows(result: OTResult, n: int) -> OTResult:
    """Returns the result without the rows that `pad_rows` added."""
    (f, g), gibbs = result.potentials, result.coupling
    own_f, own_g = gibbs.potentials
    geometry = dataclasses.replace(gibbs.geometry, x=gibbs.geometry.x[:n])
    gibbs = Gibbs(geometry, (own_f[:n], own_g), gibbs.a[:n], gibbs.b)
    return result._replace(potentials=(f[:n], g), coupling=gibbs)


def run(geometry, a, b, epsilon, init, options: Options) -> OTResult:
    """Solves the problem of a geometry; the part that all entry points share.

    The geometry's costs are in units of epsilon; `init` and the result are not.
    """
    leaf = jax.tree.leaves(geometry)[0]
    dtype = jnp.promote_types(leaf.dtype, jnp.float32)
    a, b, epsilon = (jnp.asarray(v, dtype) for v in (a, b, epsilon))
    if options.grad == "none":
        geometry, a, b, epsilon = jax.lax.stop_gradient((geometry, a, b, epsilon))
    arrays = geometry, a, b, init
    geometry, a, b, init = vary_like(arrays, *arrays, epsilon)
    problem = Problem(a, b, options.tau_a, options.tau_b)
    if init is not None:
        init = tuple(jnp.asarray(v, dtype) / epsilon for v in init)
    envelope = options.grad != "unroll"
    held = (geometry, problem, init)
    if envelope:
        arrays, rest = (geometry, problem[:2], init), problem[2:]
        arrays = jax.lax.stop_gradient(arrays)
        held = (arrays[0], Problem(*arrays[1], *rest), arrays[2])
    f, g, n_iters = iterate(*held, options)
    totals = geometry.totals(f, g, problem, envelope)
    mass = totals.mass
    if options.of_product:
        mass -= geometry.sum(a.sum()) * b.sum()
    value = epsilon * (
        geometry.sum(_dual_term(f, a, options.tau_a))
        + _dual_term(g, b, options.tau_b)
        - mass
    )
    linear = epsilon * totals.linear
    # Held potentials are held in the caller's units.
    unit = jax.lax.stop_gradient(epsilon) if envelope else epsilon
    wanted = (
        target_marginal(a, f, options.tau_a),
        target_marginal(b, g, options.tau_b),
    )
    error = jnp.abs(totals.rows - wanted[0])
    error = geometry.sum(error.sum()) + jnp.abs(totals.columns - wanted[1]).sum()
    error = jax.lax.stop_gradient(error)
    mass = jnp.maximum(geometry.sum(a.sum()), b.sum())
    return OTResult(
        value=value,
        value_linear=linear,
        potentials=(unit * f, unit * g),
        marginal_error=error,
        n_iters=n_iters,
        # Comparisons that NaN fails.
        converged=(error <= options.threshold * mass)
        & jnp.isfinite(value + linear)
        & (epsilon > 0),
        coupling=held_plan(Gibbs(geometry, (f, g), a, b), options),
    )


def held_plan(coupling: Gibbs, options: Options) -> Gibbs:
    """Returns what a plan is made from, without a gradient unless it is unrolled.

    At held potentials the plan has another derivative than the plan of the problem.
    """
    return coupling if options.grad == "unroll" else jax.lax.stop_gradient(coupling)


def _dual_term(potential, weights, tau):
    if tau != 1.0:
        rho = tau / (1.0 - tau)
        potential = -rho * jnp.expm1(-potential / rho)
    return jnp.where(weights > 0, weights * potential, 0.0).sum()
