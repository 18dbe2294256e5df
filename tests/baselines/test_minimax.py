"""MinimaxDiffusion's criteria against the words of the paper, and its memory."""

import jax
import jax.numpy as jnp
import numpy as np

from ot_dd.baselines import minimax_loss, remember


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_loss_is_least_like_real_and_most_like_earlier():
    rng = np.random.default_rng(0)
    x, real, pseudo = (rng.normal(size=s) for s in ((3, 5), (3, 4, 5), (3, 6, 5)))
    filled = np.ones((3, 6))
    filled[1, 2:], filled[2] = 0, 0
    found = jax.jit(minimax_loss)(*map(jnp.float32, (x, real, pseudo, filled)))
    for i, loss in enumerate(np.asarray(found)):
        least = min(cosine(x[i], r) for r in real[i])
        seen = [cosine(x[i], p) for p, f in zip(pseudo[i], filled[i]) if f]
        want = 0.002 * (1 - least) + 0.008 * (max(seen) if seen else 0.0)
        np.testing.assert_allclose(loss, want, rtol=1e-4)


def test_memory_keeps_the_latest_of_each_class():
    memory, count = jnp.zeros((2, 3, 1)), jnp.zeros(2, jnp.int32)
    written = {0: [], 1: []}
    rng = np.random.default_rng(1)
    for step in range(5):
        classes = rng.permutation([0, 0, 1, 0, 1])
        points = np.arange(5.0) + 10 * step + 1
        memory, count = jax.jit(remember)(
            memory, count, jnp.float32(points[:, None]), jnp.asarray(classes)
        )
        for c, point in zip(classes, points):
            written[int(c)].append(point)
    assert count.tolist() == [15, 10]
    for c in (0, 1):
        assert sorted(memory[c, :, 0].tolist()) == sorted(written[c][-3:])
