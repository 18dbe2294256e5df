"""Guidance terms: gradients that a reverse step descends, one function a term.

All terms see one `Moment` of the reverse process of every class at once and return a
gradient in the noisy latents, so that `z_{i-1} = sampler(z_i) - strength * gradient`
(IGD: Chen et al., ICLR 2025; the transport term: Cui et al., NeurIPS 2025).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ot_dd.diffusion.process import expand
from ot_dd.losses import gradient_cosine_distance, transport_guidance

NORMALISATIONS = ("raw", "unit", "rms")
SPACES = ("noisy", "clean", "clean_backprop", "features")


class Moment(NamedTuple):
    """What a guidance term may look at, for `c` classes and `g` latents of each.

    Attributes:
      z: noisy latents `[c, g, ...]`.
      x0: predicted clean latents `[c, g, ...]`.
      eps: predicted noise `[c, g, ...]`.
      alpha: signal level `sqrt(alphas_cumprod)` of the step, scalar.
      sigma: noise level `sqrt(1 - alphas_cumprod)` of the step, scalar.
      memory: finished latents of the classes `[c, n, ...]`; unfilled slots hold zeros.
      filled: 1 where the slot of `memory` is filled, else 0, `[n]`.
      classes: class numbers `[c]`.
      pull_back: maps a gradient in `x0` to one in `z` through the denoiser.
    """

    z: jax.Array
    x0: jax.Array
    eps: jax.Array
    alpha: jax.Array
    sigma: jax.Array
    memory: jax.Array
    filled: jax.Array
    classes: jax.Array
    pull_back: Callable[[jax.Array], jax.Array]


def _rms(x):
    return jnp.sqrt(jnp.mean(x * x, axis=tuple(range(2, x.ndim))))


def normalise(gradient: jax.Array, moment: Moment, kind: str) -> jax.Array:
    """Rescales every sample's gradient.

    Args:
      gradient: `[c, g, ...]`.
      moment: the moment it was taken at.
      kind: `"raw"` leaves it; `"unit"` divides by its root mean square; `"rms"` also
        multiplies by `0.0015 rms(eps) sigma`, IGD's `rho_t`.

    Raises:
      ValueError: for an unknown kind.
    """
    if kind not in NORMALISATIONS:
        raise ValueError(f"normalise must be one of {NORMALISATIONS}, found {kind!r}")
    if kind == "raw":
        return gradient
    scale = 1.0 / jnp.maximum(_rms(gradient), 1e-12)
    if kind == "rms":
        scale = scale * 0.0015 * _rms(moment.eps) * moment.sigma
    return gradient * expand(scale, gradient)


def deviation(moment: Moment) -> jax.Array:
    """Returns the gradient of the cosine to the nearest latent of the class (G_D).

    The nearest is sought among the finished latents and, where several latents of a
    class are made together, the clean predictions of the others; it is held fixed.

    Args:
      moment: the moment of the reverse process.

    Returns:
      The gradient `[c, g, ...]` in `z`; zero for a class's first, lone latent.
    """
    c, g = moment.z.shape[:2]
    z = moment.z.reshape(c, g, -1)
    others = jnp.concatenate([moment.memory, moment.x0], axis=1).reshape(
        c, -1, z.shape[2]
    )
    others = jax.lax.stop_gradient(others)
    slots = moment.filled.shape[0]
    own = jnp.concatenate([jnp.zeros((g, slots)), jnp.eye(g)], axis=1)
    usable = jnp.concatenate([moment.filled, jnp.ones(g)])[None, :] * (1.0 - own)

    def nearest_cosine(z):
        def unit(v):
            return v * jax.lax.rsqrt(jnp.sum(v * v, -1, keepdims=True) + 1e-12)

        cosine = jnp.einsum("cgd,cnd->cgn", unit(z), unit(others), precision="highest")
        cosine = jnp.where(usable > 0, cosine, -jnp.inf)
        best = jnp.max(cosine, axis=-1)
        return jnp.sum(jnp.where(jnp.isfinite(best), best, 0.0))

    return jax.grad(nearest_cosine)(z).reshape(moment.z.shape)


def influence(
    moment: Moment,
    decode: Callable[[jax.Array], jax.Array],
    loss_fn: Callable[[Any, jax.Array, jax.Array], jax.Array],
    checkpoints: Any,
    targets: jax.Array,
) -> jax.Array:
    """Returns the gradient of the influence distance (G_I), through the decoder.

    For every latent, the mean over surrogate checkpoints of one minus the cosine
    between the gradient of the training loss on its decoded image and the mean real
    gradient of its class. The sum over checkpoints goes back through the decoder and
    the denoiser in one pass.

    Args:
      moment: the moment of the reverse process; `pull_back` is used.
      decode: latents `[n, ...]` to images `[n, h, w, ch]`.
      loss_fn: `(params, images, labels) -> scalar`, the surrogate's training loss.
      checkpoints: surrogate parameters, every leaf `[e, ...]`.
      targets: mean real gradients of the moment's classes `[e, c, p]`.

    Returns:
      The gradient `[c, g, ...]` in `z`.
    """
    c, g = moment.x0.shape[:2]
    labels = jnp.repeat(moment.classes, g)
    rows = jnp.repeat(jnp.arange(c), g)

    def distance(x0):
        images = decode(x0.reshape(c * g, *x0.shape[2:]))

        # One latent at a time: each has a parameter gradient of its own, and `map`
        # keeps the memory at one.
        def of_image(operand):
            image, label, row = operand

            def at_checkpoint(params, target):
                return gradient_cosine_distance(
                    loss_fn, params, image[None], label[None], target[row]
                )

            return jax.vmap(at_checkpoint)(checkpoints, targets).mean()

        return jnp.sum(jax.lax.map(jax.checkpoint(of_image), (images, labels, rows)))

    return moment.pull_back(jax.grad(distance)(moment.x0))


class Transport(NamedTuple):
    """Settings and data of the transport term.

    Attributes:
      real: real latents of each class `[c, m, d]`, or what `embed` makes of them.
      real_weights: their weights `[c, m]`, zero for padding; rows sum to one.
      cost_fn: ground cost, see `ot.cost_matrix`.
      epsilon: entropic regularisation, in units of `epsilon_unit`.
      epsilon_unit: `"absolute"`, or `"mean_cost"`: the class's mean cost.
      num_iters: Sinkhorn iterations a step (warm-started).
      space: `"noisy"` measures and moves `z`; `"clean"` measures the predicted clean
        latent and moves it with its noise held fixed, which moves `z` by `alpha` times
        as much; `"clean_backprop"` goes back through the denoiser instead;
        `"features"` is `"clean"` between features of the predicted clean latents.
      embed: latents `[n, ...]` to features `[n, d]`, for the space `"features"`.
    """

    real: jax.Array
    real_weights: jax.Array
    cost_fn: str = "mean_l1"
    epsilon: float = 0.1
    epsilon_unit: str = "absolute"
    num_iters: int = 20
    space: str = "clean"
    embed: Callable[[jax.Array], jax.Array] | None = None

    def points(self, latents: jax.Array) -> jax.Array:
        """Returns the points `[c, g, d]` that latents `[c, g, ...]` are compared as."""
        c, g = latents.shape[:2]
        if self.space != "features":
            return latents.reshape(c, g, -1)
        features = self.embed(latents.reshape(c * g, *latents.shape[2:]))
        return features.reshape(c, g, -1).astype(latents.dtype)


def transport(
    moment: Moment,
    settings: Transport,
    memory_cost: jax.Array,
    potentials: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, tuple[jax.Array, jax.Array], jax.Array]:
    """Returns the gradient of the Sinkhorn distance to real latents (G_W).

    That of `losses.transport_guidance` for every class, in the space of the settings.

    Args:
      moment: the moment of the reverse process.
      settings: data and options.
      memory_cost: cost rows of the finished latents `[c, n, m]`; they do not change
        and so are not computed again.
      potentials: `(f [c, n + g], g [c, m])` of the step before, to start from.

    Returns:
      The gradient `[c, g, ...]`, the potentials, and `<P, C>` of every class `[c]`.

    Raises:
      ValueError: for an unknown space or epsilon unit.
    """
    if settings.space not in SPACES:
        raise ValueError(f"space must be one of {SPACES}, found {settings.space!r}")
    current = moment.z if settings.space == "noisy" else moment.x0
    points, pull_back = jax.vjp(settings.points, current)

    def of_class(points, memory_cost, real, real_weights, *init):
        gradient, result = transport_guidance(
            points,
            real,
            real_weights,
            memory_cost=memory_cost,
            filled=moment.filled,
            cost_fn=settings.cost_fn,
            epsilon=settings.epsilon,
            epsilon_unit=settings.epsilon_unit,
            num_iters=settings.num_iters,
            init=init,
        )
        return gradient, result.potentials, result.value_linear

    gradient, potentials, value = jax.vmap(of_class)(
        points,
        memory_cost,
        settings.real,
        settings.real_weights,
        *potentials,
    )
    (gradient,) = pull_back(gradient)
    if settings.space in ("clean", "features"):
        gradient = moment.alpha * gradient
    elif settings.space == "clean_backprop":
        gradient = moment.pull_back(gradient)
    return gradient, potentials, value
