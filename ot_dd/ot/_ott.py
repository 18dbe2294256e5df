"""ott-jax as the second solver: its low-rank Sinkhorn and its geometries."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ott.geometry.costs import CostFn as OttCost
from ott.geometry.geometry import Geometry
from ott.geometry.pointcloud import PointCloud
from ott.solvers import linear

from ot_dd.explicit import on_auto_axes
from ot_dd.ot import _checks
from ot_dd.ot._geometry import target_marginal


class Ott(NamedTuple):
    """The plan of an ott-jax output."""

    output: Any

    def matrix(self) -> jax.Array:
        return self.output.matrix


def point_cloud(x, y, cost_fn) -> Geometry | None:
    """Returns ott-jax's geometry of an ott-jax cost, None for any other cost."""
    if not isinstance(cost_fn, OttCost):
        return None
    dtype = jnp.result_type(x, y, jnp.float32)
    return PointCloud(x.astype(dtype), y.astype(dtype), cost_fn=cost_fn)


@on_auto_axes
def solve(cost, a, b, epsilon, options, init, ott_options, make_result):
    """Solves by `ott.solvers.linear.solve`; arguments as `ot.solve` has them."""
    if not isinstance(cost, Geometry):
        _checks.cost(cost)
        cost = cost.astype(jnp.promote_types(cost.dtype, jnp.float32))
        cost = Geometry(cost_matrix=cost)
    a, b = _checks.weights(
        a, b, *cost.shape, cost.dtype, options.tau_a == options.tau_b == 1.0
    )
    if init is not None:
        raise ValueError(
            "init must be None with solver='ott', found potentials; "
            "pass ott-jax's own `initializer`"
        )
    low_rank = ott_options.get("rank", -1) > 0
    geometry = cost.copy_epsilon(Geometry(epsilon=epsilon))
    if options.grad == "none":
        geometry, a, b = jax.lax.stop_gradient((geometry, a, b))
    limits = {"threshold": options.threshold, "max_iterations": options.max_iters}
    if options.num_iters is not None:
        # No error is below zero: so many iterations are run. An equal minimum would say
        # that too, but through ott-jax's fixed loop unrolled gradients come out wrong.
        limits = {"threshold": 0.0, "inner_iterations": 1, "min_iterations": 0}
        limits["max_iterations"] = options.num_iters
    if low_rank:
        limits |= {"epsilon": epsilon}
    elif options.grad == "unroll":
        limits |= {"implicit_diff": None, "use_danskin": False}
    else:
        limits |= {"use_danskin": True}
    output = linear.solve(
        geometry, a, b, tau_a=options.tau_a, tau_b=options.tau_b,
        **(limits | ott_options),
    )  # fmt: skip
    potentials = None
    if not low_rank:

        def unweighted(potential, weights):  # Theirs contain the log weights.
            positive = weights > 0
            log = jnp.log(jnp.where(positive, weights, 1.0))
            return jnp.where(positive, potential - epsilon * log, 0.0)

        potentials = unweighted(output.f, a), unweighted(output.g, b)
    wanted = a, b
    if not low_rank:  # What the marginals of an unbalanced problem would be.
        wanted = tuple(
            target_marginal(weights, potential / epsilon, tau)
            for weights, potential, tau in zip(
                (a, b),
                (output.f, output.g),
                (options.tau_a, options.tau_b),
                strict=True,
            )
        )
    marginals = output.marginal(1), output.marginal(0)
    error = sum(jnp.abs(m - w).sum() for m, w in zip(marginals, wanted, strict=True))
    error = jax.lax.stop_gradient(error)
    mass = jnp.maximum(a.sum(), b.sum())
    return make_result(
        value=output.reg_ot_cost,
        value_linear=output.primal_cost,
        potentials=potentials,
        marginal_error=error,
        n_iters=output.n_iters,
        converged=(error <= options.threshold * mass) & jnp.isfinite(error)
        if not low_rank or options.tau_a == options.tau_b == 1.0
        else output.converged,
        coupling=Ott(output),
    )
