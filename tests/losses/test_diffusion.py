"""Diffusion and autoencoder losses by closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ot_dd.diffusion.process import add_noise, ddpm_process, flow_process, predict
from ot_dd.losses.diffusion import (
    autoencoder_loss,
    epsilon_loss,
    flow_loss,
    kl_to_standard_normal,
)

STEPS = np.array([0, 1, 20, 49])


@pytest.fixture
def batch():
    """Clean samples in [-1, 1], noise, predicted noise and sigma `[4, 3, 3, 2]`."""
    keys = jax.random.split(jax.random.key(3), 4)
    x0, eps, error, v = (jax.random.normal(key, (4, 3, 3, 2)) for key in keys)
    return jnp.clip(x0, -1, 1), eps, eps + 0.1 * error, jnp.tanh(v)


def _loss(*args, **kwargs):
    return jax.jit(epsilon_loss, static_argnames="learned_sigma")(*args, **kwargs)


def test_epsilon_loss_without_sigma(batch):
    x0, eps, eps_hat, _ = batch
    loss = _loss(eps_hat, x0, eps, STEPS, ddpm_process(50), learned_sigma=False)
    expected = ((np.asarray(eps_hat) - np.asarray(eps)) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_variational_term_by_its_definition(batch):
    """Gaussian divergences between the two means, and a probability mass at i = 0."""
    x0, eps, eps_hat, v = batch
    process = ddpm_process(50)
    z = add_noise(process, STEPS, x0, eps)
    output = jnp.concatenate([eps_hat, v], -1)
    loss = _loss(output, x0, eps, STEPS, process, learned_sigma=True)
    prediction = predict(process, STEPS, z, output, parametrization="epsilon_sigma")

    x0, z, x0_hat, log_variance = (
        np.asarray(a, np.float64)
        for a in (x0, z, prediction.x0, prediction.log_variance)
    )
    coef1, coef2, true_log_variance = (
        np.asarray(field, np.float64)[STEPS][:, None, None, None]
        for field in (
            process.posterior_mean_coef1,
            process.posterior_mean_coef2,
            process.posterior_log_variance,
        )
    )
    mean, true_mean = coef1 * x0_hat + coef2 * z, coef1 * x0 + coef2 * z
    std, true_std = np.exp(log_variance / 2), np.exp(true_log_variance / 2)
    kl = np.log(std / true_std) - 0.5
    kl += (true_std**2 + (true_mean - mean) ** 2) / (2 * std**2)
    upper = np.where(x0 > 0.999, np.inf, x0 + 1 / 255)
    lower = np.where(x0 < -0.999, -np.inf, x0 - 1 / 255)
    mass = stats.norm.cdf(upper, mean, std) - stats.norm.cdf(lower, mean, std)
    term = np.where((STEPS == 0)[:, None, None, None], -np.log(mass), kl)
    mse = ((np.asarray(eps_hat) - np.asarray(eps)) ** 2).mean((1, 2, 3))
    expected = mse + 50 / 1000 * term.mean((1, 2, 3)) / np.log(2)
    np.testing.assert_allclose(loss, expected, rtol=1e-3, atol=1e-5)


def test_variational_term_trains_sigma_only(batch):
    x0, eps, eps_hat, v = batch
    process = ddpm_process(50)

    def total(eps_hat, v):
        output = jnp.concatenate([eps_hat, v], -1)
        return epsilon_loss(output, x0, eps, STEPS, process, learned_sigma=True).sum()

    def plain(eps_hat):
        return epsilon_loss(eps_hat, x0, eps, STEPS, process, learned_sigma=False).sum()

    by_eps, by_v = jax.grad(total, argnums=(0, 1))(eps_hat, v)
    np.testing.assert_allclose(by_eps, jax.grad(plain)(eps_hat), rtol=1e-5)
    assert np.isfinite(by_v).all() and (jnp.abs(by_v).max((1, 2, 3)) > 0).all()


def test_variational_term_vanishes_at_the_posterior(batch):
    """The true noise with the posterior's variance (v = -1) is the optimum."""
    x0, eps, _, _ = batch
    process = ddpm_process(50)
    output = jnp.concatenate([eps, -jnp.ones_like(eps)], -1)
    loss = _loss(output, x0, eps, STEPS, process, learned_sigma=True)
    np.testing.assert_allclose(loss[1:], 0, atol=1e-6)
    assert loss[0] > 0


