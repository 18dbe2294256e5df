"""Steps of the training loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ot_dd.data import Stream
from ot_dd.training import fit, make_state, make_step
from ot_dd.training.schedules import step_decay
from ot_dd.workdir import WorkDir


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


def test_a_state_without_an_average():
    tx = optax.sgd(1e-2)
    state = make_state({"w": jnp.ones(3)}, tx, average=False)
    state, _ = make_step(quadratic, tx)(state, jax.random.key(0), None)
    np.testing.assert_allclose(state.params["w"], 0.98)
    assert state.ema is None


def train(folder, loss, *, num_steps, tx=None, params=None, data=(), save_every=1):
    """Runs `fit` one step at a time, in a directory that it may have been run in."""
    work, tx = WorkDir(folder), tx or optax.sgd(1e-2)
    checkpoints = work.checkpoints("net")
    params = {"w": jnp.ones(3)} if params is None else params
    try:
        return fit(
            "net", make_state(params, tx), make_step(loss, tx), data, jax.random.key(0),
            num_steps=num_steps, checkpoints=checkpoints, metrics=work.metrics, chunk=1,
            save_every=save_every,
        )  # fmt: skip
    finally:
        checkpoints.close()


def quadratic(params, state, key, data):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)), (state, {})


def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
    def root(params, state, key, data):  # Its value is 0, its gradient is not a number.
        w = params["w"]
        return quadratic(params, state, key, data)[0] + jnp.sum(jnp.sqrt(w - w)), (
            state, {},
        )  # fmt: skip

    train(tmp_path, quadratic, num_steps=2)
    with pytest.raises(FloatingPointError, match="parameters are not finite at step 3"):
        train(tmp_path, root, num_steps=4)
    state, curve = train(tmp_path, quadratic, num_steps=4)
    assert curve["step"] == [1, 2, 3, 4]
    np.testing.assert_allclose(state.params["w"], 0.98**4, rtol=1e-5)


@pytest.mark.parametrize("tx", [optax.sgd(1e-2), optax.contrib.dog()])
def test_arrays_that_a_state_holds_twice_can_be_donated(tmp_path, tx):
    w = jnp.ones(3)
    state, _ = train(tmp_path, quadratic, num_steps=2, tx=tx, params={"v": w, "w": w})
    np.testing.assert_array_equal(w, 1)  # The caller still has its own.
    np.testing.assert_array_equal(state.params["v"], state.params["w"])
    assert (state.params["w"] < 1).all()


def test_a_run_of_fewer_steps_than_were_done_is_refused(tmp_path):
    train(tmp_path, quadratic, num_steps=3)
    with pytest.raises(ValueError, match="is at step 3, beyond num_steps=2"):
        train(tmp_path, quadratic, num_steps=2)


def test_a_run_that_is_made_longer_keeps_its_early_curve(tmp_path):
    train(tmp_path, quadratic, num_steps=100, save_every=100)
    _, curve = train(tmp_path, quadratic, num_steps=200, save_every=200)
    assert curve["step"] == list(range(2, 201, 2))
    losses = 3 * 0.98 ** (2 * (np.asarray(curve["step"]) - 1))
    np.testing.assert_allclose(curve["loss"], losses, rtol=1e-4)


def test_a_run_that_fails_before_it_saves_says_so(tmp_path):
    def fails(params, state, key, data):
        return jnp.sum(params["w"]) / 0, (state, {})

    with pytest.raises(
        FloatingPointError, match="at step 1; there is no checkpoint yet"
    ):
        train(tmp_path, fails, num_steps=9, save_every=5)


def test_metrics_may_not_have_the_names_of_what_is_written_beside_them(tmp_path):
    def loss(params, state, key, data):
        return quadratic(params, state, key, data)[0], (state, {"step": 1.0})

    with pytest.raises(ValueError, match=r"metrics called \['step'\]: rename"):
        train(tmp_path, loss, num_steps=1)


def test_beside_a_stream_nothing_is_left_out(tmp_path):
    stream = Stream((np.zeros((4, 2), "f4"),), 2, 0)
    for other in (None, stream):
        with pytest.raises(ValueError, match="neither another nor None"):
            train(tmp_path, quadratic, num_steps=1, data=(stream, other))


def test_decays_at_one_step_are_all_taken():
    rate = step_decay(1.0, 3, ((2 / 3, 0.2), (5 / 6, 0.2)))
    assert [round(float(rate(s)), 3) for s in range(3)] == [1.0, 1.0, 0.04]
    rate = step_decay(1.0, 100, ((0.29, 0.5),))
    assert [float(rate(s)) for s in (28, 29)] == [1.0, 0.5]
