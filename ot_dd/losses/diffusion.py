"""Training losses of the diffusion model and its autoencoder, one value per example."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr

from ot_dd.explicit import on_auto_axes

if TYPE_CHECKING:
    from ot_dd.diffusion.process import Process


def _mean_over_example(values: jax.Array) -> jax.Array:
    return jnp.mean(values, axis=tuple(range(1, values.ndim)))


def _same_shape(name: str, found: jax.Array, wanted: tuple[int, ...]) -> None:
    if found.shape != wanted:
        raise ValueError(f"{name} must be {wanted}, found {found.shape}")


@on_auto_axes
def epsilon_loss(
    output: jax.Array,
    x0: jax.Array,
    eps: jax.Array,
    i: jax.Array,
    process: Process,
    *,
    learned_sigma: bool,
) -> jax.Array:
    """Noise prediction loss, with the variational term that teaches sigma.

    |eps_hat - eps|^2, averaged over the example (Ho et al. 2020). With a learned sigma
    N/1000 times the variational bound of step i is added, in bits, averaged over the
    example: L_simple + 0.001 L_vlb of Nichol and Dhariwal 2021 (improved-diffusion's
    "rescaled MSE"; with N = 1000 steps also DiT's loss). Its mean is detached, so the
    bound trains sigma only. For i > 0 it is KL(q(z_{i-1} | z_i, x0) || p(z_{i-1} |
    z_i)); for i = 0 the likelihood of x0 among 256 levels on [-1, 1], which
    improved-diffusion keeps for latents too.

    Args:
        output: Network output at z_i, `[b, ..., c]`, or `[b, ..., 2 c]` with sigma.
        x0: Clean samples `[b, ..., c]`.
        eps: The noise that made z_i `[b, ..., c]`.
        i: Step of each example `[b]`, indices into `process`.
        process: A process made by `ddpm_process`.
        learned_sigma: Whether the output carries sigma's channels.

    Returns:
        Losses `[b]`.

    Raises:
        ValueError: For an output of another shape, or a sigma to learn in a flow.
    """
    channels = (1 + learned_sigma) * x0.shape[-1]
    _same_shape("output", output, (*x0.shape[:-1], channels))
    _same_shape("eps", eps, x0.shape)
    if learned_sigma and process.posterior_variance is None:
        raise ValueError("learned_sigma needs a process made by ddpm_process")
    if not learned_sigma:
        return _mean_over_example(jnp.square(output - eps))
    eps_hat, v = jnp.split(output, 2, axis=-1)
    mse = _mean_over_example(jnp.square(eps_hat - eps))
    bound = _variational_bound(jax.lax.stop_gradient(eps_hat), v, x0, eps, i, process)
    return mse + process.alpha.shape[0] / 1000.0 * bound


def _variational_bound(
    eps_hat: jax.Array,
    v: jax.Array,
    x0: jax.Array,
    eps: jax.Array,
    i: jax.Array,
    process: Process,
) -> jax.Array:
    """Term i of the bound `[b]` in bits per dimension, sigma by the learned range."""

    def take(values: jax.Array) -> jax.Array:
        return values[i].reshape(i.shape + (1,) * (x0.ndim - 1))

    true_log_variance = take(process.posterior_log_variance)
    fraction = (v + 1.0) / 2.0
    log_variance = (
        fraction * jnp.log(take(process.betas)) + (1.0 - fraction) * true_log_variance
    )
    # x0_hat = (z - sigma eps_hat) / alpha. The error of the mean of z_{i-1} is coef1
    # times the error of x0, and z itself cancels; at i = 0 the mean is x0_hat.
    x0_error = take(process.sigma / process.alpha) * (eps - eps_hat)
    mean_error = take(process.posterior_mean_coef1) * x0_error
    kl = 0.5 * (
        log_variance
        - true_log_variance
        - 1.0
        + jnp.exp(true_log_variance - log_variance)
        + jnp.square(mean_error) * jnp.exp(-log_variance)
    )
    nll = -_discretized_log_likelihood(x0, x0 + x0_error, log_variance)
    first = (i == 0).reshape(i.shape + (1,) * (x0.ndim - 1))
    term = jnp.where(first, nll, kl)
    return _mean_over_example(term) / jnp.log(2.0)


def _discretized_log_likelihood(
    x: jax.Array, mean: jax.Array, log_variance: jax.Array
) -> jax.Array:
    """Log of a Gaussian's mass in x's bin, 256 bins on [-1, 1] with open ends."""
    inverse_std = jnp.exp(-0.5 * log_variance)
    upper = (x - mean + 1.0 / 255.0) * inverse_std
    lower = (x - mean - 1.0 / 255.0) * inverse_std
    # The mass of (lower, upper] taken on the side where ndtr is small: differences of
    # values near one have no digits left in float32.
    flip = lower > 0
    below = jnp.where(flip, -upper, lower)
    above = jnp.where(flip, -lower, upper)
    mass = ndtr(above) - ndtr(below)
    mass = jnp.where(x > 0.999, ndtr(-lower), jnp.where(x < -0.999, ndtr(upper), mass))
    return jnp.log(jnp.maximum(mass, 1e-12))


def flow_loss(velocity: jax.Array, x0: jax.Array, eps: jax.Array) -> jax.Array:
    """Flow matching loss |v - (eps - x0)|^2, averaged over the example.

    For z_t = (1 - t) x0 + t eps (Lipman et al. 2023; Liu et al. 2023), t from data (0)
    to noise (1).

    Args:
        velocity: Network output `[b, ...]`.
        x0: Clean samples `[b, ...]`.
        eps: The noise that made z_t `[b, ...]`.

    Returns:
        Losses `[b]`.

    Raises:
        ValueError: For shapes that disagree.
    """
    _same_shape("velocity", velocity, x0.shape)
    _same_shape("eps", eps, x0.shape)
    return _mean_over_example(jnp.square(velocity - (eps - x0)))


def kl_to_standard_normal(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """KL(N(mean, exp(logvar)) || N(0, 1)), summed over the example.

    Args:
        mean: Means `[b, ...]`.
        logvar: Log variances `[b, ...]`.

    Returns:
        Divergences in nats `[b]`.
    """
    axes = tuple(range(1, mean.ndim))
    return 0.5 * jnp.sum(jnp.square(mean) + jnp.expm1(logvar) - logvar, axis=axes)


def autoencoder_loss(
    reconstruction: jax.Array,
    images: jax.Array,
    mean: jax.Array,
    logvar: jax.Array,
    *,
    l1_weight: float = 1.0,
    mse_weight: float = 0.0,
    kl_weight: float = 1e-6,
) -> jax.Array:
    """Reconstruction loss of a KL autoencoder (Rombach et al. 2022), no adversary.

    (l1_weight |r - x|_1 + mse_weight |r - x|_2^2 + kl_weight KL) / (h w c): all sums
    are divided by the number of image values, so that weights are those of
    latent-diffusion (which sums) and the loss does not grow with the image.

    Args:
        reconstruction: Decoded images `[b, h, w, c]`.
        images: Images `[b, h, w, c]` in [-1, 1].
        mean: Latent means `[b, h', w', c']`.
        logvar: Latent log variances `[b, h', w', c']`.
        l1_weight: Weight of the absolute error.
        mse_weight: Weight of the squared error.
        kl_weight: Weight of the divergence, see `kl_to_standard_normal`.

    Returns:
        Losses `[b]`.
    """
    error = reconstruction - images
    pixels = l1_weight * jnp.abs(error) + mse_weight * jnp.square(error)
    divergence = kl_to_standard_normal(mean, logvar) / math.prod(error.shape[1:])
    return _mean_over_example(pixels) + kl_weight * divergence