def test_likelihood_is_symmetric_in_the_tails():
    """Six deviations above the mean are as likely as six below, in float32 too."""
    process = ddpm_process(50)
    x0, eps, v = jnp.full((2, 1), 0.1), jnp.zeros((2, 1)), -jnp.ones((2, 1))
    std = jnp.exp(0.5 * process.posterior_log_variance[0])
    error = 6.0 * std * process.alpha[0] / process.sigma[0] * jnp.array([[1.0], [-1.0]])
    output = jnp.concatenate([eps + error, v], -1)
    first = np.zeros(2, int)
    loss = _loss(output, x0, eps, first, process, learned_sigma=True)
    above, below = np.asarray(loss)
    np.testing.assert_allclose(above, below, rtol=1e-3)
    half_bin = 1 / 255 / float(std)
    mass = stats.norm.cdf(half_bin - 6) - stats.norm.cdf(-half_bin - 6)
    bound = (below - float(error[0, 0]) ** 2) / (50 / 1000) * np.log(2)
    np.testing.assert_allclose(bound, -np.log(mass), rtol=1e-2)


def test_likelihood_stays_finite_far_from_the_mean(batch):
    x0, eps, _, v = batch
    process = ddpm_process(1000)
    first = jnp.zeros(4, jnp.int32)

    def total(scale):
        output = jnp.concatenate([eps + scale, v], -1)
        return epsilon_loss(output, x0, eps, first, process, learned_sigma=True).sum()

    value, gradient = jax.value_and_grad(total)(100.0)
    assert np.isfinite(value) and np.isfinite(gradient)


def test_shapes_that_disagree(batch):
    x = jnp.ones((2, 4, 4, 1))
    wide = jnp.ones((2, 4, 4, 2))
    steps = jnp.array([1, 2])
    with pytest.raises(ValueError, match=r"output must be \(2, 4, 4, 1\)"):
        epsilon_loss(wide, x, x, steps, ddpm_process(8), learned_sigma=False)
    with pytest.raises(ValueError, match="ddpm_process"):
        epsilon_loss(wide, x, x, steps, flow_process(8), learned_sigma=True)
    with pytest.raises(ValueError, match=r"velocity must be \(2, 4, 4, 1\)"):
        flow_loss(wide, x, x)


def test_flow_loss():
    x0 = jnp.array([[1.0, 2.0], [0.0, 0.0]])
    eps = jnp.array([[0.0, 1.0], [1.0, -1.0]])
    velocity = jnp.array([[-1.0, 1.0], [1.0, -1.0]])
    np.testing.assert_allclose(jax.jit(flow_loss)(velocity, x0, eps), [2.0, 0.0])


def test_kl_to_standard_normal_matches_torch():
    torch = pytest.importorskip("torch")
    keys = jax.random.split(jax.random.key(4))
    mean, logvar = (jax.random.normal(key, (3, 2, 2, 4)) for key in keys)
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(
            torch.from_numpy(np.array(mean)),
            torch.from_numpy(np.exp(np.array(logvar) / 2)),
        ),
        torch.distributions.Normal(0.0, 1.0),
    ).sum((1, 2, 3))
    ours = jax.jit(kl_to_standard_normal)(mean, logvar)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)
    zero = jnp.zeros((1, 2))
    np.testing.assert_allclose(kl_to_standard_normal(zero, zero), 0)


def test_autoencoder_loss_by_hand():
    images = jnp.zeros((1, 2, 2, 1))
    reconstruction = images.at[0, 0, 0, 0].set(2.0)
    mean, logvar = jnp.full((1, 1, 1, 2), 1.0), jnp.zeros((1, 1, 1, 2))
    # l1 2 / 4, mse 4 / 4, KL 2 * 0.5 / 4.
    loss = autoencoder_loss(
        reconstruction,
        images,
        mean,
        logvar,
        l1_weight=1.0,
        mse_weight=10.0,
        kl_weight=100.0,
    )
    np.testing.assert_allclose(loss, [0.5 + 10.0 + 25.0])
