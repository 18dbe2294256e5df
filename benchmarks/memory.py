"""Solves a problem whose cost matrix would take 8 GB, and reports the memory it took.

    python -m benchmarks.memory [--json=benchmarks/memory.json]

200,000 x 10,000 points of 64 dimensions, value and gradient in both clouds, in blocks of
rows; the figure is the peak resident memory of the whole process.
"""

import argparse
import json
import os
import resource
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import numpy as np

from ot_dd import ot


def main() -> None:
    """Solves, prints and writes what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--iterations", type=int, default=20)
    arguments = parser.parse_args()
    n, m, d = 200_000, 10_000, 64
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d), np.float32)
    y = rng.standard_normal((m, d), np.float32) + np.float32(0.1)

    @jax.jit
    def solve(x, y):
        def value(x, y):
            result = ot.solve_sample(
                x, y, epsilon=12.8, num_iters=arguments.iterations, block_size=100
            )
            return result.value, result.marginal_error

        return jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(x, y)

    compiled = solve.lower(x, y).compile()
    start = time.perf_counter()
    (value, error), gradients = jax.block_until_ready(compiled(x, y))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found = {
        "n": n, "m": m, "d": d, "iterations": arguments.iterations,
        "cost_matrix_gibibytes": round(4 * n * m / 2**30, 2),
        "temporary_mebibytes": round(
            compiled.memory_analysis().temp_size_in_bytes / 2**20, 1
        ),
        "peak_resident_gibibytes": round(peak, 2),
        "seconds": round(seconds, 1),
        "value": float(value),
        "marginal_error": float(error),
        "finite": all(bool(np.isfinite(g).all()) for g in gradients),
    }  # fmt: skip
    print(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
