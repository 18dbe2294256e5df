"""Single sampling steps z_i -> z_{i-1}.

Each step takes a `Prediction`, not a network, so guidance may change the prediction
before the step, or the returned sample after it. `i` is one index for the whole batch
`[]` or one for each example `[b]`, and may be traced. At i = 0 no noise is added and
the step returns the estimate of the clean sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp

from ot_dd.diffusion.process import Prediction, Process, at, expand


def _previous(
    process: Process, i: jax.Array | int, z: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return (alpha_{i-1}, sigma_{i-1}), which is (1, 0) at i = 0."""
    last = jnp.maximum(jnp.asarray(i) - 1, 0)
    first = expand(jnp.asarray(i) == 0, z)
    alpha = jnp.where(first, 1.0, at(process.alpha, last, z))
    return alpha, jnp.where(first, 0.0, at(process.sigma, last, z))


def _require_posterior(process: Process, step: str) -> None:
    if process.posterior_variance is None:
        raise ValueError(f"{step} needs a process made by ddpm_process; use flow_step")


def ddpm_step(
    process: Process,
    i: jax.Array | int,
    z: jax.Array,
    prediction: Prediction,
    noise: jax.Array,
) -> jax.Array:
    """Draw z_{i-1} from the reverse chain of DDPM (Ho et al. 2020).

    z_{i-1} = coef1_i x0 + coef2_i z_i + exp(log_variance / 2) noise, where the log
    variance is the prediction's, or the posterior's if none was learned ("fixed small"
    in improved-diffusion).

    Args:
        process: A process made by `ddpm_process`.
        i: Step index, `[]` or `[b]`.
        z: Samples z_i `[b, ...]`.
        prediction: Estimates at z_i; its `eps` is not used.
        noise: Standard normal `[b, ...]`.

    Returns:
        z_{i-1} `[b, ...]`.

    Raises:
        ValueError: If the process is a flow.
    """
    _require_posterior(process, "ddpm_step")
    mean = (
        at(process.posterior_mean_coef1, i, z) * prediction.x0
        + at(process.posterior_mean_coef2, i, z) * z
    )
    log_variance = prediction.log_variance
    if log_variance is None:
        log_variance = at(process.posterior_log_variance, i, z)
    first = expand(jnp.asarray(i) == 0, z)
    return mean + jnp.where(first, 0.0, jnp.exp(0.5 * log_variance)) * noise


def ddim_step(
    process: Process,
    i: jax.Array | int,
    z: jax.Array,
    prediction: Prediction,
    noise: jax.Array | None = None,
    *,
    eta: float = 0.0,
) -> jax.Array:
    """Step to z_{i-1} by DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16).

    z_{i-1} = alpha_{i-1} x0 + sqrt(sigma_{i-1}^2 - s^2) eps + s noise with
    s = eta sqrt(posterior_variance_i). eta = 0 is deterministic, eta = 1 is DDPM with
    the posterior variance. A learned variance is not used.

    Args:
        process: A process made by `ddpm_process`.
        i: Step index, `[]` or `[b]`.
        z: Samples z_i `[b, ...]`; only its rank matters, the prediction holds the rest.
        prediction: Estimates at z_i.
        noise: Standard normal `[b, ...]`; may be None with eta = 0.
        eta: Share of the posterior's standard deviation, in 0..1.

    Returns:
        z_{i-1} `[b, ...]`.

    Raises:
        ValueError: If the process is a flow, or noise is missing.
    """
    _require_posterior(process, "ddim_step")
    if noise is None and not (isinstance(eta, int | float) and eta == 0):
        raise ValueError(f"ddim_step needs noise with eta = {eta}, found None")
    alpha, sigma = _previous(process, i, z)
    variance = eta**2 * at(process.posterior_variance, i, z)
    direction = jnp.sqrt(jnp.maximum(sigma**2 - variance, 0.0))
    mean = alpha * prediction.x0 + direction * prediction.eps
    return mean if noise is None else mean + jnp.sqrt(variance) * noise


def flow_step(
    process: Process,
    i: jax.Array | int,
    z: jax.Array,
    prediction: Prediction,
    noise: jax.Array | None = None,
) -> jax.Array:
    """Take an Euler step along the flow, z_{i-1} = z_i + (t_{i-1} - t_i)(eps - x0).

    Written as alpha_{i-1} x0 + sigma_{i-1} eps, which is the same for a consistent
    prediction (z_i = alpha_i x0 + sigma_i eps). When guidance moves x0 it must say what
    becomes of eps: kept, the move arrives in z_{i-1} times alpha_{i-1}.

    Args:
        process: A noising process; the equation above is for `flow_process`.
        i: Step index, `[]` or `[b]`.
        z: Samples z_i `[b, ...]`; only its rank matters, the prediction holds the rest.
        prediction: Estimates at z_i.
        noise: Ignored: the flow is deterministic. Here so that samplers share one
            signature.

    Returns:
        z_{i-1} `[b, ...]`.
    """
    del noise
    alpha, sigma = _previous(process, i, z)
    return alpha * prediction.x0 + sigma * prediction.eps


# All are called as sampler(process, i, z, prediction, noise).
SAMPLERS: Mapping[str, Callable[..., jax.Array]] = MappingProxyType(
    {"ddpm": ddpm_step, "ddim": ddim_step, "flow": flow_step}
)
