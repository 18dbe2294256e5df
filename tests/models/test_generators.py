import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ot_dd import models
from ot_dd.models import dit

TINY = {"patch": 2, "dim": 16, "depth": 2, "heads": 2}


def make_dit(**options):
    module = models.create("dit", num_classes=3, **{**TINY, **options})
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    t, y = jnp.array([3.0, 500.5]), jnp.array([0, 2])
    variables = jax.jit(module.init)(jax.random.key(1), x, t, y)
    return module, variables, (x, t, y)


def randomised(variables):
    """Returns the variables with noise added, so that the zero gates open."""
    leaves, treedef = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    noisy = [
        p + 0.1 * jax.random.normal(k, p.shape)
        for p, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(treedef, noisy)


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_dit_is_zero_at_initialisation(learn_sigma):
    module, variables, inputs = make_dit(learn_sigma=learn_sigma)
    output = module.apply(variables, *inputs)
    assert output.shape == (2, 8, 8, 8 if learn_sigma else 4)
    np.testing.assert_array_equal(output, 0.0)


def test_dit_depends_on_image_time_and_class():
    module, variables, (x, t, y) = make_dit()
    variables = randomised(variables)
    apply = jax.jit(module.apply)
    output = apply(variables, x, t, y)
    null = jnp.full_like(y, module.null_class)
    assert module.null_class == 3
    for other in ((x + 1, t, y), (x, t + 100, y), (x, t, y[::-1]), (x, t, null)):
        assert not np.allclose(output, apply(variables, *other))
    # The table has a row for the null class, and an image is alone in its row.
    assert variables["params"]["y_embedder"]["embedding"].shape == (4, 16)
    np.testing.assert_allclose(
        apply(variables, x[:1], t[:1], y[:1]), output[:1], rtol=1e-4, atol=1e-4
    )


def test_dit_remat_changes_nothing_but_memory():
    module, variables, inputs = make_dit()
    variables = randomised(variables)
    again = models.create("dit", num_classes=3, **TINY, remat=True)

    def grad(m):
        return jax.jit(jax.grad(lambda v: jnp.square(m.apply(v, *inputs)).mean()))

    for a, b in zip(
        jax.tree.leaves(grad(module)(variables)),
        jax.tree.leaves(grad(again)(variables)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_dit_xl_2_has_the_released_number_of_parameters():
    module = models.create("dit", num_classes=1000)
    shapes = jax.eval_shape(
        module.init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    )
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    # The released file also stores the fixed positions, 256 x 1152.
    assert total + 256 * 1152 == 675_129_632
    assert shapes["params"]["blocks"]["attn"]["qkv"]["kernel"].shape == (28, 1152, 3456)


def test_timestep_frequencies_by_hand():
    y = dit.timestep_frequencies(jnp.array([0.0, 2.5]), 4)
    np.testing.assert_allclose(y[0], [1, 1, 0, 0])
    expected = [np.cos(2.5), np.cos(0.025), np.sin(2.5), np.sin(0.025)]
    np.testing.assert_allclose(y[1], expected, rtol=1e-5)


def test_sincos_positions_by_hand():
    y = dit.sincos_positions(2, 3, 8)
    assert y.shape == (6, 8)
    row, column = 1, 2  # index 1 * 3 + 2; columns come first
    expected = [
        f(position * frequency)
        for position in (column, row)
        for f in (np.sin, np.cos)
        for frequency in (1.0, 0.01)
    ]
    np.testing.assert_allclose(y[5], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({}, 2),
        ({"patch": 2, "channels": (16, 32, 32)}, 8),
        ({"channels": (16,), "blocks": 2}, 1),
    ],
)
def test_autoencoder_shapes(options, factor):
    module = models.create("autoencoder_small", image_channels=1, **options)
    x = jax.random.normal(jax.random.key(0), (2, 16, 24, 1))
    variables = jax.jit(module.init)(jax.random.key(1), x)
    mean, log_variance = module.apply(variables, x, method="encode")
    assert module.factor == factor
    assert mean.shape == log_variance.shape == (2, 16 // factor, 24 // factor, 4)
    decoded = module.apply(variables, mean, method="decode")
    assert decoded.shape == x.shape
    reconstruction = module.apply(variables, x)[0]
    np.testing.assert_allclose(reconstruction, decoded, rtol=1e-4, atol=1e-5)


def test_autoencoder_clips_the_log_variance():
    module = models.create("autoencoder_small", channels=(8,))
    x = 1e6 * jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
    variables = module.init(jax.random.key(1), x)
    kernel = variables["params"]["encoder"]["conv_out"]["kernel"]
    variables["params"]["encoder"]["conv_out"]["kernel"] = 1e3 * kernel
    log_variance = module.apply(variables, x, method="encode")[1]
    assert log_variance.min() == -30 and log_variance.max() == 20


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 14, 16, 3), "downsamples by 4.*14x16"), ((1, 16, 16, 1), "image_channels=3")],
)
def test_autoencoder_refuses_what_it_cannot_encode(shape, message):
    module = models.create("autoencoder_small", patch=2)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape))


def test_autoencoder_learns_to_reconstruct():
    module = models.create("autoencoder_small", image_channels=1, channels=(8, 8))
    x = jnp.sin(jnp.arange(8.0) + jnp.arange(8.0)[:, None])[None, :, :, None]
    x = jnp.concatenate([x, -x, x.swapaxes(1, 2) ** 2])

    def loss(params):
        return jnp.square(module.apply({"params": params}, x)[0] - x).mean()

    @jax.jit
    def train(params):
        def step(params, _):
            value, grads = jax.value_and_grad(loss)(params)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

        return jax.lax.scan(step, params, None, length=60)[1]

    losses = train(module.init(jax.random.key(0), x)["params"])
    assert losses[-1] < 0.3 * losses[0]
