"""Networks of the pipeline, step by step."""

import jax
import jax.numpy as jnp
import numpy as np

from configs import digits
from ot_dd.stages import networks


def test_the_last_epoch_of_the_surrogate_is_its_end():
    """Also where its epochs do not divide its steps."""
    config = digits.get_config("debug")
    config.surrogate.model, config.surrogate.options = "mlp", {}
    config.surrogate.steps, config.surrogate.epochs = 9, 5
    network = networks.surrogate(config, (8, 8, 1), 3)
    images = jax.random.normal(jax.random.key(0), (30, 8, 8, 1))
    data = images, jnp.arange(30) % 3
    state, seen = network.init(jax.random.key(1)), []
    step = jax.jit(network.step_fn)
    for number in range(10):
        seen.append(jax.tree.leaves(state.params)[0])
        if number < 9:
            state, _ = step(state, jax.random.key(number), data)
    slots = jax.tree.leaves(network.artifact(state).params)[0]
    # After 9 e / 5 steps, rounded up: whole steps only.
    wanted = [seen[number] for number in (0, 2, 4, 6, 8, 9)]
    np.testing.assert_array_equal(slots, np.stack(wanted))
