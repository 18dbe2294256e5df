"""The transport term of guided sampling: a Sinkhorn distance to real latents."""

import jax
import jax.numpy as jnp

from ot_dd import ot
from ot_dd.explicit import on_auto_axes

EPSILON_UNITS = ("absolute", "mean_cost")


@on_auto_axes
def transport_guidance(
    points: jax.Array,
    real: jax.Array,
    real_weights: jax.Array,
    *,
    memory_cost: jax.Array,
    filled: jax.Array,
    cost_fn: ot.CostFn = "mean_l1",
    epsilon: float | jax.Array = 0.1,
    epsilon_unit: str = "absolute",
    num_iters: int = 20,
    init: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, ot.OTResult]:
    """Returns the gradient in `points` of the distance of a growing set to real ones.

    The synthetic side holds the finished latents of a class and the current ones,
    equally weighted. The plan is held fixed (envelope theorem), and the gradient is
    that per unit of mass, so that it does not shrink as a class fills up.

    Args:
      points: current latents `[g, d]`.
      real: real latents `[m, d]`.
      real_weights: their weights `[m]`, zero for padding; they sum to one.
      memory_cost: cost rows of the finished latents `[n, m]`; they do not change and
        so are not computed again.
      filled: one for each slot of the memory that is in use, else zero `[n]`.
      cost_fn: ground cost, see `ot.cost_matrix`.
      epsilon: entropic regularisation, in units of `epsilon_unit`.
      epsilon_unit: `"absolute"`, or `"mean_cost"`: the weighted mean of the costs.
      num_iters: Sinkhorn iterations.
      init: potentials `(f [n + g], g [m])` to start from.

    Returns:
      The gradient `[g, d]`, and the `ot.OTResult`: `value_linear` is the distance.

    Raises:
      ValueError: for an unknown epsilon unit.
    """
    if epsilon_unit not in EPSILON_UNITS:
        raise ValueError(
            f"epsilon_unit must be one of {EPSILON_UNITS}, found {epsilon_unit!r}"
        )
    # Narrow types would not count some hundreds of slots.
    filled = filled.astype(jnp.promote_types(filled.dtype, jnp.float32))
    weights = jnp.concatenate([filled, jnp.ones(len(points), filled.dtype)])
    weights = weights / weights.sum()

    def distance(points):
        cost = ot.cost_matrix(points, real, cost_fn)
        cost = jnp.concatenate([memory_cost, cost], axis=0)
        scale = epsilon
        if epsilon_unit == "mean_cost":
            mean = jnp.einsum("n,nm,m->", weights, cost, real_weights)
            tiny = jnp.finfo(cost.dtype).tiny ** 0.5  # Identical points have no scale.
            scale = scale * jnp.maximum(jax.lax.stop_gradient(mean), tiny)
        result = ot.solve(
            cost, weights, real_weights, epsilon=scale, num_iters=num_iters, init=init
        )
        return result.value_linear, result

    gradient, result = jax.grad(distance, has_aux=True)(points)
    return gradient / weights[-1], result
