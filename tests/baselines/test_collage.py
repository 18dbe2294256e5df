"""Collages hold what their teacher finds easiest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ot_dd import baselines
from ot_dd.baselines import collage


@pytest.mark.parametrize(
    ("side", "n", "ipc", "patches"),
    [(8, 40, 3, 1), (9, 2, 3, 1), (66, 40, 3, 4), (65, 3, 2, 4)],
)
def test_collages_are_of_the_easiest_images(side, n, ipc, patches):
    """Every image is one shade, which the loss ranks: the collages show the lowest."""
    shades = jnp.linspace(-1, 1, n)
    images = jnp.broadcast_to(shades[:, None, None, None], (n, side, side, 1))
    made = baselines.collages(
        images, ipc, lambda views: views.mean((1, 2, 3)), jax.random.key(0)
    )
    assert made.shape == (ipc, side, side, 1)
    corners = made[:, [0, 0, -1, -1], [0, -1, 0, -1], 0].reshape(-1)
    rank = np.abs(corners[:, None] - np.asarray(shades)).argmin(1)
    np.testing.assert_allclose(corners, np.asarray(shades)[rank], atol=1e-5)
    # Each of the easiest once, or all of a small class about as often.
    counts = np.bincount(rank, minlength=n) // (4 // patches)
    used = min(n, patches * ipc)
    assert counts[used:].sum() == 0 and np.ptp(counts[:used]) <= 1


def test_each_image_keeps_its_easiest_crop():
    """The loss wants bright pixels: crops avoid the dark border."""
    image = jnp.full((16, 16), -1.0).at[4:12, 4:12].set(1.0)
    images = jnp.broadcast_to(image[None, :, :, None], (20, 16, 16, 1))
    options = {"key": jax.random.key(1), "loss": lambda v: -v.mean((1, 2, 3))}
    many = baselines.collages(images, 4, crops=50, **options)
    one = baselines.collages(images, 4, crops=1, **options)
    assert many.mean() > one.mean() + 0.1 > images.mean() + 0.1


def test_classes_share_a_program():
    def loss(scale, views):
        return scale * views.mean((1, 2, 3))

    images = jax.random.normal(jax.random.key(0), (10, 8, 8, 1))
    collage._cropped.clear_cache()
    for scale in (1.0, 2.0):
        partial = jax.tree_util.Partial(loss, jnp.float32(scale))
        baselines.collages(images, 2, partial, jax.random.key(1))
    assert collage._cropped._cache_size() == 1
