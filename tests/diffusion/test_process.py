"""Noising processes against diffusers and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ot_dd.diffusion.process import (
    add_noise,
    classifier_free_guidance,
    ddpm_process,
    flow_process,
    predict,
)


@pytest.fixture
def batch():
    """Clean samples and noise `[3, 4, 4, 2]`."""
    keys = jax.random.split(jax.random.key(0))
    return tuple(jax.random.normal(key, (3, 4, 4, 2)) for key in keys)


def test_full_schedule_matches_diffusers():
    scheduler = pytest.importorskip("diffusers").DDPMScheduler(
        1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear"
    )
    process = ddpm_process(1000)
    cumprod = scheduler.alphas_cumprod.numpy().astype(np.float64)
    np.testing.assert_allclose(process.betas, scheduler.betas, rtol=2e-5)
    np.testing.assert_allclose(process.alpha, np.sqrt(cumprod), rtol=2e-5)
    # Their 1 - alphas_cumprod is rounded in float32 near the clean end.
    np.testing.assert_allclose(process.sigma, np.sqrt(1 - cumprod), rtol=5e-4)
    np.testing.assert_array_equal(process.timestep, np.arange(1000))


@pytest.mark.parametrize("num_steps", [10, 50, 250])
def test_respacing_matches_diffusers(num_steps):
    scheduler = pytest.importorskip("diffusers").DDPMScheduler(
        1000, variance_type="fixed_small", timestep_spacing="linspace"
    )
    scheduler.set_timesteps(num_steps)
    process = ddpm_process(num_steps)
    timesteps = scheduler.timesteps.numpy()[::-1]
    np.testing.assert_array_equal(process.timestep, timesteps)
    variance = [float(scheduler._get_variance(int(t))) for t in timesteps]
    np.testing.assert_allclose(process.posterior_variance[1:], variance[1:], rtol=2e-3)


def test_respaced_marginals_are_those_of_training():
    full, process = ddpm_process(1000), ddpm_process(50)
    kept = np.asarray(process.timestep, int)
    assert kept[0] == 0 and kept[-1] == 999 and len(set(kept)) == 50
    np.testing.assert_allclose(process.alpha, full.alpha[kept], rtol=1e-6)
    np.testing.assert_allclose(
        process.alpha, jnp.sqrt(jnp.cumprod(1 - process.betas)), rtol=1e-4
    )
    np.testing.assert_allclose(process.alpha**2 + process.sigma**2, 1, rtol=1e-6)


def test_spacing_rounds_the_running_sum():
    # 999 / 20 = 49.95: ten exact strides are 499.5, which rounds to 500 (to even); the
    # running sum in double precision decides, as it does in improved-diffusion.
    total, expected = 0.0, []
    for _ in range(21):
        expected.append(round(total))
        total += 999 / 20
    np.testing.assert_array_equal(ddpm_process(21).timestep, expected)


def test_posterior_by_bayes_rule():
    """q(z_{i-1} | z_i, x0) from products of Gaussians, and the clipped logarithm."""
    process = ddpm_process(10)
    alpha2 = np.asarray(process.alpha, np.float64) ** 2
    ratio = alpha2[1:] / alpha2[:-1]
    # Prior N(alpha_{i-1} x0, 1 - alpha2_{i-1}); likelihood N(sqrt(ratio) z, 1 - ratio).
    precision = 1 / (1 - alpha2[:-1]) + ratio / (1 - ratio)
    coef1 = np.sqrt(alpha2[:-1]) / (1 - alpha2[:-1]) / precision
    coef2 = np.sqrt(ratio) / (1 - ratio) / precision
    tolerance = {"rtol": 1e-3}
    np.testing.assert_allclose(
        process.posterior_variance[1:], 1 / precision, **tolerance
    )
    np.testing.assert_allclose(process.posterior_mean_coef1[1:], coef1, **tolerance)
    np.testing.assert_allclose(process.posterior_mean_coef2[1:], coef2, **tolerance)
    assert process.posterior_variance[0] == 0
    assert process.posterior_mean_coef1[0] == 1
    assert process.posterior_mean_coef2[0] == 0
    log_variance = process.posterior_log_variance
    np.testing.assert_allclose(
        log_variance[1:], np.log(process.posterior_variance[1:]), rtol=1e-5
    )
    assert log_variance[0] == log_variance[1]


def test_flow_grid():
    process = flow_process(4)
    np.testing.assert_allclose(process.sigma, [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(process.alpha, [0.75, 0.5, 0.25, 0.0])
    np.testing.assert_allclose(process.timestep, [250, 500, 750, 1000])
    shifted = flow_process(4, shift=3.0)
    np.testing.assert_allclose(shifted.sigma, [0.5, 0.75, 0.9, 1.0], rtol=1e-6)


def test_flow_shift_matches_diffusers():
    scheduler = pytest.importorskip("diffusers").FlowMatchEulerDiscreteScheduler(
        1000, shift=3.0
    )
    process = flow_process(1000, shift=3.0)
    np.testing.assert_allclose(process.sigma, scheduler.sigmas.numpy()[::-1], rtol=1e-5)
    np.testing.assert_allclose(
        process.timestep, scheduler.timesteps.numpy()[::-1], rtol=1e-5
    )


@pytest.mark.parametrize("i", [5, np.array([0, 4, 9])])
@pytest.mark.parametrize("parametrization", ["epsilon", "epsilon_sigma", "velocity"])
def test_predict_inverts_add_noise(batch, i, parametrization):
    x0, eps = batch
    flow = parametrization == "velocity"
    process = flow_process(10) if flow else ddpm_process(10)
    z = add_noise(process, i, x0, eps)
    output = {
        "epsilon": eps,
        "epsilon_sigma": jnp.concatenate([eps, jnp.zeros_like(eps)], -1),
        "velocity": eps - x0,
    }[parametrization]
    prediction = jax.jit(predict, static_argnames="parametrization")(
        process, i, z, output, parametrization=parametrization
    )
    # At alpha = 0.006 an estimate of x0 from eps has lost two digits.
    np.testing.assert_allclose(prediction.x0, x0, atol=1e-6 if flow else 2e-4)
    np.testing.assert_allclose(prediction.eps, eps, atol=1e-6)
    assert (prediction.log_variance is None) == (parametrization != "epsilon_sigma")


def test_velocity_on_a_variance_preserving_path(batch):
    x0, eps = batch
    process = ddpm_process(10)
    z = add_noise(process, 6, x0, eps)
    prediction = predict(process, 6, z, eps - x0, parametrization="velocity")
    np.testing.assert_allclose(prediction.x0, x0, atol=1e-5)
    np.testing.assert_allclose(prediction.eps, eps, atol=1e-5)


@pytest.mark.parametrize("i", [1, 20, 49])
def test_learned_range_matches_diffusers(batch, i):
    torch = pytest.importorskip("torch")
    scheduler = pytest.importorskip("diffusers").DDPMScheduler(
        1000, variance_type="learned_range", timestep_spacing="linspace"
    )
    scheduler.set_timesteps(50)
    z, v = batch
    process = ddpm_process(50)
    output = jnp.concatenate([jnp.zeros_like(z), v], -1)
    ours = predict(process, i, z, output, parametrization="epsilon_sigma").log_variance
    theirs = scheduler._get_variance(
        int(process.timestep[i]), predicted_variance=torch.from_numpy(np.array(v))
    )
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-3)


def test_learned_range_ends(batch):
    z, _ = batch
    process = ddpm_process(50)
    for v, expected in [
        (-1.0, process.posterior_log_variance[7]),
        (1.0, jnp.log(process.betas[7])),
    ]:
        output = jnp.concatenate([z, jnp.full_like(z, v)], -1)
        log_variance = predict(
            process, 7, z, output, parametrization="epsilon_sigma"
        ).log_variance
        np.testing.assert_allclose(log_variance, expected, rtol=1e-6)


def test_classifier_free_guidance():
    cond = jnp.arange(8.0).reshape(1, 8)
    uncond = jnp.ones((1, 8))
    guidance = jax.jit(classifier_free_guidance, static_argnames="channels")
    np.testing.assert_allclose(guidance(cond, uncond, 1.0), cond)
    np.testing.assert_allclose(guidance(cond, uncond, 0.0), uncond)
    np.testing.assert_allclose(
        guidance(cond, uncond, 4.0, channels=3), [[-3, 1, 5, 3, 4, 5, 6, 7]]
    )


def test_bad_input_is_named():
    z = jnp.zeros((2, 4, 4, 2))
    with pytest.raises(ValueError, match="num_steps must be in 2..num_train_steps=100"):
        ddpm_process(101, num_train_steps=100)
    with pytest.raises(ValueError, match="num_steps"):
        flow_process(0)
    with pytest.raises(ValueError, match="shift"):
        flow_process(5, shift=0.0)
    with pytest.raises(ValueError, match="parametrization must be one of"):
        predict(ddpm_process(5), 0, z, z, parametrization="v")
    with pytest.raises(ValueError, match=r"output of shape \(2, 4, 4, 4\)"):
        predict(ddpm_process(5), 0, z, z, parametrization="epsilon_sigma")
    with pytest.raises(ValueError, match="ddpm_process"):
        output = jnp.zeros((2, 4, 4, 4))
        predict(flow_process(5), 0, z, output, parametrization="epsilon_sigma")
