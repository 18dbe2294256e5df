"""Times our Sinkhorn distances against ott-jax, POT and geomloss, side by side.

    python -m benchmarks.sinkhorn [--json=benchmarks/sinkhorn.json] [--only=NAME]

Each case is a value and its gradient in the points, 50 iterations, float32 (matrix
products too), cost computation included, epsilon 0.05 x the mean cost. Solvers run in
turn within every round, in one process on the same cores or the same GPU, and answers
are compared before anything is timed: a value that differs from ours by more than 1 %
is listed under `disagree`.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.timing import medians, row
from ot_dd import ot

jax.config.update("jax_default_matmul_precision", "highest")
TORCH = "cuda" if jax.default_backend() == "gpu" else "cpu"
ITERATIONS = 50
CASES = {  # name: (batch, n, m, d, cost)
    "50x1300-d4096-l1": (0, 50, 1300, 4096, "l1"),
    "256x256-d1000-l1": (0, 256, 256, 1000, "l1"),
    "4096x4096-d64": (0, 4096, 4096, 64, "sqeuclidean"),
    "1024x16384-d512": (0, 1024, 16384, 512, "sqeuclidean"),
    "64x(50x1300)-d64": (64, 50, 1300, 64, "sqeuclidean"),
}


def clouds(batch, n, m, d):
    """Returns two clouds of a Gaussian mixture, float32, `[batch, n, d]`."""
    rng = np.random.default_rng(0)
    shape = (batch,) if batch else ()
    centres = rng.normal(size=(10, d))
    x = centres[rng.integers(10, size=(*shape, n))] + rng.normal(size=(*shape, n, d))
    y = centres[rng.integers(10, size=(*shape, m))] + rng.normal(size=(*shape, m, d))
    return np.float32(x), np.float32(y + 0.1)


def ours(x, y, cost, epsilon, **options):
    """Returns a timed function of our solver."""

    def value(x, y):
        return ot.solve_sample(
            x, y, cost_fn=cost, epsilon=epsilon, num_iters=ITERATIONS, **options
        ).value

    return _jax(value, x, y)


def ott_jax(x, y, cost, epsilon):
    """Returns a timed function of ott-jax, in memory, its fastest setting here."""
    from ott.geometry import costs, pointcloud
    from ott.solvers import linear

    cost_fn = costs.PNormP(1.0) if cost == "l1" else costs.SqEuclidean()

    def value(x, y):
        geometry = pointcloud.PointCloud(x, y, cost_fn=cost_fn, epsilon=epsilon)
        return linear.solve(
            geometry,
            min_iterations=ITERATIONS,
            max_iterations=ITERATIONS,
            inner_iterations=ITERATIONS,
            threshold=0.0,
        ).reg_ot_cost

    return _jax(value, x, y)


def _jax(value, x, y):
    if x.ndim == 3:
        single = value

        def value(x, y):
            return jax.vmap(single)(x, y).sum()

    function = jax.jit(jax.value_and_grad(value, argnums=(0, 1)))
    x, y = jnp.asarray(x), jnp.asarray(y)

    def run():
        return jax.block_until_ready(function(x, y))

    return run


def _torch_cost(x, y, cost):
    if cost == "l1":
        return torch.cdist(x, y, p=1.0)
    squares = (x * x).sum(-1)[..., :, None] + (y * y).sum(-1)[..., None, :]
    return (squares - 2 * x @ y.mT).clamp_min(0)


def _torch(solve, x, y, cost):
    points = [torch.tensor(v, requires_grad=True, device=TORCH) for v in (x, y)]

    def run():
        for point in points:
            point.grad = None
        value = solve(_torch_cost(*points, cost)).sum()
        value.backward()
        if TORCH == "cuda":
            torch.cuda.synchronize()
        return value.detach(), [p.grad for p in points]

    return run


def pot(x, y, cost, epsilon):
    """Returns a timed function of POT's `ot.solve`, envelope gradient."""
    import ot as pot_

    def one(cost):
        # Weights of the cost's type: without them POT makes float64 ones.
        a, b = (torch.full((s,), 1 / s, device=TORCH) for s in cost.shape)
        return pot_.solve(
            cost, a, b, reg=epsilon, max_iter=ITERATIONS, tol=0.0, grad="envelope"
        ).value

    def solve(cost):
        return one(cost) if cost.ndim == 2 else torch.stack([one(c) for c in cost])

    return _torch(solve, x, y, cost)


