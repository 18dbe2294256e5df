"""Steps of the training loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ot_dd.training import make_state, make_step


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_average_of_narrow_parameters_is_wide(dtype):
    def loss(params, model_state, key, data):
        return jnp.sum(params["w"] ** 2).astype(jnp.float32), (model_state, {})

    tx = optax.sgd(1e-2)
    step = make_step(loss, tx, ema_decay=0.999)
    state = make_state({"w": jnp.full(3, 1.0, dtype)}, tx)
    state, _ = jax.lax.scan(
        lambda s, _: step(s, jax.random.key(0), None), state, length=50
    )
    assert state.params["w"].dtype == dtype and state.ema["w"].dtype == jnp.float32
    # (1 + s) / (10 + s) of the average so far, and the rest of what is new.
    parameter = average = np.full((), 1.0, dtype)
    average = np.float32(average)
    for s in range(50):
        parameter = np.asarray(jnp.asarray(parameter * dtype(0.98), dtype))
        decay = (1 + s) / (10 + s)
        average = decay * average + (1 - decay) * np.float32(parameter)
    np.testing.assert_allclose(state.ema["w"], average, rtol=5e-2)
