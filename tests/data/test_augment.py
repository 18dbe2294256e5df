"""Augmentations against hand-computed values, PIL's order of colours, and replays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ot_dd import data
from ot_dd.data import AugmentConfig, AugmentParams

OFF = AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=False)
EVERYTHING = AugmentConfig(jitter=0.4, cutmix=0.5)

sample_params = jax.jit(data.sample_params, static_argnums=(1, 2, 3))
apply = jax.jit(data.apply)
augment = jax.jit(data.augment, static_argnums=2)


def _images(n=4, height=8, width=8, channels=3):
    shape = (n, height, width, channels)
    return jax.random.uniform(jax.random.key(7), shape, minval=-1.0)


def _identity(n):
    return AugmentParams(
        crop=jnp.tile(jnp.array([0.0, 0.0, 1.0, 1.0]), (n, 1)),
        flip=jnp.zeros(n, bool),
        jitter=jnp.ones((n, 3)),
        mix_index=jnp.arange(n),
        mix_box=jnp.zeros(4, jnp.int32),
        mix_ratio=jnp.ones(()),
    )


def test_everything_off_is_the_identity_even_outside_the_range():
    images = 1.5 * _images()
    out, params = augment(jax.random.key(0), images, OFF)
    np.testing.assert_array_equal(out, images)
    assert params.mix_ratio == 1
    np.testing.assert_array_equal(params.mix_box, 0)


@pytest.mark.parametrize(
    "config", [AugmentConfig(), EVERYTHING, AugmentConfig(shift=2)]
)
def test_shapes_and_replay(config):
    images = _images(n=6, height=8, width=12)
    key = jax.random.key(3)
    out, params = augment(key, images, config)
    assert out.shape == images.shape and out.dtype == images.dtype
    np.testing.assert_allclose(out, apply(images, params), atol=1e-6)
    again = sample_params(key, 6, (8, 12, 3), config)
    for name, first, second in zip(params._fields, params, again, strict=True):
        np.testing.assert_array_equal(first, second, err_msg=name)
    assert [x.shape for x in params] == [(6, 4), (6,), (6, 3), (6,), (4,), ()]
    other, _ = augment(jax.random.key(4), images, config)
    assert not np.allclose(out, other)


def test_one_kind_of_augmentation_leaves_the_draws_of_the_others():
    key = jax.random.key(1)
    plain = sample_params(key, 8, (16, 16, 3), AugmentConfig())
    mixed = sample_params(key, 8, (16, 16, 3), EVERYTHING)
    np.testing.assert_array_equal(plain.crop, mixed.crop)
    np.testing.assert_array_equal(plain.flip, mixed.flip)


def test_crop_equals_bilinear_interpolation_by_hand():
    # Rows 0, 1, 2, 3; the crop is the lower half: positions 2 + (i + 1/2) / 2 - 1/2.
    images = jnp.broadcast_to(jnp.arange(4.0)[None, :, None, None], (1, 4, 4, 1))
    params = _identity(1)._replace(crop=jnp.array([[0.5, 0.0, 0.5, 1.0]]))
    out = apply(images / 3, params)[0, :, 0, 0] * 3
    # The first is 1.75 (below the crop's edge: neighbours are real pixels), the last
    # is clipped at the image's border.
    np.testing.assert_allclose(out, [1.75, 2.25, 2.75, 3.0], atol=1e-6)


def test_crop_equals_jax_image_scale_and_translate_inside():
    images = _images(n=1, height=16, width=16)
    crop = np.array([0.25, 0.125, 0.5, 0.625])
    out = apply(images, _identity(1)._replace(crop=jnp.array(crop[None])))
    expected = jax.image.scale_and_translate(
        images[0],
        (16, 16, 3),
        (0, 1),
        scale=1 / crop[2:],
        translation=-crop[:2] / crop[2:] * 16,
        method="linear",
        antialias=False,
    )
    np.testing.assert_allclose(out[0], expected, atol=1e-5)


def test_shift_moves_whole_pixels_and_repeats_the_border():
    images = _images(n=64, height=8, width=10, channels=1)
    config = AugmentConfig(flip=False, shift=2)
    out, params = augment(jax.random.key(5), images, config)
    moves = np.round(np.asarray(params.crop[:, :2]) * [8, 10]).astype(int)
    assert moves.min() == -2 and moves.max() == 2
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    for i, (y, x) in enumerate(moves):
        expected = padded[i, 2 + y : 10 + y, 2 + x : 12 + x]
        np.testing.assert_allclose(out[i], expected, atol=1e-5)


def test_flip_mirrors_left_and_right():
    images = _images()
    flip = jnp.array([True, False, True, False])
    out = apply(images, _identity(4)._replace(flip=flip))
    np.testing.assert_array_equal(out[::2], images[::2, :, ::-1])
    np.testing.assert_array_equal(out[1::2], images[1::2])


def test_crops_lie_inside_with_the_configured_areas_and_ratios():
    height, width = 16, 24
    params = sample_params(jax.random.key(0), 5000, (height, width, 3), AugmentConfig())
    y, x, h, w = np.asarray(params.crop).T
    assert min(y.min(), x.min()) >= 0
    assert max((y + h).max(), (x + w).max()) <= 1 + 1e-6
    share, ratio = h * w, (w * width) / (h * height)
    assert 0.5 - 1e-5 <= share.min() and share.max() <= 1 + 1e-5
    assert 3 / 4 - 1e-5 <= ratio.min() and ratio.max() <= 4 / 3 + 1e-5
    assert abs(np.asarray(params.flip).mean() - 0.5) < 0.03


def test_crop_that_never_fits_falls_back_to_the_centre():
    # A crop of 90 % of the area with ratio 1 cannot lie in an image of ratio 4.
    config = AugmentConfig(crop_scale=(0.9, 1.0), crop_ratio=(1.0, 1.0))
    params = sample_params(jax.random.key(0), 3, (8, 32, 3), config)
    np.testing.assert_allclose(params.crop, [[0, 0.375, 1, 0.25]] * 3, atol=1e-6)


def test_jitter_equals_pillow():
    from PIL import Image, ImageEnhance

    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    factors = (1.3, 0.7, 1.4)
    image = Image.fromarray(pixels[0])
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for enhance, factor in zip(enhancers, factors, strict=True):
        image = enhance(image).enhance(factor)
    images = jnp.asarray(pixels / 127.5 - 1, jnp.float32)
    out = apply(images, _identity(1)._replace(jitter=jnp.array([factors])))
    # Pillow cuts to whole levels after each of the three, so it ends up a bit darker.
    above = (out[0] + 1) * 127.5 - np.asarray(image)
    assert -1 < above.min() and above.max() < 4
    assert above.mean() < 1.5


def test_jitter_of_grey_images_keeps_one_channel_and_the_range():
    config = OFF._replace(jitter=0.5)
    out, params = augment(jax.random.key(2), _images(n=32, channels=1), config)
    assert out.shape == (32, 8, 8, 1)
    assert -1 <= out.min() and out.max() <= 1
    assert 0.5 <= params.jitter.min() and params.jitter.max() <= 1.5
    assert np.ptp(params.jitter) > 0.8


def test_cutmix_pastes_the_augmented_partner_and_counts_the_box():
    images = _images(n=4, height=8, width=10)
    params = _identity(4)._replace(
        flip=jnp.array([False, True, False, False]),
        mix_index=jnp.array([1, 0, 3, 2]),
        mix_box=jnp.array([2, 3, 5, 9]),
    )
    out = apply(images, params)
    own = np.asarray(apply(images, params._replace(mix_box=jnp.zeros(4, int))))
    expected = own.copy()
    expected[:, 2:5, 3:9] = own[[1, 0, 3, 2], 2:5, 3:9]
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_cutmix_draws(alpha):
    config = OFF._replace(cutmix=0.5, cutmix_alpha=alpha)
    keys = jax.random.split(jax.random.key(0), 1000)
    draw = jax.jit(jax.vmap(lambda key: data.sample_params(key, 6, (8, 12, 3), config)))
    params = jax.tree.map(np.asarray, draw(keys))
    y0, x0, y1, x1 = params.mix_box.T
    assert (0 <= y0).all() and (y0 <= y1).all() and (y1 <= 8).all()
    assert (0 <= x0).all() and (x0 <= x1).all() and (x1 <= 12).all()
    np.testing.assert_allclose(
        params.mix_ratio, 1 - (y1 - y0) * (x1 - x0) / 96, atol=1e-6
    )
    np.testing.assert_array_equal(
        np.sort(params.mix_index), np.tile(np.arange(6), (1000, 1))
    )
    # Some boxes of the mixed half are empty too, hence the one-sided slack.
    assert 0.35 < (params.mix_ratio < 1).mean() < 0.55


def test_gradient_is_the_adjoint_of_the_resampling():
    images = _images()
    params = sample_params(
        jax.random.key(9), 4, (8, 8, 3), EVERYTHING._replace(jitter=0.0)
    )
    weights = jax.random.normal(jax.random.key(1), images.shape)
    gradient = jax.jit(jax.grad(lambda x: (apply(x, params) * weights).sum()))(images)
    other = jax.random.normal(jax.random.key(2), images.shape)
    # Without jitter the map is linear: <weights, A other> = <A^T weights, other>.
    expected = (apply(other, params) * weights).sum()
    np.testing.assert_allclose((gradient * other).sum(), expected, rtol=1e-4)


def test_gradient_with_jitter_is_finite():
    def total(images):
        return data.augment(jax.random.key(0), images, EVERYTHING)[0].sum()

    assert np.isfinite(jax.jit(jax.grad(total))(_images())).all()


def test_runs_inside_scan_and_in_half_precision():
    def step(images, key):
        return data.augment(key, images, EVERYTHING)[0], None

    images = _images().astype(jnp.bfloat16)
    out, _ = jax.jit(jax.lax.scan, static_argnums=0)(
        step, images, jax.random.split(jax.random.key(0), 3)
    )
    assert out.dtype == jnp.bfloat16 and np.isfinite(out.astype(np.float32)).all()


@pytest.mark.parametrize(
    "field, value",
    [
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.9, 0.5)),
        ("crop_ratio", (2.0, 1.0)),
        ("jitter", -0.1),
        ("cutmix", 1.5),
        ("cutmix_alpha", 0.0),
        ("shift", -1),
    ],
)
def test_bad_config_names_the_field(field, value):
    config = AugmentConfig()._replace(**{field: value})
    with pytest.raises(ValueError, match=field):
        data.sample_params(jax.random.key(0), 2, (8, 8, 3), config)