def geomloss(x, y, cost, epsilon):
    """Returns a timed function of geomloss's solver on a cost matrix."""
    from geomloss import ot as geomloss_ot

    def solve(cost):
        batched = cost.ndim == 3
        function = geomloss_ot.solve_batch if batched else geomloss_ot.solve
        return function(cost, reg=epsilon, max_iter=ITERATIONS).value

    return _torch(solve, x, y, cost)


def measure_peaks() -> dict:
    """Returns this machine's peaks: float32 matmul GFLOP/s, read GB/s, exp G/s."""
    square = jnp.ones((2048, 2048))
    long = jnp.ones((1 << 26,))
    work = {
        "matmul_gflops": (2 * 2048**3, jax.jit(lambda: square @ square)),
        "read_gbytes": (4 * (1 << 26), jax.jit(lambda v=long: v.sum())),
        "exp_g": (1 << 26, jax.jit(lambda v=long: jnp.exp(v).sum())),
    }
    found = {}
    for name, (amount, function) in work.items():
        argument = () if name == "matmul_gflops" else (long,)
        times = []
        for _ in range(6):
            start = time.perf_counter()
            jax.block_until_ready(function(*argument))
            times.append(time.perf_counter() - start)
        found[name] = round(amount / min(times[1:]) / 1e9, 2)
    return found


def floor_seconds(batch, n, m, d, cost, peaks) -> dict:
    """Returns the least time that arithmetic and memory traffic allow, in seconds.

    Arithmetic: the cost (2 d operations an entry, as a matrix product for squared
    Euclidean costs) and as much again for either gradient; an l1 cost has 13 operations
    a term of entry and gradients together, none of them fused: half the peak. Memory:
    the kernel read once an iteration.
    """
    entries = max(batch, 1) * n * m
    operations = 2 * 13 * d if cost == "l1" else 3 * 2 * d
    arithmetic = operations * entries / peaks["matmul_gflops"] / 1e9
    memory = ITERATIONS * 4 * entries / peaks["read_gbytes"] / 1e9
    return {"arithmetic": arithmetic, "iterations": memory}


def run_case(name, rounds, peaks) -> dict:
    """Compares, then times, all solvers on a case."""
    batch, n, m, d, cost = CASES[name]
    x, y = clouds(batch, n, m, d)
    one = (x, y) if not batch else (x[0], y[0])
    epsilon = 0.05 * float(ot.cost_matrix(*map(jnp.asarray, one), cost).mean())
    makers = {"ot_dd": ours, "ott_jax": ott_jax, "pot": pot, "geomloss": geomloss}
    solvers, values, skipped = {}, {}, {}
    for label, make in makers.items():
        run = make(x, y, cost, epsilon)
        value, gradient = run()
        values[label] = float(value)
        agreed = abs(float(value) / values["ot_dd"] - 1) < 0.01
        finite = all(bool(abs(g.max()) + abs(g.min()) < np.inf) for g in gradient)
        if not agreed or not finite:
            skipped[label] = f"value {float(value):g}, ours {values['ot_dd']:g}"
        solvers[label] = run
    floors = floor_seconds(batch, n, m, d, cost, peaks)
    return {
        **row(name, medians(solvers, rounds)),
        "values": values,
        "disagree": skipped,
        "floor_milliseconds": {k: round(1e3 * v, 2) for k, v in floors.items()},
    }


def main() -> None:
    """Runs the cases, prints their ratios and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", action="append", choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    peaks = measure_peaks()
    print("peaks", peaks)
    rows = []
    for name in arguments.only or CASES:
        found = run_case(name, arguments.rounds, peaks)
        rows.append(found)
        print(name, found["milliseconds"], found["ratio_to_ours"], found["disagree"],
              found["floor_milliseconds"], flush=True)  # fmt: skip
    if arguments.json:
        from importlib.metadata import version

        if arguments.only and arguments.json.exists():  # The others stay as they are.
            before = json.loads(arguments.json.read_text())["cases"]
            known = {row["case"]: row for row in (*before, *rows)}
            rows = [known[name] for name in CASES if name in known]
        packages = ("jax", "ott-jax", "pot", "geomloss", "torch")
        report = {
            "iterations": ITERATIONS,
            "rounds": arguments.rounds,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "device": jax.devices()[0].device_kind,
            "versions": {p: version(p) for p in packages},
            "peaks": peaks,
            "cases": rows,
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
