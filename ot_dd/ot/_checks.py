"""Input errors, told where they can be seen: names, shapes; values outside `jit`."""

import jax
import jax.numpy as jnp
import numpy as np

GRADIENTS = ("envelope", "unroll", "none")
METHODS = ("auto", "log", "kernel")
SOLVERS = ("sinkhorn", "ott")
_NUMBERS = int | float | np.integer | np.floating  # Static ones, and no arrays.


def _known(*values) -> bool:
    """Whether the values can be looked at: not traced, and on this process."""
    return not any(isinstance(v, jax.core.Tracer) for v in values) and all(
        getattr(v, "is_fully_addressable", True) for v in values
    )


def one_of(name: str, value, choices) -> None:
    """Raises a ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, found {value!r}")


def options(options, epsilon, solver, ott_options) -> None:
    """Checks what does not depend on the data."""
    one_of("grad", options.grad, GRADIENTS)
    one_of("method", options.method, METHODS)
    one_of("solver", solver, SOLVERS)
    if ott_options and solver != "ott":
        raise ValueError(
            f"unknown keywords {sorted(ott_options)}: only solver='ott' takes more"
        )
    if options.grad == "unroll" and options.num_iters is None:
        raise ValueError("grad='unroll' needs num_iters: a while loop has no vjp")
    for name in ("num_iters", "max_iters"):
        count = getattr(options, name)
        whole = isinstance(count, int | np.integer)
        if count is not None and (not whole or count < 1):
            raise ValueError(f"{name} must be a positive int, found {count!r}")
    for name in ("tau_a", "tau_b"):
        tau = getattr(options, name)
        if not isinstance(tau, _NUMBERS) or not 0.0 < tau <= 1.0:
            raise ValueError(f"{name} must be a number in (0, 1], found {tau!r}")
    if np.ndim(epsilon) != 0:
        raise ValueError(f"epsilon must be a scalar, found shape {np.shape(epsilon)}")
    if _known(epsilon) and not 0 < float(epsilon) < np.inf:
        raise ValueError(f"epsilon must be positive and finite, found {epsilon}")
    threshold = options.threshold
    if not isinstance(threshold, _NUMBERS) or not threshold >= 0:
        raise ValueError(f"threshold must be a number from 0 on, found {threshold!r}")


def _all(test, value) -> bool:
    """Evaluates a test of a known array, on its device, also while tracing others."""
    try:
        with jax.ensure_compile_time_eval():
            return bool(test(value).all())
    except jax.errors.TracerBoolConversionError:  # Within a `jax.shard_map`.
        return True


def finite(name: str, value) -> None:
    """Raises a ValueError when a known array holds NaN or infinity."""
    if _known(value) and not _all(jnp.isfinite, value):
        # As JAX has it: a float64 may be beyond its float32.
        bad = int((~np.asarray(jnp.isfinite(value))).sum())
        raise ValueError(
            f"{name} must be finite in {jnp.asarray(value).dtype}, found {bad} of "
            f"{value.size} not so"
        )


def init(init, n: int, m: int) -> None:
    """Checks the shapes of potentials to start from."""
    found = init and tuple(np.shape(v) for v in init)
    if found and found != ((n,), (m,)):
        raise ValueError(f"init must be potentials [{n}] and [{m}], found {found}")


def cost(cost) -> None:
    """Checks a cost matrix."""
    if getattr(cost, "ndim", None) != 2 or 0 in cost.shape:
        raise ValueError(
            f"cost must be [n, m], found {getattr(cost, 'shape', type(cost).__name__)}"
        )
    finite("cost", cost)


def points(x, y, block_size) -> None:
    """Checks two point clouds and how many rows to hold."""
    shapes = [getattr(v, "shape", ()) for v in (x, y)]
    if any(len(s) != 2 or s[0] == 0 for s in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(
            f"x and y must be [n, d] and [m, d], found {shapes[0]} and {shapes[1]}"
        )
    whole = isinstance(block_size, int | np.integer)
    if block_size is not None and (not whole or block_size < 1):
        raise ValueError(f"block_size must be a positive int, found {block_size!r}")
    finite("x", x)
    finite("y", y)


def weights(a, b, n: int, m: int, dtype, balanced: bool):
    """Returns checked weights `[n]` and `[m]`, uniform where none are given."""
    dtype = jax.dtypes.canonicalize_dtype(jnp.promote_types(dtype, jnp.float32))
    found = []
    for name, value, size in (("a", a, n), ("b", b, m)):
        if value is None:
            # Inside a caller's jit XLA would fold what is made of these constants, and
            # take longer over a million of them than the solve does.
            uniform = jnp.full((size,), 1.0 / size, dtype)
            found.append(jax.lax.optimization_barrier(uniform))
            continue
        if np.shape(value) != (size,):
            raise ValueError(f"{name} must be [{size}], found {np.shape(value)}")
        value = value if hasattr(value, "dtype") else np.asarray(value)
        finite(name, value)
        if _known(value) and not _all(lambda v: v >= 0, value):
            low = np.asarray(value).min()
            raise ValueError(f"{name} must not be negative, found {low:g}")
        found.append(jnp.asarray(value, dtype))
    if balanced and (a is not None or b is not None) and _known(*found):
        masses = [float(np.asarray(v).sum()) for v in found]
        if not np.isclose(*masses, rtol=1e-3, atol=0):
            raise ValueError(
                "a and b must have the same mass in a balanced problem, found "
                f"{masses[0]:g} and {masses[1]:g}; or set tau_a or tau_b below 1"
            )
    return tuple(found)
