"""Noising processes and what a network's output says about them.

Every process is a table over the sampling steps i = 0..N-1 (N-1 is the noisiest):

    z_i = alpha_i * x0 + sigma_i * eps,    eps ~ N(0, I),    z_{-1} = x0.

A table covers DDPM (Ho et al. 2020), its respacing to fewer steps (Nichol and Dhariwal
2021, improved-diffusion) and flow matching (Lipman et al. 2023; Liu et al. 2023), so
samplers and guidance never ask which of them they run.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

Parametrization = Literal["epsilon", "epsilon_sigma", "velocity"]


class Process(NamedTuple):
    """Coefficients of a noising process at each step; float32 arrays `[N]`.

    The fields after `timestep` describe q(z_{i-1} | z_i, x0), which only a DDPM process
    has; they are None for a flow.

    Attributes:
        alpha: Factor of the clean sample.
        sigma: Factor of the noise, a standard deviation.
        timestep: What the network receives: the index in the training schedule for
            DDPM, 1000 t for a flow.
        betas: Variances of the forward steps between the kept timesteps.
        posterior_variance: Var[z_{i-1} | z_i, x0], zero at i = 0.
        posterior_log_variance: Its logarithm; entry 0 repeats entry 1 instead of
            log 0.
        posterior_mean_coef1: Factor of x0 in E[z_{i-1} | z_i, x0].
        posterior_mean_coef2: Factor of z_i in E[z_{i-1} | z_i, x0].
    """

    alpha: jax.Array
    sigma: jax.Array
    timestep: jax.Array
    betas: jax.Array | None = None
    posterior_variance: jax.Array | None = None
    posterior_log_variance: jax.Array | None = None
    posterior_mean_coef1: jax.Array | None = None
    posterior_mean_coef2: jax.Array | None = None


class Prediction(NamedTuple):
    """What the network believes at `z_i`: arrays shaped as `z`.

    Attributes:
        x0: Estimate of the clean sample, E[x0 | z_i].
        eps: Estimate of the noise.
        log_variance: Log variance of z_{i-1} given z_i if it was learned, else None.
    """

    x0: jax.Array
    eps: jax.Array
    log_variance: jax.Array | None = None


def ddpm_process(
    num_steps: int,
    *,
    num_train_steps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
) -> Process:
    """Build the DDPM process with linear betas, respaced to `num_steps` steps.

    The kept timesteps run from 0 to `num_train_steps - 1` at an even stride, rounded,
    as `space_timesteps` of improved-diffusion chooses them; betas are recomputed as
    `1 - alphas_cumprod[t_i] / alphas_cumprod[t_{i-1}]`, so the marginals at the kept
    timesteps stay those of training.

    Args:
        num_steps: Number of sampling steps N, in 2..`num_train_steps`.
        num_train_steps: Length of the schedule that the network was trained with.
        beta_start: First variance of that schedule.
        beta_end: Last variance of that schedule.

    Returns:
        The process, every field an array `[num_steps]`.

    Raises:
        ValueError: If `num_steps` is outside 2..`num_train_steps`.
    """
    if not 2 <= num_steps <= num_train_steps:
        raise ValueError(
            f"num_steps must be in 2..num_train_steps={num_train_steps}, "
            f"got {num_steps}"
        )
    # float64: 1 - alphas_cumprod loses digits at the clean end in float32.
    train_betas = np.linspace(beta_start, beta_end, num_train_steps, dtype=np.float64)
    stride = (num_train_steps - 1) / (num_steps - 1)
    # A running sum, not a product: a stride can land on .5, where the two round apart,
    # and released networks are sampled with the sum.
    timestep = np.round(np.cumsum([0.0] + [stride] * (num_steps - 1))).astype(int)
    alphas_cumprod = np.cumprod(1.0 - train_betas)[timestep]
    previous = np.append(1.0, alphas_cumprod[:-1])
    betas = 1.0 - alphas_cumprod / previous
    variance = betas * (1.0 - previous) / (1.0 - alphas_cumprod)
    fields = Process(
        alpha=np.sqrt(alphas_cumprod),
        sigma=np.sqrt(1.0 - alphas_cumprod),
        timestep=timestep,
        betas=betas,
        posterior_variance=variance,
        posterior_log_variance=np.log(np.append(variance[1], variance[1:])),
        posterior_mean_coef1=betas * np.sqrt(previous) / (1.0 - alphas_cumprod),
        posterior_mean_coef2=(1.0 - previous)
        * np.sqrt(1.0 - betas)
        / (1.0 - alphas_cumprod),
    )
    return Process(*(jnp.asarray(field, jnp.float32) for field in fields))


def flow_process(num_steps: int, *, shift: float = 1.0) -> Process:
    """Build the straight path between data and noise: alpha = 1 - t, sigma = t.

    Times are even on (0, 1] before the shift `t -> shift t / (1 + (shift - 1) t)` of
    Esser et al. 2024 (arXiv 2403.03206): index N-1 has t = 1, and step i goes from t_i
    to t_{i-1}, with t_{-1} = 0.

    Args:
        num_steps: Number of Euler steps N, at least 1.
        shift: Above 1, more of the steps are spent at the noisy end.

    Returns:
        The process; fields of the DDPM posterior are None.

    Raises:
        ValueError: If `num_steps` is below 1 or `shift` is not positive.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if shift <= 0:
        raise ValueError(f"shift must be positive, got {shift}")
    t = np.arange(1, num_steps + 1, dtype=np.float64) / num_steps
    t = shift * t / (1.0 + (shift - 1.0) * t)
    fields = (1.0 - t, t, 1000.0 * t)
    return Process(*(jnp.asarray(field, jnp.float32) for field in fields))


