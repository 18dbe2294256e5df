"""Exact optimal transport on the host, for reports and tests (SciPy)."""

import numpy as np
from numpy.typing import ArrayLike

# Points become copies of one another there: a matrix of this side takes 0.2 GB.
_LARGEST_ASSIGNMENT = 5000
_RESCALINGS = 6  # At most; none where costs are of one size.


def exact(
    cost: ArrayLike, a: ArrayLike | None = None, b: ArrayLike | None = None
) -> float:
    """Returns the exact transport cost `min <P, C>` over plans of marginals a and b.

    Uniform weights whose counts divide one another become an assignment problem
    (`scipy.optimize.linear_sum_assignment`); anything else a sparse linear program
    (HiGHS). Runs on the host, outside `jit`.

    Args:
      cost: cost matrix `[n, m]`.
      a: weights `[n]`, default uniform.
      b: weights `[m]`, default uniform.

    Returns:
      The transport cost.

    Raises:
      ValueError: when shapes or total masses disagree, weights are negative or all
        zero, or the cost is not finite.
    """
    from scipy import optimize, sparse  # Their import takes half a second.

    cost = np.asarray(cost, np.float64)
    if cost.ndim != 2 or 0 in cost.shape:
        raise ValueError(
            f"cost must be [n, m] with points on both sides, found {cost.shape}"
        )
    if not np.isfinite(cost).all():
        raise ValueError("cost must be finite, found NaN or infinity")
    n, m = cost.shape
    small = max(n, m) <= _LARGEST_ASSIGNMENT
    if a is None and b is None and max(n, m) % min(n, m) == 0 and small:
        repeats = max(n, m) // min(n, m)
        square = np.repeat(cost, repeats, axis=0 if n < m else 1)
        rows, columns = optimize.linear_sum_assignment(square)
        return float(square[rows, columns].mean())
    a = np.full(n, 1 / n) if a is None else np.asarray(a, np.float64)
    b = np.full(m, 1 / m) if b is None else np.asarray(b, np.float64)
    alike = (
        np.isclose(a.sum(), b.sum(), atol=0) and a.sum() > 0
    )  # False for NaN as well.
    if a.shape != (n,) or b.shape != (m,) or not alike:
        raise ValueError(
            f"a and b must be [{n}] and [{m}] of equal mass above 0, found shapes "
            f"{a.shape}, {b.shape} and masses {a.sum():g}, {b.sum():g}"
        )
    rows = sparse.kron(sparse.eye(n), np.ones((1, m)), format="csr")
    columns = sparse.kron(np.ones((1, n)), sparse.eye(m), format="csr")
    # HiGHS's tolerances are absolute: costs of at most 1, weights of some hundred. The
    # last column follows from the others, and from their roundings it may not.
    scale, mass, total = np.abs(cost).max() or 1.0, a.sum(), 100.0 * max(n, m)
    for _ in range(_RESCALINGS):
        solution = optimize.linprog(
            cost.ravel() / scale,
            A_eq=sparse.vstack([rows, columns[:-1]], format="csr"),
            b_eq=np.concatenate([a * (total / mass), b[:-1] * (total / b.sum())]),
            method="highs",
        )
        if solution.status != 0:
            raise ValueError(f"a and b have no plan: {solution.message}")
        value = solution.fun * (scale / total)
        # Costs far above what is paid (of pairs that are as good as forbidden) hid the
        # others from the tolerances.
        if abs(value) > 0.01 * scale or not value:
            break
        scale = abs(value)
    return float(value * mass)
