"""Ground costs between two point clouds."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ot_dd.explicit import on_auto_axes
from ot_dd.vma import vary_like

CostFn = str | Callable[[jax.Array, jax.Array], jax.Array]


def _squared_euclidean(x, y):
    # |x|^2 - 2 x y + |y|^2 as one matrix product: a sum of three would write out a
    # second matrix. The clip removes the small negative values that cancellation
    # leaves for near-equal points.
    # Near the origin little is left to cancel.
    centre = jax.lax.stop_gradient(y.mean(0))
    x, y = x - centre, y - centre

    def extend(v, *columns):
        return jnp.concatenate([v, *(c[:, None] for c in columns)], axis=1)

    one_x, one_y = jnp.ones_like(x[:, 0]), jnp.ones_like(y[:, 0])
    left = extend(-2.0 * x, jnp.sum(x * x, axis=1), one_x)
    right = extend(y, one_y, jnp.sum(y * y, axis=1))
    product = jnp.matmul(left, right.T, precision=jax.lax.Precision.HIGHEST)
    return product + jax.lax.stop_gradient(jnp.maximum(-product, 0.0))


# Terms of a sum written out in one step of a loop: XLA's CPU compiler makes one wide,
# threaded loop of them (at 8 terms it does not, and takes five times as long).
_UNROLL = 16


def _in_steps(v):
    """Returns `[k, d]` as `[k / 16, 16, d]`, padded with zeros."""
    v = jnp.pad(v, ((0, -v.shape[0] % _UNROLL), (0, 0)))
    return v.reshape(-1, _UNROLL, v.shape[1])


# Inlined where a program is traced; called eagerly, its loops are compiled once.
_once = functools.partial(jax.jit, inline=True)


@_once
def _l1_plain(x, y):
    def on_cpu(x, y):
        def add(total, columns):
            terms = (jnp.abs(p[:, None] - q[None, :]) for p, q in zip(*columns))
            return total + sum(terms), None

        start = vary_like(jnp.zeros((x.shape[0], y.shape[0]), x.dtype), x, y)
        return jax.lax.scan(add, start, (_in_steps(x.T), _in_steps(y.T)))[0]

    def fused(x, y):
        return jnp.sum(jnp.abs(x[:, None, :] - y[None, :, :]), axis=-1)

    return jax.lax.platform_dependent(x, y, cpu=on_cpu, default=fused)


# Its forward rule is not itself: forward mode over the gradient then goes through.
_l1 = jax.custom_vjp(_l1_plain)


def _l1_forward(x, y):
    return _l1_plain(x, y), (x, y)


@_once
def _l1_backward(points, weight):
    # Differentiated as it stands, the cost would keep its signs, [n, m, d] of them:
    # here they are made and used in place.
    x, y = points

    def on_cpu(x, y, weight):
        def add(total, rows):
            terms = (w[:, None] * jnp.sign(x - q[None, :]) for q, w in zip(*rows))
            return total + sum(terms), None

        start = vary_like(jnp.zeros_like(x), x, y, weight)
        return jax.lax.scan(add, start, (_in_steps(y), _in_steps(weight.T)))[0]

    def fused(x, y, weight):
        signs = jnp.sign(x[:, None, :] - y[None, :, :])
        return jnp.sum(weight[:, :, None] * signs, axis=1)

    def pull(x, y, weight):
        return jax.lax.platform_dependent(x, y, weight, cpu=on_cpu, default=fused)

    return pull(x, y, weight), pull(y, x, weight.T)


_l1.defvjp(_l1_forward, _l1_backward)


def _mean_l1(x, y):
    return _l1(x, y) / x.shape[1]


def _cosine(x, y):
    def unit(v):
        square = jnp.sum(v * v, axis=1, keepdims=True)
        # A zero vector has no direction: cosine 0, and no gradient.
        some = square > 1e-24
        return jnp.where(some, v * jax.lax.rsqrt(jnp.where(some, square, 1.0)), 0.0)

    return 1.0 - jnp.matmul(unit(x), unit(y).T, precision=jax.lax.Precision.HIGHEST)


_COSTS = {
    "sqeuclidean": _squared_euclidean,
    "l1": _l1,
    "mean_l1": _mean_l1,
    "cosine": _cosine,
}
COST_NAMES = tuple(_COSTS)
# Of the costs that are homogeneous: c(s x, s y) = s^degree c(x, y).
DEGREES = {"sqeuclidean": 2, "l1": 1, "mean_l1": 1}


@on_auto_axes
def cost_matrix(x: jax.Array, y: jax.Array, cost_fn: CostFn) -> jax.Array:
    """Returns the cost of moving each row of `x` to each row of `y`.

    Costs are computed in float32 (or float64 inputs' own type) with matrix products
    at the highest precision: Sinkhorn at a small epsilon does not converge on
    bfloat16 costs.

    Args:
      x: points `[n, d]`.
      y: points `[m, d]`.
      cost_fn: `"sqeuclidean"`, `"l1"`, `"mean_l1"` (l1 divided by `d`), `"cosine"`
        (one minus the cosine), an ott-jax `CostFn`, or any function of two points
        `[d]` giving a scalar, which may close over no array on Explicit mesh axes
        (nor, with `block_size`, over one that is differentiated). The l1 costs have
        reverse-mode gradients, and forward mode over those.

    Returns:
      The cost matrix `[n, m]`.

    Raises:
      ValueError: for an unknown name or clouds that are not `[n, d]` and `[m, d]`.
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"x and y must be [n, d] and [m, d], found {x.shape} and {y.shape}"
        )
    dtype = jnp.result_type(x, y, jnp.float32)
    x, y = vary_like((x.astype(dtype), y.astype(dtype)), x, y)
    if callable(cost_fn):
        with jax.default_matmul_precision("highest"):
            return jax.vmap(lambda p: jax.vmap(lambda q: cost_fn(p, q))(y))(x)
    if cost_fn not in _COSTS:
        raise ValueError(
            f"cost_fn must be callable or one of {tuple(_COSTS)}, found {cost_fn!r}"
        )
    return _COSTS[cost_fn](x, y)