def expand(values: jax.Array, like: jax.Array) -> jax.Array:
    """Shape per-example values `[b]` as `[b, 1, ...]`, of the rank of `like`.

    More leading axes stay as they are, and a scalar stays one.
    """
    if not values.ndim:
        return values
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def at(values: jax.Array, i: jax.Array | int, like: jax.Array) -> jax.Array:
    """Take `values[i]`, shaped to broadcast against `like`.

    Args:
        values: A field of a process `[N]`.
        i: One step for the whole batch `[]`, or one for each example `[b]`.
        like: An array `[b, ...]`.

    Returns:
        A scalar, or `[b, 1, ...]` of the rank of `like`.
    """
    return expand(jnp.asarray(values)[jnp.asarray(i)], like)


def add_noise(
    process: Process, i: jax.Array | int, x0: jax.Array, eps: jax.Array
) -> jax.Array:
    """Return `z_i = alpha_i x0 + sigma_i eps` `[b, ...]`; `i` is `[]` or `[b]`."""
    return at(process.alpha, i, x0) * x0 + at(process.sigma, i, x0) * eps


def predict(
    process: Process,
    i: jax.Array | int,
    z: jax.Array,
    output: jax.Array,
    *,
    parametrization: Parametrization = "epsilon",
) -> Prediction:
    """Read a network's output as estimates of the clean sample and of the noise.

    - "epsilon": the output is eps, and x0 = (z - sigma eps) / alpha. Without meaning
      where alpha = 0, the last index of a flow.
    - "epsilon_sigma": the first half of the channels is eps, the second v gives the
      learned range of improved-diffusion over the respaced betas,
      log_variance = f log beta_i + (1 - f) posterior_log_variance_i, f = (v + 1) / 2.
    - "velocity": the output is eps - x0, the velocity of the straight path; with
      alpha + sigma = 1, x0 = z - sigma v and eps = z + alpha v.

    Args:
        process: The noising process.
        i: Step index, `[]` or `[b]`, may be traced.
        z: Noisy samples `[b, ..., c]`.
        output: Network output, `[b, ..., c]`, or `[b, ..., 2 c]` with a learned sigma.
        parametrization: What the output means.

    Returns:
        The prediction.

    Raises:
        ValueError: If the parametrization is unknown, the output's shape does not fit
            it, or a learned sigma is read over a process without a posterior.
    """
    if parametrization not in get_args(Parametrization):
        raise ValueError(
            f"parametrization must be one of {get_args(Parametrization)}, "
            f"got {parametrization!r}"
        )
    channels = z.shape[-1] * (2 if parametrization == "epsilon_sigma" else 1)
    if output.shape != (*z.shape[:-1], channels):
        raise ValueError(
            f"parametrization {parametrization!r} with z of shape {z.shape} needs an "
            f"output of shape {(*z.shape[:-1], channels)}, got {output.shape}"
        )
    alpha, sigma = at(process.alpha, i, z), at(process.sigma, i, z)
    if parametrization == "velocity":
        # The division covers any path; on the flow's own it is by one.
        total = alpha + sigma
        return Prediction((z - sigma * output) / total, (z + alpha * output) / total)
    if parametrization == "epsilon":
        return Prediction((z - sigma * output) / alpha, output)
    if process.posterior_log_variance is None:
        raise ValueError("'epsilon_sigma' needs a process made by ddpm_process")
    eps, v = jnp.split(output, 2, axis=-1)
    fraction = (v + 1.0) / 2.0
    log_variance = fraction * jnp.log(at(process.betas, i, z)) + (1.0 - fraction) * at(
        process.posterior_log_variance, i, z
    )
    return Prediction((z - sigma * eps) / alpha, eps, log_variance)


def classifier_free_guidance(
    cond: jax.Array,
    uncond: jax.Array,
    scale: jax.Array | float,
    *,
    channels: int | None = None,
) -> jax.Array:
    """Extrapolate from the unconditional to the conditional output.

    `uncond + scale (cond - uncond)` (Ho and Salimans 2022, arXiv 2207.12598): scale 1
    is the conditional model, 0 the unconditional one. With a learned sigma, pass
    `channels`: a log variance is not meant to be extrapolated. The released DiT
    networks are sampled with 3 of their 4 latent channels guided (`channels=3`), and
    published numbers depend on that.

    Args:
        cond: Output with the class `[b, ..., k]`.
        uncond: Output with the null class `[b, ..., k]`.
        scale: Guidance scale.
        channels: Guide only this many leading channels; the rest is `cond`'s. None
            guides all.

    Returns:
        The guided output `[b, ..., k]`.
    """
    guided = uncond + scale * (cond - uncond)
    if channels is None:
        return guided
    return jnp.concatenate([guided[..., :channels], cond[..., channels:]], axis=-1)
