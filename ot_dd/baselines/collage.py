"""RDED's images (Sun et al., CVPR 2024): real patches, four side by side if large."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ot_dd import data

_SMALL = 64  # Sides up to which an image is one patch, as in the authors' scripts.


@jax.jit
def _cropped(loss, images, keys):
    """Returns a random crop of every image for each key `[k, n, ...]`, and losses."""

    def crop(key):
        views, _ = data.augment(key, images, data.AugmentConfig(flip=False))
        return views, loss(views)

    return jax.lax.map(crop, keys)


def collages(
    images: jax.Array,
    ipc: int,
    loss: Callable[[jax.Array], jax.Array],
    key: jax.Array,
    *,
    candidates: int = 300,
    crops: int = 5,
) -> np.ndarray:
    """Returns images of one class made of its most recognisable patches.

    Of `candidates` random images each keeps the one of `crops` random crops that a
    teacher finds easiest. Of these the easiest are the images, or, halved and tiled, four
    of them an image, where a side is over 64 pixels.

    Args:
      images: the class's images in `[-1, 1]`, `[n, h, w, c]`.
      ipc: collages to make.
      loss: a teacher's loss on the class of images `[b, h, w, c]`, `[b]`;
        compiled once for all classes if it is a `jax.tree_util.Partial`.
      key: of the draws.
      candidates: images to crop; more where `ipc` wants more and the class has them.
      crops: crops of each.

    Returns:
      `[ipc, h, w, c]` in `[-1, 1]`.
    """
    pick, cut = jax.random.split(key)
    n, h, w, c = images.shape
    factor = 1 if min(h, w) <= _SMALL else 2
    wanted = ipc * factor**2
    # With replacement only where a class is too small to fill the collages.
    size = min(n, max(candidates, wanted))
    rows = jax.random.permutation(pick, n)[jnp.arange(max(size, wanted)) % size]
    if not isinstance(loss, jax.tree_util.Partial):
        loss = jax.tree_util.Partial(loss)
    views, losses = _cropped(loss, images[rows], jax.random.split(cut, crops))
    best = losses.argmin(0)
    views = views[best, jnp.arange(len(rows))]
    views = views[jnp.argsort(losses.min(0))[:wanted]]
    small = jax.image.resize(views, (wanted, h // factor, w // factor, c), "linear")
    grid = small.reshape(ipc, factor, factor, *small.shape[1:])
    tiled = grid.transpose(0, 1, 3, 2, 4, 5).reshape(
        ipc, h // factor * factor, w // factor * factor, c
    )
    return np.asarray(
        jnp.clip(jax.image.resize(tiled, (ipc, h, w, c), "linear"), -1, 1)
    )
