"""The loops of Sinkhorn's algorithm over a geometry: fixed length or until converged."""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ot_dd.ot._geometry import target_marginal

# Fast iterations between two absorptions of the potentials. A kernel costs as much as
# some ten products with it, and a chunk that left the safe range is run again in the log
# domain. Potentials move most in the first iterations: they are a chunk of their own.
FIRST_CHUNK, CHUNK = 8, 40


def _chunks(count: int) -> list[int]:
    """Splits a number of fast iterations into chunks."""
    if count <= 2 * FIRST_CHUNK:
        return [count] if count else []
    rest = count - FIRST_CHUNK
    pieces = math.ceil(rest / CHUNK)
    return [FIRST_CHUNK] + [(rest + i) // pieces for i in range(pieces)]


class Options(NamedTuple):
    """The static choices of a solve; see `solve`."""

    num_iters: int | None
    threshold: float
    max_iters: int
    tau_a: float
    tau_b: float
    grad: str
    method: str
    masked: bool  # Whether columns may have zero weight.


def iterate(geometry, problem, init, options):
    """Returns `(f, g, n_iters)` after N times `g = G(f)`, `f = F(g)`.

    Written as one G, then N - 1 times `g -> G(F(g))`, then one F. The G and the F are
    taken in the log domain, so that a kernel starts from potentials that fit; so is the
    last iteration where columns may have zero weight: it gives those their potentials.
    """
    tau_a, tau_b = options.tau_a, options.tau_b
    f = jnp.zeros_like(problem.a) if init is None else init[0]

    def log_steps(g, repeat):
        @jax.checkpoint
        def body(g):
            f = tau_a * geometry.rows(g, problem)
            soft_min = geometry.columns(f, problem)
            # Under (f, g) the column sums are b exp((g - G(f)) / eps).
            moved = jnp.where(problem.b > 0, g - soft_min, 0.0)
            sums = problem.b * jnp.exp(moved / problem.epsilon)
            wanted = target_marginal(problem.b, g, problem.epsilon, tau_b)
            error = jnp.sum(jnp.abs(sums - wanted))
            return tau_b * soft_min, error

        return repeat(body, g)

    def chunk(g, repeat):
        """Returns `(g, error, steps)` after the iterations that `repeat` runs."""
        method = options.method
        if method == "auto" and options.grad == "unroll":
            method = "log"
        if method == "log":
            return log_steps(g, repeat)
        fast_g, error, steps, ok = geometry.fast_steps(g, problem, repeat)
        if method == "kernel":
            return jnp.where(ok, fast_g, g), error, steps

        # A loop of no or all iterations, not a branch: under vmap a branch would run
        # for every problem of the batch.
        def again(state):
            return log_steps(state[0], repeat) + (jnp.asarray(True),)

        kept = (jnp.where(ok, fast_g, g), error, steps, ok)
        return jax.lax.while_loop(lambda state: ~state[3], again, kept)[:3]

    g = tau_b * geometry.columns(f, problem)
    if options.num_iters is not None:
        # Runs of equal chunks share a program.
        fast = max(options.num_iters - 1 - options.masked, 0)
        for length, run_ in itertools.groupby(_chunks(fast)):
            step = functools.partial(_repeat_exactly, length)
            g = jax.lax.fori_loop(
                0, len(list(run_)), lambda _, g, step=step: chunk(g, step)[0], g
            )
        if options.masked and options.num_iters > 1:
            g = log_steps(g, functools.partial(_repeat_exactly, 1))[0]
        return tau_a * geometry.rows(g, problem), g, jnp.asarray(options.num_iters)

    mass = jnp.maximum(geometry.sum(problem.a.sum()), problem.b.sum())
    limit = options.threshold * mass
    last = options.masked and options.max_iters > 1
    most = max(options.max_iters - 1 - last, 0)

    def going(state):
        _, error, step = state
        return (step < most) & ~(error <= limit)

    def more(state):
        g, _, step = state
        length = jnp.where(step == 0, FIRST_CHUNK, CHUNK)
        length = jnp.minimum(length, most - step)
        g, error, steps = chunk(g, functools.partial(_repeat_until, length, limit))
        return g, error, step + steps

    start = (g, jnp.asarray(jnp.inf, g.dtype), jnp.asarray(0))
    g, _, step = jax.lax.while_loop(going, more, start)
    if last:
        g = log_steps(g, functools.partial(_repeat_exactly, 1))[0]
    return tau_a * geometry.rows(g, problem), g, step + 1 + last


def _repeat_exactly(length, body, state):
    """Runs `body` `length` times; returns its state, error and the count."""
    error = jnp.zeros((), jax.tree.leaves(state)[0].dtype)
    state, error = jax.lax.fori_loop(
        0, length, lambda _, carry: body(carry[0]), (state, error)
    )
    return state, error, jnp.asarray(length)


def _repeat_until(length, limit, body, state):
    """Runs `body` until the error is at most `limit`, `length` times at the most."""

    def going(carry):
        _, error, step = carry
        return (step < length) & ~(error <= limit)

    def more(carry):
        state, _, step = carry
        return *body(state), step + 1

    error = jnp.asarray(jnp.inf, jax.tree.leaves(state)[0].dtype)
    return jax.lax.while_loop(going, more, (state, error, jnp.asarray(0)))
