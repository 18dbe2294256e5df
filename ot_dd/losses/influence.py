"""Gradient matching, the influence term of IGD (Chen et al., ICLR 2025)."""

import jax
import jax.numpy as jnp


def gradient_cosine_distance(
    loss_fn, params, images: jax.Array, labels: jax.Array, target: jax.Array
) -> jax.Array:
    """Returns one minus the cosine of a synthetic and a real parameter gradient.

    Args:
      loss_fn: `(params, images, labels) -> scalar`, the training loss.
      params: parameters at which both gradients are taken.
      images: synthetic images `[n, h, w, c]`; their mean loss is differentiated.
      labels: classes `[n]`.
      target: the mean real gradient, flattened `[p]` (`ravel_gradient`'s order).

    Returns:
      The distance in `[0, 2]`, scalar, with a gradient in `images`; one, and no
      gradient, where either is zero.
    """
    gradient = ravel_gradient(loss_fn, params, images, labels)

    def unit(v):
        # Each by its own norm, and that of numbers near one: of a model that is sure of
        # its classes their squares underflow. Without a gradient there is no direction.
        largest = jax.lax.stop_gradient(jnp.abs(v).max())
        some = largest > jnp.finfo(v.dtype).tiny
        v = jnp.where(some, v / jnp.where(some, largest, 1.0), 0.0)
        return v * jax.lax.rsqrt(jnp.where(some, jnp.sum(v**2), 1.0))

    return 1.0 - jnp.vdot(unit(gradient), unit(target))


def ravel_gradient(loss_fn, params, images, labels) -> jax.Array:
    """Returns the gradient of `loss_fn` in `params` as one vector `[p]`."""
    gradients = jax.grad(loss_fn)(params, images, labels)
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradients)])
