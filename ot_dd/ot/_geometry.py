"""What a Sinkhorn iteration needs of a cost: soft minima, fast steps, totals.

`Dense` holds the cost matrix; `Points` holds the points and computes the matrix a block
of rows at a time, on one device or with the rows split over a mesh axis. Both work
through blocks of rows: XLA writes out what a reduction reads, and a block of it stays in
a core's cache. Notation: `F(g)` is the soft minimum over columns, `G(f)` over rows,

    F(g)_i = -eps log sum_j b_j exp((g_j - C_ij) / eps),

and the plan of a pair of potentials is `P_ij = a_i b_j exp((f_i + g_j - C_ij) / eps)`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ot_dd import platform
from ot_dd.ot._costs import CostFn, cost_matrix

HIGHEST = jax.lax.Precision.HIGHEST
# Beyond exp(+-30) the entries that a float32 kernel has rounded to zero could matter.
_SAFE_LOG_SCALING = 30.0


class Problem(NamedTuple):
    """The numbers that define a problem beside its cost.

    Attributes:
      a: weights of the rows `[n]`.
      b: weights of the columns `[m]`.
      epsilon: entropic regularisation, scalar.
      tau_a: `rho / (rho + epsilon)` of the row marginal, 1 for a balanced problem.
      tau_b: the same of the column marginal.
    """

    a: jax.Array
    b: jax.Array
    epsilon: jax.Array
    tau_a: float
    tau_b: float


class Totals(NamedTuple):
    """Sums over a plan: its mass, `<P, C>` and its marginals `[n]` and `[m]`."""

    mass: jax.Array
    linear: jax.Array
    rows: jax.Array
    columns: jax.Array


def log_weights(weights: jax.Array) -> jax.Array:
    """Returns log weights, -inf for zero, with a finite gradient."""
    positive = weights > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, weights, 1.0)), -jnp.inf)


def target_marginal(weights, potential, epsilon, tau):
    """Returns what the marginal equals at the optimum: `w exp(-potential / rho)`."""
    if tau == 1.0:
        return weights
    exponent = -potential * (1.0 - tau) / (tau * epsilon)
    return weights * jnp.exp(jnp.where(weights > 0, exponent, 0.0))


def _log(total, weights):
    """Returns the log of sums, with 0 where a point has no weight."""
    return jnp.where(weights > 0, jnp.log(jnp.where(weights > 0, total, 1.0)), 0.0)


def _finite(top):
    return jnp.where(jnp.isfinite(top), top, 0.0)


class Geometry:
    """What `Dense` and `Points` share; they say what a block is and its cost."""

    axis: str | tuple[str, ...] | None

    def _blocks(self, *rows, size=None):
        size = size or self.block_size

        def split(v):
            return v.reshape(-1, size, *v.shape[1:])

        return jax.tree.map(split, (self._rows, *rows))

    def sum(self, value):
        """Returns the sum over the devices of what each has of the rows."""
        return value if self.axis is None else jax.lax.psum(value, self.axis)

    def rows(self, g, problem):
        """Returns `F(g)` `[n]`."""
        log_b = log_weights(problem.b)[None, :]

        @jax.checkpoint
        def one(block):
            scores = (g[None, :] - self._cost(block[0])) / problem.epsilon + log_b
            value = jax.nn.logsumexp(scores, axis=1)
            # Without mass (an empty class among padded ones) there is no soft
            # minimum: zero keeps everything finite.
            return jnp.where(jnp.isfinite(value), -problem.epsilon * value, 0.0)

        return jax.lax.map(one, self._blocks()).reshape(-1)

    def columns(self, f, problem):
        """Returns `G(f)` `[m]`, by a running maximum and sum over the blocks."""

        @jax.checkpoint
        def one(carry, block):
            top, total = carry
            rows, f, a = block
            scores = (f[:, None] - self._cost(rows)) / problem.epsilon
            scores = scores + log_weights(a)[:, None]
            new_top = jax.lax.stop_gradient(jnp.maximum(top, scores.max(0)))
            total = total * jnp.exp(top - _finite(new_top))
            total = total + jnp.exp(scores - _finite(new_top)[None, :]).sum(0)
            return (new_top, total), None

        m = problem.b.shape[0]
        start = (jnp.full((m,), -jnp.inf, f.dtype), jnp.zeros((m,), f.dtype))
        (top, total), _ = jax.lax.scan(one, start, self._blocks(f, problem.a))
        if self.axis is not None:
            highest = jax.lax.pmax(jax.lax.stop_gradient(top), self.axis)
            total = self.sum(total * jnp.exp(top - _finite(highest)))
            top = highest
        value = top + jnp.log(jnp.where(total > 0, total, 1.0))
        return jnp.where(total > 0, -problem.epsilon * value, 0.0)

    def totals(self, f, g, problem, envelope):
        """Returns the plan's `Totals`; with `envelope` only the mass moves the plan."""

        @jax.checkpoint
        def one(carry, block):
            rows, f, a = block
            cost = self._cost(rows)
            plan = _plan(cost, f, g, problem._replace(a=a))
            held = jax.lax.stop_gradient(plan) if envelope else plan
            sums = (plan.sum(), jnp.sum(held * cost), held.sum(0))
            return jax.tree.map(jnp.add, carry, sums), held.sum(1)

        zero = jnp.zeros((), g.dtype)
        (mass, linear, columns), rows = jax.lax.scan(
            one,
            (zero, zero, jnp.zeros_like(g)),
            self._blocks(f, problem.a, size=self._gradient_rows),
        )
        mass, linear, columns = self.sum((mass, linear, columns))
        return Totals(mass, linear, rows.reshape(-1), columns)

    def plan(self, f, g, problem):
        """Returns the plan `[n, m]`, all of it."""
        return _plan(self._cost(self._rows), f, g, problem)


