"""Floating-point operations of a function, counted in its jaxpr.

XLA's own count takes a loop's body once and knows nothing of custom calls; here a scan
counts its length. Multiplications and additions of matrix products and convolutions
count two each, every other operation one for each element it writes. A `while` loop
counts one turn, or as many as the scope `turns_N` that it is in says: Sinkhorn's loops
say their iterations. Of the branches of a conditional the dearest counts; in a scope
`share_K_N` it counts K times out of N, and the cheapest for the rest: guidance acts on
some steps only.
"""

import math
import re
from collections.abc import Callable

import jax
from jax.extend import core


def flops(fn: Callable, *args) -> float:
    """Returns the operations of `fn(*args)`.

    Args:
      fn: a traceable function; what is inside `jax.jit` counts too.
      *args: arrays or `jax.ShapeDtypeStruct`s; nothing is computed.
    """
    return _of(jax.make_jaxpr(fn)(*args).jaxpr)


def traced_flops(traced) -> float:
    """Returns the operations of what `jax.jit(fn).trace(...)` returned.

    The call itself finds the same trace again: counting first costs nothing.
    """
    return _of(traced.jaxpr.jaxpr)


def turns(scopes: str) -> int:
    """Returns the N of the innermost scope `turns_N`, or 0."""
    named = re.findall(r"turns_(\d+)", scopes)
    return int(named[-1]) if named else 0


def share(scopes: str) -> float:
    """Returns K / N of the innermost scope `share_K_N`, or 1."""
    named = re.findall(r"share_(\d+)_(\d+)", scopes)
    return int(named[-1][0]) / max(int(named[-1][1]), 1) if named else 1.0


def _of(jaxpr) -> float:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contract, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * _size(equation) * math.prod(shape[axis] for axis in contract)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    if name == "scan":
        return params["length"] * _of(params["jaxpr"].jaxpr)
    if name == "cond":
        branches = [_of(branch.jaxpr) for branch in params["branches"]]
        taken = share(str(equation.source_info.name_stack))
        return taken * max(branches) + (1 - taken) * min(branches)
    inner = [_of(jaxpr) for jaxpr in _inside(params)]
    if name == "shard_map":  # What is inside every device along its axes does.
        sizes = params["mesh"].shape
        axes = params.get("newly_manual_axes", sizes)
        return math.prod(sizes[axis] for axis in axes) * sum(inner)
    if name == "while":
        return (turns(str(equation.source_info.name_stack)) or 1) * sum(inner)
    return sum(inner) if inner else float(_size(equation))


def _of_convolution(equation) -> float:
    """Returns the operations on numbers, not on the zeros between or around them.

    Along an axis an output meets each place of the kernel, or as many as the input has,
    whichever are fewer: a gradient spreads its input with zeros, and the gradient of a
    gradient slides a kernel as large as an image over the few places of another.
    """
    numbers = equation.params["dimension_numbers"]
    x, kernel, out = (v.aval.shape for v in (*equation.invars[:2], equation.outvars[0]))
    total = 2.0 * kernel[numbers.rhs_spec[1]]
    total *= math.prod(out[axis] for axis in numbers.out_spec[:2])
    axes = zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:])
    for i, k, o in axes:
        total *= min(out[o] * kernel[k], x[i] * kernel[k], out[o] * x[i])
    return total


def _inside(params):
    """Yields the programs among an equation's parameters: a call's, a loop's."""
    for value in params.values():
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value


def _size(equation) -> int:
    return sum(math.prod(out.aval.shape) for out in equation.outvars)
