"""Makes `compiled.txt`: what the TPU compiler made of a program with every kind of part.

    python -m tests.planning.compiled

Needs libtpu. Seven turns of: a gradient through a loop of five products, split over four
chips; a Sinkhorn distance; and a branch that is taken three times out of ten.
"""

import os

os.environ.update(TPU_SKIP_MDS_QUERY="1", JAX_PLATFORMS="cpu")

import re
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ot_dd import ot
from ot_dd.platform import compiling_for

TURNS, LAYERS, ITERATIONS = 7, 5, 13
BATCH, WIDTH = 1024, 512


def program(weights, x, points):
    """Returns what all the parts make of `[layers, width, width]` weights."""

    def loss(weights):
        y, _ = jax.lax.scan(lambda y, w: (jnp.tanh(y @ w), None), x, weights)
        return jnp.mean(y**2)

    def body(carry, turn):
        weights, points = carry
        weights = weights - 0.1 * jax.grad(loss)(weights)
        with jax.named_scope("transport"):
            cost = ot.cost_matrix(points, points + turn, "sqeuclidean")
            value = ot.solve(
                cost, epsilon=1.0, num_iters=ITERATIONS, threshold=0.0
            ).value
        with jax.named_scope("share_3_10"):
            points = jax.lax.cond(
                turn < 3, lambda p: jnp.tanh(p @ p.T) @ p, lambda p: p, points
            )
        return (weights, points + 1e-3 * value), None

    return jax.lax.scan(body, (weights, points), jnp.arange(TURNS))[0]


def main():
    """Compiles for four chips and writes the text."""
    pod = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    mesh = topologies.make_mesh(pod, (4,), ("data",))

    def like(spec, *shape):
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    shapes = (
        like(P(), LAYERS, WIDTH, WIDTH), like(P("data"), BATCH, WIDTH),
        like(P(), 256, 128),
    )  # fmt: skip
    with compiling_for("tpu"):
        text = jax.jit(program).lower(*shapes).compile().as_text()
    # Paths of the machine that it was compiled on say nothing.
    text = re.sub(r"\nFileNames\n.*?\n\n(?=%|ENTRY)", "\n", text, flags=re.S)
    text = re.sub(r" stack_frame_id=\d+", "", text)
    Path(__file__).with_name("compiled.txt").write_text(text)


if __name__ == "__main__":
    main()