def _plan(cost, f, g, problem):
    scores = (f[:, None] + g[None, :] - cost) / problem.epsilon
    scores += log_weights(problem.a)[:, None] + log_weights(problem.b)[None, :]
    return jnp.exp(scores)


# Entries of a block that a CPU's cache holds; elsewhere the whole matrix is a block.
_CACHED_ENTRIES = 2**20


def block_rows(n: int, m: int) -> int:
    """Returns how many rows of an `[n, m]` matrix to work on at a time."""
    wanted = max(1, _CACHED_ENTRIES // m)
    if platform.backend() != "cpu" or n <= wanted:
        return n
    divisor = max(k for k in range(1, wanted + 1) if n % k == 0)
    return divisor if 8 * divisor >= wanted else n


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense(Geometry):
    """A cost matrix `[n, m]` in memory."""

    cost: jax.Array
    axis = None

    @property
    def block_size(self):
        return block_rows(*self.cost.shape)

    @property
    def _gradient_rows(self):
        # The gradient of a matrix in memory is another one: blocks would gain nothing.
        return self.cost.shape[0]

    @property
    def _rows(self):
        return self.cost

    def _cost(self, rows):
        return rows

    def fast_steps(self, g, problem, repeat):
        """Runs iterations `g -> G(F(g))` as products with a stabilised kernel.

        The potentials at the start are absorbed, `K = exp((F(g) + g - C) / eps)`, so
        that every row and column of the kernel has an entry near one. Gradients may
        go through: a kernel is right whatever potentials it has absorbed.

        Args:
          g: column potentials `[m]`.
          problem: the problem.
          repeat: runs a body `state -> (state, error)`, see `_sinkhorn.py`.

        Returns:
          `(g, error, steps, ok)`: `ok` is false where the scalings left the range in
          which a kernel in this precision says the same as the log domain.
        """
        a, b, epsilon, tau_a, tau_b = problem
        base = jax.lax.stop_gradient(g)
        base_g = base / epsilon

        base_f = jax.lax.stop_gradient(self.rows(base, problem)) / epsilon
        scores = base_f[:, None] + base_g[None, :] - self.cost / epsilon
        kernel = jnp.exp(jnp.where(b[None, :] > 0, scores, -jnp.inf))
        blocks = jax.tree.map(
            lambda v: v.reshape(-1, self.block_size, *v.shape[1:]), (kernel, a, base_f)
        )

        def body(state):
            log_v, worst = state
            bv = b * jnp.exp(log_v)

            def one(q, block):  # Both products with a block while the cache holds it.
                kernel, a, base_f = block
                log_u = -tau_a * _log(jnp.matmul(kernel, bv, precision=HIGHEST), a)
                if tau_a != 1.0:
                    log_u += (tau_a - 1.0) * base_f
                u = jnp.where(a > 0, a * jnp.exp(log_u), 0.0)
                largest = jnp.max(jnp.where(a > 0, jnp.abs(log_u), 0.0))
                return q + jnp.matmul(u, kernel, precision=HIGHEST), largest

            q, largest = jax.lax.scan(one, jnp.zeros_like(b), blocks)
            wanted = target_marginal(b, base + epsilon * log_v, epsilon, tau_b)
            error = jnp.sum(jnp.abs(bv * q - wanted))
            log_v = -tau_b * _log(q, b)
            if tau_b != 1.0:
                log_v += (tau_b - 1.0) * base_g
            log_v = jnp.where(b > 0, log_v, 0.0)
            drift = jnp.maximum(largest.max(), jnp.abs(log_v).max())
            # A comparison that a NaN fails: it must not look safe.
            worst = jnp.where(drift < _SAFE_LOG_SCALING, worst, jnp.inf)
            return (log_v, worst), error

        start = ((g - base) / epsilon, jnp.zeros((), g.dtype))
        (log_v, worst), error, steps = repeat(body, start)
        return base + epsilon * log_v, error, steps, jnp.isfinite(worst)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["x", "y"],
    meta_fields=["cost_fn", "block_size", "axis"],
)
@dataclasses.dataclass(frozen=True)
class Points(Geometry):
    """Points `x [n, d]` and `y [m, d]`; the cost exists `block_size` rows at a time.

    `n` is a multiple of `block_size`. Within `shard_map`, `axis` names the mesh axis
    over which the rows are split: sums over rows are then all-reduced.
    """

    x: jax.Array
    y: jax.Array
    cost_fn: CostFn
    block_size: int
    axis: str | tuple[str, ...] | None = None

    @property
    def _gradient_rows(self):
        return self.block_size

    @property
    def _rows(self):
        return self.x

    def _cost(self, rows):
        return cost_matrix(rows, self.y, self.cost_fn)

    def fast_steps(self, g, problem, repeat):
        """Runs iterations `g -> G(F(g))` in one pass over the blocks each.

        A block's exponentials, taken for the rows' soft minimum, are the plan's
        entries up to a factor of each row, so that they give the column sums too: one
        exponential an entry and, over a mesh, one sum of a vector `[m]`. Arguments
        and results are `Dense.fast_steps`'s.
        """
        _, b, epsilon, tau_a, tau_b = problem
        log_b = log_weights(b)[None, :]

        def body(state):
            g, safe = state

            @jax.checkpoint
            def one(columns, block):
                x, a = block
                scores = (g[None, :] - self._cost(x)) / epsilon + log_b
                top = _finite(jax.lax.stop_gradient(scores.max(1)))
                entries = jnp.exp(scores - top[:, None])
                total = entries.sum(1)
                total = jnp.where(total > 0, total, 1.0)
                weight = a / total
                if tau_a != 1.0:  # The row sums are a exp((f - F(g)) / eps).
                    weight *= jnp.exp((1.0 - tau_a) * (top + jnp.log(total)))
                weight = jnp.where(a > 0, weight, 0.0)
                return columns + jnp.matmul(weight, entries, precision=HIGHEST), None

            columns, _ = jax.lax.scan(one, jnp.zeros_like(g), self._blocks(problem.a))
            columns = self.sum(columns)
            wanted = target_marginal(b, g, epsilon, tau_b)
            error = jnp.sum(jnp.abs(columns - wanted))
            tiny = 100 * jnp.finfo(g.dtype).tiny
            good = jnp.all(jnp.where(b > 0, (columns > tiny) & (columns < 1e30), True))
            ratio = _log(columns, b) - jnp.where(b > 0, log_b[0], 0.0)
            new_g = tau_b * (g - epsilon * ratio)
            return (jnp.where(b > 0, new_g, g), safe & good), error

        (g, safe), error, steps = repeat(body, (g, jnp.asarray(True)))
        return g, error, steps, safe
