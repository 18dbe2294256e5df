"""Sampling steps against diffusers, and on a Gaussian whose denoiser is known.

For x0 ~ N(m, s^2) the exact denoiser is linear,

    E[x0 | z] = m + k (z - alpha m),   k = alpha s^2 / (alpha^2 s^2 + sigma^2),

so every sampler's output is Gaussian and its mean and variance are known.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ot_dd.diffusion.process import (
    Prediction,
    add_noise,
    ddpm_process,
    flow_process,
    predict,
)
from ot_dd.diffusion.samplers import SAMPLERS, ddim_step, ddpm_step, flow_step

MEAN, STD = 1.5, 0.4
SAMPLES = 40_000


@pytest.fixture
def batch():
    """Noisy samples, network output with sigma, and noise, all of 4 x 4 x 2."""
    keys = jax.random.split(jax.random.key(1), 3)
    shapes = [(3, 4, 4, 2), (3, 4, 4, 4), (3, 4, 4, 2)]
    return tuple(jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True))


def _torch(x):
    return pytest.importorskip("torch").from_numpy(np.array(x)).movedim(-1, 1)


def _numpy(x):
    return x.movedim(1, -1).numpy()


@pytest.mark.parametrize("variance_type", ["fixed_small", "learned_range"])
@pytest.mark.parametrize("i", [49, 25, 1, 0])
def test_ddpm_step_matches_diffusers(batch, monkeypatch, variance_type, i):
    diffusers = pytest.importorskip("diffusers")
    z, output, noise = batch
    learned = variance_type == "learned_range"
    output = output if learned else output[..., :2]
    scheduler = diffusers.DDPMScheduler(
        1000,
        variance_type=variance_type,
        timestep_spacing="linspace",
        clip_sample=False,
    )
    scheduler.set_timesteps(50)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor",
        lambda *args, **kwargs: _torch(noise),
    )
    process = ddpm_process(50)
    theirs = scheduler.step(_torch(output), int(process.timestep[i]), _torch(z))
    prediction = predict(
        process,
        i,
        z,
        output,
        parametrization="epsilon_sigma" if learned else "epsilon",
    )
    ours = jax.jit(ddpm_step)(process, i, z, prediction, noise)
    np.testing.assert_allclose(
        prediction.x0, _numpy(theirs.pred_original_sample), rtol=2e-4, atol=2e-3
    )
    np.testing.assert_allclose(ours, _numpy(theirs.prev_sample), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("i", [49, 25, 1, 0])
def test_ddim_step_matches_diffusers(batch, eta, i):
    diffusers = pytest.importorskip("diffusers")
    z, output, noise = batch
    process = ddpm_process(50)
    # Respaced betas as a schedule of its own: diffusers' DDIM assumes a constant
    # stride between timesteps, which 999 / 49 is not.
    scheduler = diffusers.DDIMScheduler(
        50, trained_betas=np.asarray(process.betas), clip_sample=False
    )
    scheduler.set_timesteps(50)
    theirs = scheduler.step(
        _torch(output[..., :2]), i, _torch(z), eta=eta, variance_noise=_torch(noise)
    ).prev_sample
    prediction = predict(process, i, z, output[..., :2])
    step = jax.jit(ddim_step, static_argnames="eta")
    ours = step(process, i, z, prediction, noise, eta=eta)
    np.testing.assert_allclose(ours, _numpy(theirs), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("i", [9, 4, 0])
def test_flow_step_matches_diffusers(batch, i):
    diffusers = pytest.importorskip("diffusers")
    z, output, noise = batch
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(1000)
    process = flow_process(10)
    scheduler.set_timesteps(sigmas=np.asarray(process.sigma)[::-1].tolist())
    time = scheduler.timesteps[9 - i]
    theirs = scheduler.step(_torch(output[..., :2]), time, _torch(z)).prev_sample
    prediction = predict(process, i, z, output[..., :2], parametrization="velocity")
    ours = jax.jit(flow_step)(process, i, z, prediction, noise)
    np.testing.assert_allclose(ours, _numpy(theirs), atol=1e-5)


def test_ddim_with_noise_needs_it(batch):
    with pytest.raises(ValueError, match="needs noise with eta = 1.0"):
        ddim_step(ddpm_process(1000), 5, None, None, None, eta=1.0)


def test_ddim_with_eta_one_is_ddpm(batch):
    z, output, noise = batch
    process = ddpm_process(20)
    prediction = predict(process, 7, z, output[..., :2])
    np.testing.assert_allclose(
        ddim_step(process, 7, z, prediction, noise, eta=1.0),
        ddpm_step(process, 7, z, prediction, noise),
        atol=1e-5,
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_common_signature(batch, name):
    """A step for each example equals steps one by one; the last returns x0."""
    z, output, noise = batch
    process = flow_process(10) if name == "flow" else ddpm_process(10)
    parametrization = "velocity" if name == "flow" else "epsilon"

    def step(i, z, output, noise):
        prediction = predict(process, i, z, output, parametrization=parametrization)
        return SAMPLERS[name](process, i, z, prediction, noise), prediction.x0

    i = jnp.array([9, 4, 0])
    together, x0 = jax.jit(step)(i, z, output[..., :2], noise)
    alone, _ = jax.vmap(lambda i, *a: step(i, *(v[None] for v in a)))(
        i, z, output[..., :2], noise
    )
    np.testing.assert_allclose(together, alone[:, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(together[2], x0[2], rtol=1e-5, atol=1e-5)
    assert not np.allclose(together[1], x0[1], atol=1e-2)


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_flow_has_no_posterior(batch, name):
    z, _, noise = batch
    with pytest.raises(ValueError, match="ddpm_process; use flow_step"):
        SAMPLERS[name](flow_process(5), 0, z, Prediction(z, z), noise)


def _exact_prediction(process, i, z, *, learn_variance=False):
    alpha, sigma = process.alpha[i], process.sigma[i]
    total = alpha**2 * STD**2 + sigma**2
    centred = z - alpha * MEAN
    x0 = MEAN + alpha * STD**2 / total * centred
    log_variance = None
    if learn_variance:
        # Var[z_{i-1} | z_i]: the posterior's plus what is unknown of x0.
        unknown = process.posterior_mean_coef1[i] ** 2 * STD**2 * sigma**2 / total
        log_variance = jnp.log(process.posterior_variance[i] + unknown)
        log_variance = jnp.broadcast_to(log_variance, z.shape)
    return Prediction(x0, sigma / total * centred, log_variance)


def _sample(step, process, *, learn_variance=False):
    num_steps = process.alpha.shape[0]
    start, key = jax.random.split(jax.random.key(2))
    # At t = 1 of a DDPM a trace of x0 is left; start at the exact marginal.
    x0 = MEAN + STD * jax.random.normal(jax.random.fold_in(start, 0), (SAMPLES, 1))
    eps = jax.random.normal(jax.random.fold_in(start, 1), (SAMPLES, 1))
    z = add_noise(process, num_steps - 1, x0, eps)

    def body(k, z):
        i = num_steps - 1 - k
        prediction = _exact_prediction(process, i, z, learn_variance=learn_variance)
        noise = jax.random.normal(jax.random.fold_in(key, i), z.shape)
        return step(process, i, z, prediction, noise)

    return np.asarray(jax.jit(lambda z: jax.lax.fori_loop(0, num_steps, body, z))(z))


def _assert_moments(samples, mean, std, *, slack=0.0):
    """Compare within four standard errors, plus a share `slack` for discretisation."""
    error = 4 * std / np.sqrt(samples.size)
    np.testing.assert_allclose(samples.mean(), mean, atol=error)
    np.testing.assert_allclose(
        samples.std(), std, atol=error / np.sqrt(2) + slack * std
    )


def test_ddpm_samples_a_gaussian_exactly_with_its_variance():
    """With the exact reverse variance, ten steps are as good as a thousand."""
    process = ddpm_process(10)
    samples = _sample(ddpm_step, process, learn_variance=True)
    # The last step returns E[x0 | z_0], which lacks Var[x0 | z_0].
    lost = 1 / (1 / STD**2 + (process.alpha[0] / process.sigma[0]) ** 2)
    _assert_moments(samples, MEAN, np.sqrt(STD**2 - float(lost)))


def test_ddpm_samples_a_gaussian_with_many_steps():
    samples = _sample(ddpm_step, ddpm_process(1000))
    _assert_moments(samples, MEAN, STD, slack=0.02)


@pytest.mark.parametrize(
    ("step", "process"),
    [
        (ddim_step, ddpm_process(50)),
        (flow_step, flow_process(50)),
        (flow_step, flow_process(50, shift=2.0)),
    ],
    ids=["ddim", "flow", "flow_shifted"],
)
def test_deterministic_samplers_on_a_gaussian(step, process):
    """Close to the data, and exactly the discretised linear map."""
    samples = _sample(step, process)
    _assert_moments(samples, MEAN, STD, slack=0.06)
    alpha = np.append(1.0, np.asarray(process.alpha, np.float64))
    sigma = np.append(0.0, np.asarray(process.sigma, np.float64))
    total = alpha**2 * STD**2 + sigma**2
    # z_{i-1} - alpha_{i-1} m = gain_i (z_i - alpha_i m).
    gain = (alpha[:-1] * alpha[1:] * STD**2 + sigma[:-1] * sigma[1:]) / total[1:]
    _assert_moments(samples, MEAN, np.prod(gain) * np.sqrt(total[-1]))


def test_stochastic_ddim_on_a_gaussian():
    def step(*args):
        return ddim_step(*args, eta=0.5)

    _assert_moments(_sample(step, ddpm_process(200)), MEAN, STD, slack=0.06)


def test_discretisation_error_shrinks_with_the_steps():
    errors = [
        abs(_sample(flow_step, flow_process(n)).std() / STD - 1) for n in (10, 20, 40)
    ]
    assert errors[0] > 1.5 * errors[1] > 2.0 * errors[2]
