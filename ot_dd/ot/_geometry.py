"""What a Sinkhorn iteration needs of a cost: soft minima, fast steps, totals.

`Dense` holds the cost matrix; `Points` holds the points and computes the matrix a block
of rows at a time, on one device or with the rows split over a mesh axis. Both work
through blocks of rows: XLA writes out what a reduction reads, and a block of it stays in
a core's cache. Costs and potentials are in units of epsilon here: a division in every
pass would be a matrix more. Notation: `F(g)` is the soft minimum over columns, `G(f)` over
rows,

    F(g)_i = -log sum_j b_j exp(g_j - C_ij),

and the plan of a pair of potentials is `P_ij = a_i b_j exp(f_i + g_j - C_ij)`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ot_dd import platform
from ot_dd.ot._costs import DEGREES, CostFn, cost_matrix
from ot_dd.vma import vary_like

HIGHEST = jax.lax.Precision.HIGHEST
# Beyond exp(+-30) the entries that a float32 kernel has rounded to zero could matter.
_SAFE_SCALING = math.exp(30.0)


class Problem(NamedTuple):
    """The numbers that define a problem beside its cost.

    Attributes:
      a: weights of the rows `[n]`.
      b: weights of the columns `[m]`.
      tau_a: `rho / (rho + epsilon)` of the row marginal, 1 for a balanced problem.
      tau_b: the same of the column marginal.
    """

    a: jax.Array
    b: jax.Array
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


def target_marginal(weights, potential, tau):
    """Returns what the marginal equals at the optimum: `w exp(-potential / rho)`."""
    if tau == 1.0:
        return weights
    exponent = -potential * (1.0 - tau) / tau
    return weights * jnp.exp(jnp.where(weights > 0, exponent, 0.0))


def _scaling(total, tau, base, weights):
    """Returns `total^-tau`, the base's own decay for an unbalanced problem included.

    It is 1 where a point has no weight or nothing is left.
    """
    positive = (weights > 0) & (total > 0)
    total = jnp.where(positive, total, 1.0)
    if tau == 1.0:
        return 1.0 / total
    scaling = jnp.exp(-tau * jnp.log(total) + (tau - 1.0) * base)
    return jnp.where(positive, scaling, 1.0)


def _safe(total, scaling, weights):
    """Tells whether what the points with weight have is in range; a NaN is not."""
    good = (total > 0) & (scaling > 1 / _SAFE_SCALING) & (scaling < _SAFE_SCALING)
    return jnp.all(good | ~(weights > 0))


def _log(total, weights):
    """Returns the log of sums, with 0 where a point has no weight or nothing is left."""
    positive = (weights > 0) & (total > 0)
    return jnp.where(positive, jnp.log(jnp.where(positive, total, 1.0)), 0.0)


def _finite(top):
    return jnp.where(jnp.isfinite(top), top, 0.0)


def _scan(body, carry, blocks):
    """`jax.lax.scan` without the loop for a single block: XLA fuses across its edge."""
    carry = vary_like(carry, blocks)
    if jax.tree.leaves(blocks)[0].shape[0] > 1:
        return jax.lax.scan(body, carry, blocks)
    carry, out = body(carry, jax.tree.map(lambda v: v[0], blocks))
    return carry, jax.tree.map(lambda v: v[None], out)


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
        # Without mass (an empty class among padded ones) there is no soft minimum:
        # zero, and not the gradient of a sum over nothing, keeps everything finite.
        any_mass = jnp.any(problem.b > 0)
        log_b = jnp.where(any_mass, log_weights(problem.b), 0.0)
        # One vector: on a CPU every further operand of the large sum is a matrix more.
        shift = g + log_b

        @jax.checkpoint
        def one(_, block):
            value = jax.nn.logsumexp(shift[None, :] - self._cost(block[0]), axis=1)
            return None, jnp.where(any_mass, -value, 0.0)

        return _scan(one, None, self._blocks())[1].reshape(-1)

    def columns(self, f, problem):
        """Returns `G(f)` `[m]`, by a running maximum and sum over the blocks."""

        @jax.checkpoint
        def one(carry, block):
            top, total = carry
            rows, f, a = block
            scores = (f + log_weights(a))[:, None] - self._cost(rows)
            new_top = jax.lax.stop_gradient(jnp.maximum(top, scores.max(0)))
            total = total * jnp.exp(top - _finite(new_top))
            total = total + jnp.exp(scores - _finite(new_top)[None, :]).sum(0)
            return (new_top, total), None

        m = problem.b.shape[0]
        start = (jnp.full((m,), -jnp.inf, f.dtype), jnp.zeros((m,), f.dtype))
        (top, total), _ = _scan(one, start, self._blocks(f, problem.a))
        if self.axis is not None:
            highest = jax.lax.pmax(jax.lax.stop_gradient(top), self.axis)
            total = self.sum(total * jnp.exp(top - _finite(highest)))
            top = highest
        value = top + jnp.log(jnp.where(total > 0, total, 1.0))
        return jnp.where(total > 0, -value, 0.0)

    def totals(self, f, g, problem, envelope):
        """Returns the plan's `Totals`; with `envelope` only the mass moves the plan."""

        @jax.checkpoint
        def one(carry, block):
            rows, f, a = block
            cost = self._cost(rows)
            plan = _plan(cost, f, g, problem._replace(a=a))
            held = jax.lax.stop_gradient(plan) if envelope else plan
            # Row by row first, behind a barrier: a sum to a scalar is one thread's, and
            # XLA would make one of two.
            rows, linear = jax.lax.optimization_barrier(
                # A pair of infinite cost is one without mass, not NaN.
                (plan.sum(1), jnp.sum(held * jnp.where(plan > 0, cost, 0.0), axis=1))
            )
            sums = (rows.sum(), linear.sum(), held.sum(0))
            rows = jax.lax.stop_gradient(rows) if envelope else rows
            return jax.tree.map(jnp.add, carry, sums), rows

        zero = jnp.zeros((), g.dtype)
        (mass, linear, columns), rows = _scan(
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
    rows, columns = f + log_weights(problem.a), g + log_weights(problem.b)
    return jnp.exp(rows[:, None] + (columns[None, :] - cost))


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
    """A cost matrix `[n, m]` in memory, in units of epsilon."""

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

        The potentials at the start are absorbed, `K = exp(F(g) + g - C)`, so
        that every row and column of the kernel has an entry near one. Gradients may
        go through: a kernel is right whatever potentials it has absorbed.

        Args:
          g: column potentials `[m]`.
          problem: the problem.
          repeat: runs a body `state -> (state, error, safe)`, see `_iterations.py`;
            not safe is a state whose scalings left the range in which a kernel in this
            precision says the same as the log domain.

        Returns:
          `(g, error, steps, ok)`.
        """
        a, b, tau_a, tau_b = problem
        base_g = jax.lax.stop_gradient(g)
        base_f = jax.lax.stop_gradient(self.rows(base_g, problem))
        columns = jnp.where(b > 0, base_g, -jnp.inf)
        kernel = jnp.exp(base_f[:, None] + (columns[None, :] - self.cost))
        blocks = jax.tree.map(
            lambda v: v.reshape(-1, self.block_size, *v.shape[1:]), (kernel, a, base_f)
        )

        def body(v):
            bv = b * v

            def one(q, block):  # Both products with a block while the cache holds it.
                kernel, a, base_f = block
                p = jnp.matmul(kernel, bv, precision=HIGHEST)
                u = _scaling(p, tau_a, base_f, a)
                return q + jnp.matmul(a * u, kernel, precision=HIGHEST), (p, u)

            q, (p, u) = _scan(one, jnp.zeros_like(b), blocks)
            wanted = target_marginal(b, base_g + jnp.log(v), tau_b)
            error = jnp.sum(jnp.abs(bv * q - wanted))
            v = _scaling(q, tau_b, base_g, b)
            safe = _safe(p.reshape(-1), u.reshape(-1), a) & _safe(q, v, b)
            return v, error, safe

        v, error, steps, ok = repeat(body, jnp.exp(g - base_g))
        return base_g + jnp.log(v), error, steps, ok


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["x", "y", "unit"],
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
    unit: jax.Array | None  # What the cost of the points is divided by.
    cost_fn: CostFn
    block_size: int
    axis: str | tuple[str, ...] | None = None

    @classmethod
    def make(cls, x, y, epsilon, cost_fn, block_size, axis=None):
        """Returns points whose costs are in units of epsilon.

        Where the cost is homogeneous the points are scaled, not every entry of it.
        """
        degree = DEGREES.get(cost_fn)
        if degree is not None:
            scale = epsilon ** (-1.0 / degree)
            x, y, epsilon = scale * x, scale * y, None
        return cls(x, y, epsilon, cost_fn, block_size, axis)

    @property
    def _gradient_rows(self):
        return self.block_size

    @property
    def _rows(self):
        return self.x

    def _cost(self, rows):
        cost = cost_matrix(rows, self.y, self.cost_fn)
        return cost if self.unit is None else cost / self.unit

    def matrix(self):
        """Returns the cost matrix `[n, m]`."""
        return self._cost(self.x)

    def fast_steps(self, g, problem, repeat):
        """Runs iterations `g -> G(F(g))` in one pass over the blocks each.

        A block's exponentials, taken for the rows' soft minimum, are the plan's
        entries up to a factor of each row, so that they give the column sums too: one
        exponential an entry and, over a mesh, one sum of a vector `[m]`. Arguments
        and results are `Dense.fast_steps`'s.
        """
        _, b, tau_a, tau_b = problem
        log_b = log_weights(b)

        @jax.checkpoint  # One pass's residuals at a time when it is unrolled.
        def body(g):
            shift = g + log_b

            @jax.checkpoint
            def one(columns, block):
                x, a = block
                scores = shift[None, :] - self._cost(x)
                top = _finite(jax.lax.stop_gradient(scores.max(1)))
                entries = jnp.exp(scores - top[:, None])
                total = entries.sum(1)
                total = jnp.where(total > 0, total, 1.0)
                weight = a / total
                if tau_a != 1.0:  # The row sums are a exp(f - F(g)).
                    weight *= jnp.exp((1.0 - tau_a) * (top + jnp.log(total)))
                weight = jnp.where(a > 0, weight, 0.0)
                return columns + jnp.matmul(weight, entries, precision=HIGHEST), None

            columns, _ = _scan(one, jnp.zeros_like(g), self._blocks(problem.a))
            columns = self.sum(columns)
            wanted = target_marginal(b, g, tau_b)
            error = jnp.sum(jnp.abs(columns - wanted))
            tiny = 100 * jnp.finfo(g.dtype).tiny
            good = jnp.all(jnp.where(b > 0, (columns > tiny) & (columns < 1e30), True))
            ratio = _log(columns, b) - jnp.where(b > 0, log_b, 0.0)
            new_g = tau_b * (g - ratio)
            return jnp.where(b > 0, new_g, g), error, good

        return repeat(body, g)
