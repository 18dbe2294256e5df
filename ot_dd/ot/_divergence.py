"""The debiased Sinkhorn divergence (Genevay et al. 2018; Feydy et al. 2019)."""

from typing import Any

import jax

from ot_dd.ot._costs import CostFn
from ot_dd.ot._iterations import Options
from ot_dd.ot._sinkhorn import checked_sample

# What `solve_sample` has of `Options`.
_OPTIONS = set(Options._fields) - {"masked", "of_product"}


def sinkhorn_divergence(
    x: jax.Array,
    y: jax.Array,
    a: jax.Array | None = None,
    b: jax.Array | None = None,
    *,
    cost_fn: CostFn = "sqeuclidean",
    epsilon: float | jax.Array,
    has_aux: bool = False,
    **options: Any,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Returns `OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2`, each regularised by epsilon.

    Zero for equal measures, and a squared distance of the means (for a squared cost)
    as epsilon grows. Unbalanced problems (`tau_a` = `tau_b` below 1) also have
    `epsilon / 2 (m_x - m_y)^2` of the two masses (Sejourne et al. 2019), which makes up
    for the three values' `epsilon` times a product of masses: neither is computed.

    Args:
      x: points `[n, d]`.
      y: points `[m, d]`.
      a: weights `[n]`, default uniform.
      b: weights `[m]`, default uniform.
      cost_fn: see `cost_matrix`.
      epsilon: entropic regularisation, in units of the cost.
      has_aux: whether to return, too, whether all three problems converged, as
        `jax.value_and_grad(..., has_aux=True)` takes it.
      **options: the keywords of `solve_sample`, but for `init`: it is three problems.

    Returns:
      The divergence, scalar, with a gradient in `x`, `y`, `a` and `b`. In float32 it
      loses some 1e-7 of the three values, which grow with epsilon, the masses and their
      logarithm and, with squared costs, with the points' squared distances from their
      mean. With `has_aux` a pair of it and a boolean scalar.

    Raises:
      ValueError: see `solve`; also for `tau_a` and `tau_b` that differ, or
        are below 1 with `solver="ott"`.
    """
    if options.get("init") is not None:
        raise ValueError("init must be None: a divergence solves three problems")
    taus = options.get("tau_a", 1.0), options.get("tau_b", 1.0)
    if taus[0] != taus[1]:
        raise ValueError(
            f"tau_a and tau_b must be equal, found {taus}: a divergence has one penalty"
        )
    if taus != (1.0, 1.0) and options.get("solver") == "ott":
        raise ValueError(
            "solver must be 'sinkhorn' in an unbalanced divergence: ott-jax's problem "
            "has another penalty, which does not cancel"
        )
    own = {name: options.pop(name) for name in _OPTIONS if name in options}
    own = Options(**own, of_product=False)
    options |= {"cost_fn": cost_fn, "epsilon": epsilon}
    problems = (x, y, a, b), (x, x, a, a), (y, y, b, b)
    cross, self_x, self_y = (checked_sample(*each, own, **options) for each in problems)
    divergence = cross.value - 0.5 * (self_x.value + self_y.value)
    if has_aux:
        return divergence, cross.converged & self_x.converged & self_y.converged
    return divergence
