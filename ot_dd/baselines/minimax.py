"""The criteria that MinimaxDiffusion fine-tunes with (Gu et al., CVPR 2024)."""

import jax
import jax.numpy as jnp


def minimax_loss(
    predicted: jax.Array,
    real: jax.Array,
    pseudo: jax.Array,
    filled: jax.Array,
    *,
    real_weight: float = 0.002,
    pseudo_weight: float = 0.008,
) -> jax.Array:
    """Returns what is added to the denoising loss of every example `[b]`.

    `real_weight (1 - min_j cos(x, r_j)) + pseudo_weight max_j cos(x, p_j)`: a predicted
    latent is pulled to the real one of its class that it is least like
    (representativeness) and away from the earlier prediction that it is most like
    (diversity).

    Args:
      predicted: clean latents that the network predicts `[b, d]`.
      real: real latents of each one's class `[b, m, d]`.
      pseudo: earlier predictions for each one's class `[b, k, d]`.
      filled: one for every earlier prediction that there is, else zero `[b, k]`.
      real_weight: the authors' `lambda_pos`.
      pseudo_weight: the authors' `lambda_neg`.
    """

    def cosine(points):
        return jnp.einsum("bd,bkd->bk", _unit(predicted), _unit(points))

    nearest = jnp.max(jnp.where(filled > 0, cosine(pseudo), -1.0), axis=1)
    nearest = jnp.where(filled.any(1), nearest, 0.0)
    return real_weight * (1 - cosine(real).min(1)) + pseudo_weight * nearest


def remember(
    memory: jax.Array, count: jax.Array, points: jax.Array, classes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Writes points to their classes' rings of the latest.

    Args:
      memory: `[classes, k, d]`.
      count: points written to each class so far `[classes]`.
      points: `[b, d]`, of one class at most `k`.
      classes: their classes `[b]`.

    Returns:
      The memory and the counts.
    """
    own = jax.nn.one_hot(classes, memory.shape[0], dtype=jnp.int32)
    turn = jnp.take_along_axis(jnp.cumsum(own, 0), classes[:, None], 1)[:, 0] - 1
    slot = (count[classes] + turn) % memory.shape[1]
    return memory.at[classes, slot].set(points), count + own.sum(0)


def _unit(x):
    return x * jax.lax.rsqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-12)
