"""DSA's augmentation: every kind against PyTorch's sampling, or by what it may change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn.functional import affine_grid, grid_sample

from ot_dd.data import DSA, dsa


@functools.partial(jax.jit, static_argnums=2)
def _dsa(key, images, config):
    return dsa(key, images, config)


def _draw(kind, images, seed=0):
    return np.asarray(_dsa(jax.random.key(seed), jnp.asarray(images), DSA((kind,))))


def _images(n=64, side=16, channels=1):
    shape = (n, side, side, channels)
    return np.random.default_rng(5).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("kind", ["scale", "rotate", "crop"])
def test_warps_are_those_of_pytorch(kind):
    """Two channels hold coordinates, which say what was drawn; the third is compared."""
    images = _images(channels=3)
    side = images.shape[1]
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    images[..., 0], images[..., 1] = axis[:, None], axis[None, :]
    out = _draw(kind, images)
    middle = slice(5, 11)  # never from outside
    y, x = np.meshgrid(axis[middle], axis[middle], indexing="ij")
    known = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3)
    seen = out[:, middle, middle, 1::-1].reshape(len(out), -1, 2)
    theta = np.stack([np.linalg.lstsq(known, s, rcond=None)[0].T for s in seen])
    np.testing.assert_allclose(known @ theta.swapaxes(1, 2), seen, atol=1e-5)

    third = torch.tensor(images[..., 2:]).permute(0, 3, 1, 2)
    mean = third.mean()
    grid = affine_grid(torch.tensor(theta), third.shape, align_corners=True)
    want = grid_sample(third - mean, grid, align_corners=True) + mean
    np.testing.assert_allclose(out[..., 2], want[:, 0].numpy(), atol=2e-4)

    linear, shift = theta[:, :, :2], theta[:, :, 2] * (side - 1) / 2
    if kind == "scale":
        np.testing.assert_allclose(linear[:, [0, 1], [1, 0]], 0, atol=1e-5)
        factors = linear[:, [0, 1], [0, 1]]
        assert 1 / 1.2 <= factors.min() < 0.87 and 1.15 < factors.max() <= 1.2
        assert np.abs(factors[:, 0] - factors[:, 1]).max() > 0.1
    elif kind == "rotate":
        degrees = np.rad2deg(np.arctan2(linear[:, 1, 0], linear[:, 0, 0]))
        assert -15 <= degrees.min() < -12 and 12 < degrees.max() <= 15
        np.testing.assert_allclose(np.linalg.det(linear), 1, atol=1e-5)
    else:
        np.testing.assert_allclose(shift, shift.round(), atol=1e-3)
        assert set(shift.round().ravel()) == {-2, -1, 0, 1, 2}


def test_flip_mirrors_about_half():
    images = _images()
    out = _draw("flip", images)
    mirrored = (out == images[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (out == images).all((1, 2, 3))).all()
    assert 16 < mirrored.sum() < 48


def test_cutout_fills_squares_by_the_mean():
    images = _images(n=500)
    out = _draw("cutout", images)
    changed = (out != images)[..., 0]
    np.testing.assert_allclose(out[changed], images.mean(), atol=1e-6)
    rows, columns = changed.any(2), changed.any(1)
    assert (changed == rows[:, :, None] & columns[:, None]).all()
    heights, widths = rows.sum(1), columns.sum(1)
    assert heights.max() == widths.max() == 8  # half the side, cut by the border
    assert heights.min() == widths.min() == 4
    assert changed.any(0).all()


def test_color_moves_scales_and_saturates():
    images = _images(n=500, channels=3)
    out = _draw("color", images)
    moved = (out.mean((1, 2, 3)) - images.mean((1, 2, 3))) / images.std()
    assert -0.5 <= moved.min() < -0.45 and 0.45 < moved.max() <= 0.5
    grey, own = out.mean(-1), images.mean(-1)  # not luma: DSA's mean of the channels
    contrast = grey.std((1, 2)) / own.std((1, 2))
    assert 0.5 <= contrast.min() < 0.55 and 1.45 < contrast.max() <= 1.5
    colour = (out - grey[..., None]).std((1, 2, 3))
    saturation = colour / (images - own[..., None]).std((1, 2, 3)) / contrast
    assert 0 <= saturation.min() < 0.1 and 1.9 < saturation.max() <= 2.0


def test_a_batch_has_one_kind():
    images = jnp.asarray(_images())
    kinds = DSA(("flip", "cutout"))
    flipped = 0
    for seed in range(40):
        out = np.asarray(_dsa(jax.random.key(seed), images, kinds))
        own = np.sort(out.reshape(len(out), -1)), np.sort(images.reshape(len(out), -1))
        same = np.isclose(*own).all(1)  # A mirrored image has the same values.
        assert same.all() or not same.any()
        flipped += same.all()
    assert 10 < flipped < 30


def test_gradients_pass_every_kind():
    images = jnp.asarray(_images(n=4))
    for kind in DSA().kinds:
        config = DSA((kind,))
        slope = jax.grad(lambda x, c=config: (dsa(jax.random.key(1), x, c) ** 2).sum())
        found = np.asarray(slope(images))
        assert np.isfinite(found).all() and np.abs(found).sum() > 0


@pytest.mark.parametrize("kinds", [(), ("colour",)])
def test_unknown_kinds_are_named(kinds):
    with pytest.raises(ValueError, match=r"DSA.kinds = .* color, crop, cutout"):
        dsa(jax.random.key(0), jnp.zeros((2, 8, 8, 1)), DSA(kinds))


def test_the_type_of_images_is_kept():
    images = jnp.asarray(_images(n=4)).astype(jnp.bfloat16)
    assert _dsa(jax.random.key(0), images, DSA()).dtype == jnp.bfloat16
    with jax.enable_x64(True):
        out = _dsa(jax.random.key(0), jnp.asarray(_images(n=4)), DSA())
    assert out.dtype == jnp.float32
