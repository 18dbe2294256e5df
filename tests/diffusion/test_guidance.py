"""Each guidance term's gradient against finite differences, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ot_dd import ot
from ot_dd.diffusion import (
    Moment,
    Transport,
    deviation,
    influence,
    normalise,
    transport,
)

C, G, D = 2, 3, 6


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def denoise(z):
    """A nonlinear stand-in for the clean prediction, with a known backward pass."""
    return 0.8 * jnp.tanh(z) + 0.1 * z[..., ::-1]


def make_moment(z, memory=None, filled=None):
    x0, vjp = jax.vjp(denoise, z)
    if memory is None:
        memory, filled = jnp.zeros((C, 0, D)), jnp.zeros((0,))
    return Moment(
        z=z, x0=x0, eps=jnp.ones_like(z), alpha=jnp.asarray(0.8),
        sigma=jnp.asarray(0.5), memory=memory,
        filled=filled, classes=jnp.arange(C), pull_back=lambda v: vjp(v)[0],
    )  # fmt: skip


def directional(f, z):
    """Returns the central difference along a fixed direction, and the direction."""
    direction = jax.random.normal(jax.random.key(9), z.shape)
    h = 1e-6
    return (f(z + h * direction) - f(z - h * direction)) / (2 * h), direction


@pytest.fixture
def z():
    return jax.random.normal(jax.random.key(0), (C, G, D))


@pytest.fixture
def memory():
    values = jax.random.normal(jax.random.key(1), (C, 4, D))
    filled = jnp.array([1.0, 1.0, 0.0, 0.0])
    return values * filled[None, :, None], filled


def test_deviation(z, memory):
    moment = make_moment(z, *memory)

    def unit(v):
        return v / jnp.linalg.norm(v, axis=-1, keepdims=True)

    def energy(z):  # written plainly: others are the filled slots and the other x0
        total = 0.0
        for c in range(C):
            for g in range(G):
                others = [memory[0][c, k] for k in range(2)]
                others += [moment.x0[c, k] for k in range(G) if k != g]
                total += max(jnp.vdot(unit(z[c, g]), unit(o)) for o in others)
        return total

    numeric, direction = directional(energy, z)
    np.testing.assert_allclose(
        jnp.vdot(deviation(moment), direction), numeric, rtol=1e-5
    )


def test_deviation_of_a_lone_first_latent_is_zero(z):
    np.testing.assert_allclose(deviation(make_moment(z[:, :1])), 0.0)


def embed(latents):
    """Nonlinear features `[n, 4]` of latents `[n, 6]`, and so a gradient to chain."""
    return jnp.sin(latents @ jnp.linspace(-1.0, 1.0, 4 * D).reshape(D, 4))


@pytest.mark.parametrize("cost_fn", ["sqeuclidean", "mean_l1"])
@pytest.mark.parametrize("space", ["noisy", "clean_backprop", "features"])
def test_transport(z, memory, cost_fn, space):
    real = jax.random.normal(jax.random.key(2), (C, 8, D))
    weights = jnp.full((C, 8), 1 / 8).at[1, 6:].set(0.0)
    weights = weights / weights.sum(1, keepdims=True)
    view = jax.vmap(embed) if space == "features" else jnp.asarray
    real = view(real)
    settings = Transport(real, weights, cost_fn, 0.1, "absolute", 3000, space, embed)
    rows = jax.vmap(ot.cost_matrix, in_axes=(0, 0, None))(
        settings.points(memory[0]), real, cost_fn
    )
    potentials = jnp.zeros((C, 4 + G)), jnp.zeros((C, 8))
    moment = make_moment(z, *memory)
    gradient, _, value = transport(moment, settings, rows, potentials)

    def energy(latents):
        """The regularised value, whose gradient at convergence the plan gives."""
        points = denoise(latents) if space == "clean_backprop" else latents
        total = 0.0
        for c in range(C):
            active = view(jnp.concatenate([memory[0][c, :2], points[c]])[None])[0]
            total += ot.solve_sample(
                active, real[c], None, weights[c], cost_fn=cost_fn, epsilon=0.1,
                num_iters=3000,
            ).value  # fmt: skip
        return total * 5  # per unit of mass: five active points

    at = moment.x0 if space == "features" else z
    numeric, direction = directional(energy, at)
    scale = moment.alpha if space == "features" else 1.0
    np.testing.assert_allclose(
        jnp.vdot(gradient, direction), scale * numeric, rtol=1e-4
    )
    assert value.shape == (C,) and (value > 0).all()


def test_features_of_another_precision(z, memory):
    """A gradient has the latents' precision, whatever the features'."""
    narrow = Transport(
        jax.vmap(embed)(jax.random.normal(jax.random.key(2), (C, 8, D))),
        jnp.full((C, 8), 1 / 8), space="features",
        embed=lambda latents: embed(latents).astype(jnp.bfloat16),
    )  # fmt: skip
    found = []
    for settings in (narrow, narrow._replace(embed=embed)):
        rows = jax.vmap(ot.cost_matrix, in_axes=(0, 0, None))(
            settings.points(memory[0]), settings.real, settings.cost_fn
        )
        potentials = jnp.zeros((C, 4 + G)), jnp.zeros((C, 8))
        found.append(transport(make_moment(z, *memory), settings, rows, potentials)[0])
    assert found[0].dtype == z.dtype
    np.testing.assert_allclose(found[0], found[1], atol=0.02 * jnp.abs(found[1]).max())


def test_transport_in_clean_space_skips_the_denoiser(z):
    real = jax.random.normal(jax.random.key(2), (C, 8, D))
    settings = Transport(real, jnp.full((C, 8), 1 / 8), "sqeuclidean", 0.1, "mean_cost")
    moment = make_moment(z)._replace(pull_back=None)  # calling it would fail
    start = jnp.zeros((C, G)), jnp.zeros((C, 8))
    gradient, _, _ = transport(moment, settings, jnp.zeros((C, 0, 8)), start)
    # Descending it brings the clean prediction nearer to the real points.
    before = ot.solve_sample(moment.x0[0], real[0], epsilon=0.1, num_iters=500)
    moved = moment.x0[0] - 0.1 * gradient[0] / moment.alpha
    after = ot.solve_sample(moved, real[0], epsilon=0.1, num_iters=500)
    assert float(after.value_linear) < float(before.value_linear)


def test_influence(z):
    params = {"w": jax.random.normal(jax.random.key(3), (2, D, C))}
    targets = jax.random.normal(jax.random.key(4), (2, C, D * C))

    def decode(x0):
        return jnp.sin(x0)

    def loss_fn(params, images, labels):
        logits = images @ params["w"]
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels])

    def energy(z):
        images, total = decode(denoise(z)), 0.0
        for c in range(C):
            for g in range(G):
                for e in range(2):
                    own = {"w": params["w"][e]}
                    grad = jax.grad(loss_fn)(own, images[c, g][None], jnp.array([c]))
                    grad = grad["w"].ravel()
                    cosine = jnp.vdot(grad, targets[e, c]) / (
                        jnp.linalg.norm(grad) * jnp.linalg.norm(targets[e, c])
                    )
                    total += (1 - cosine) / 2
        return total

    numeric, direction = directional(energy, z)
    gradient = influence(make_moment(z), decode, loss_fn, params, targets)
    np.testing.assert_allclose(jnp.vdot(gradient, direction), numeric, rtol=1e-5)


def test_normalise(z):
    moment = make_moment(z)
    np.testing.assert_allclose(normalise(z, moment, "raw"), z)
    rms = jnp.sqrt(jnp.mean(normalise(z, moment, "unit") ** 2, -1))
    np.testing.assert_allclose(rms, 1.0, rtol=1e-6)
    rms = jnp.sqrt(jnp.mean(normalise(z, moment, "rms") ** 2, -1))
    np.testing.assert_allclose(rms, 0.0015 * 1.0 * 0.5, rtol=1e-6)
    with pytest.raises(ValueError, match="normalise must be one of"):
        normalise(z, moment, "l2")
