"""Learning-rate schedules beyond optax's own."""

import jax.numpy as jnp
import optax


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


def step_decay(peak: float, num_steps: int, decays: tuple[tuple[float, float], ...]):
    """Returns `peak`, multiplied by each factor once its share of the run is done.

    Args:
      peak: learning rate at step 0.
      num_steps: steps in the run.
      decays: `(share, factor)` pairs, such as `((2 / 3, 0.2), (5 / 6, 0.2))`.
    """
    boundaries: dict[int, float] = {}
    for share, factor in decays:
        step = int(share * num_steps + 1e-6)  # 0.29 * 100 is 28.999...
        boundaries[step] = boundaries.get(step, 1.0) * factor
    return optax.piecewise_constant_schedule(peak, boundaries)
