"""The loops of Sinkhorn's algorithm over a geometry: fixed length or until converged."""

from __future__ import annotations

import contextlib
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ot_dd.ot._geometry import target_marginal
from ot_dd.vma import vary_like

# A kernel costs as much as some ten products with it: where it serves for fewer than
# so many iterations, potentials move too fast, and the next ones are in the log domain.
WORTH = 8
# Unrolled, a kernel serves for a fixed number of iterations: for fewer at first, when
# potentials move most.
FIRST_CHUNK, CHUNK = 8, 40


def _chunks(count: int) -> list[int]:
    """Splits a number of unrolled fast iterations into chunks."""
    if count <= 2 * FIRST_CHUNK:
        return [count] if count else []
    rest = count - FIRST_CHUNK
    pieces = math.ceil(rest / CHUNK)
    return [FIRST_CHUNK] + [(rest + i) // pieces for i in range(pieces)]


class Options(NamedTuple):
    """The static choices of a solve; see `solve`."""

    num_iters: int | None = None
    threshold: float = 1e-3
    max_iters: int = 2000
    tau_a: float = 1.0
    tau_b: float = 1.0
    grad: str = "envelope"
    method: str = "auto"
    masked: bool = False  # Whether columns may have zero weight.
    # Whether the value has `epsilon sum(a) sum(b)` in it: where that cancels, it would
    # take digits along.
    of_product: bool = True


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
            # Under (f, g) the column sums are b exp(g - G(f)).
            moved = jnp.where(problem.b > 0, g - soft_min, 0.0)
            sums = problem.b * jnp.exp(moved)
            wanted = target_marginal(problem.b, g, tau_b)
            error = jnp.sum(jnp.abs(sums - wanted))
            return tau_b * soft_min, error, vary_like(jnp.asarray(True), error)

        return repeat(body, g)

    def kernels(g, most, limit, rescue):
        """Runs fast steps, with a new kernel where scalings leave the safe range.

        With `rescue`, log-domain steps follow a kernel that served for a few only;
        without, one that serves for none is the end. Loops of no iterations, not
        branches: under vmap a branch would run for every problem of the batch.
        """

        def more(state):
            g, _, step, _ = state
            repeat = functools.partial(_repeat_until, most - step, limit)
            with _turns(most, limit):
                g, error, steps, _ = geometry.fast_steps(g, problem, repeat)
            step += steps
            if not rescue:
                return g, error, step, steps == 0
            slow = (steps < WORTH) & ~_within(error, limit)
            slow = jnp.where(slow, jnp.minimum(WORTH, most - step), 0)
            repeat = functools.partial(_repeat_until, slow, limit)
            g, log_error, steps, _ = log_steps(g, repeat)
            error = jnp.where(steps > 0, log_error, error)
            return g, error, step + steps, vary_like(jnp.asarray(False), error)

        def going(state):
            _, error, step, stuck = state
            return (step < most) & ~_within(error, limit) & ~stuck

        error = jnp.asarray(jnp.inf, g.dtype)
        start = vary_like((g, error, jnp.asarray(0), jnp.asarray(False)), g)
        g, _, step, _ = jax.lax.while_loop(going, more, start)
        return g, step

    method, unrolled = options.method, options.grad == "unroll"
    if method == "auto" and unrolled:
        method = "log"
    g = tau_b * geometry.columns(f, problem)
    count = options.num_iters or options.max_iters
    last = options.masked and count > 1
    fast = max(count - 1 - last, 0)
    mass = jnp.maximum(geometry.sum(problem.a.sum()), problem.b.sum())
    limit = None if options.num_iters is not None else options.threshold * mass
    if method == "log":
        repeat = functools.partial(_repeat_exactly, fast)
        if limit is not None:
            repeat = functools.partial(_repeat_until, fast, limit)
        g, _, step, _ = log_steps(g, repeat)
    elif unrolled:  # Loops of fixed length: gradients go back through them.
        step = jnp.asarray(0)
        for length in _chunks(fast):
            repeat = functools.partial(_repeat_exactly, length)
            g, _, steps, _ = geometry.fast_steps(g, problem, repeat)
            step += steps
    else:
        g, step = kernels(g, fast, limit, rescue=method == "auto")
    if last:
        g = log_steps(g, functools.partial(_repeat_exactly, 1))[0]
    return tau_a * geometry.rows(g, problem), g, step + 1 + int(last)


def _turns(count, limit):
    """Names the loops inside after their turns, which `ot_dd.flops` reads."""
    known = limit is None
    return jax.named_scope(f"turns_{count}") if known else contextlib.nullcontext()


def _take(ok, new, old):
    return jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)


def _repeat_exactly(length, body, state):
    """Runs `body` `length` times.

    Returns:
      `(state, error, steps, ok)`; the state is the last one before any that is not
      safe, and `steps` counts up to it.
    """

    def more(_, carry):
        state, error, step, ok = carry
        new, new_error, safe = body(state)
        ok &= safe
        state, error = _take(ok, (new, new_error), (state, error))
        return state, error, jnp.where(ok, step + 1, step), ok

    error = jnp.zeros((), jax.tree.leaves(state)[0].dtype)
    start = vary_like((state, error, jnp.asarray(0), jnp.asarray(True)), state)
    return jax.lax.fori_loop(0, length, more, start)


def _within(error, limit):
    return jnp.asarray(False) if limit is None else error <= limit


def _repeat_until(length, limit, body, state):
    """Runs `body` until the error is at most `limit`, `length` times at the most.

    A state that is not safe is not taken, and ends the run: `ok` is then false.
    Without a limit the error is not looked at, and so not computed: it stays infinite.
    """

    def going(carry):
        _, error, step, ok = carry
        return (step < length) & ~_within(error, limit) & ok

    def more(carry):
        state, error, step, _ = carry
        new, new_error, ok = body(state)
        new_error = error if limit is None else new_error
        state, error = _take(ok, (new, new_error), (state, error))
        return state, error, jnp.where(ok, step + 1, step), ok

    error = jnp.asarray(jnp.inf, jax.tree.leaves(state)[0].dtype)
    start = vary_like((state, error, jnp.asarray(0), jnp.asarray(True)), state)
    return jax.lax.while_loop(going, more, start)
