"""Learning-rate schedules beyond optax's own."""

import jax.numpy as jnp


def smoothing_cosine(peak: float, num_steps: int, zeta: float = 2.0):
    """Returns EDC's smoothing schedule `peak (1 + cos(pi step / (zeta steps))) / 2`.

    With `zeta = 2` the rate ends at half of its peak (Shao et al., NeurIPS 2024);
    `zeta = 1` is the ordinary cosine.

    Args:
      peak: learning rate at step 0.
      num_steps: steps in the run.
      zeta: how many times longer than the run the half cosine is.
    """

    def schedule(step):
        return peak * 0.5 * (1 + jnp.cos(jnp.pi * step / (zeta * num_steps)))

    return schedule
