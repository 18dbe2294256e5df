"""DSA's augmentation: one kind of change for a whole batch, drawn anew for every image.

Zhao & Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021
(arXiv:2102.08259), whose students, and those of many that followed, are trained with it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_BRIGHTNESS, _SATURATION, _CONTRAST = 0.5, 2.0, 0.5
_CROP, _CUTOUT, _SCALE, _DEGREES = 0.125, 0.5, 1.2, 15.0


class DSA(NamedTuple):
    """The kinds of change; hashable, as `AugmentConfig` is.

    Attributes:
      kinds: names of `KINDS`; every batch draws one of them.
    """

    kinds: tuple[str, ...] = ("color", "crop", "cutout", "flip", "scale", "rotate")


def dsa(key: jax.Array, images: jax.Array, config: DSA) -> jax.Array:
    """Returns augmented images `[n, h, w, c]`, differentiable with respect to them.

    The authors normalise images by the data set's mean and deviation, fill what is cut or
    comes from outside by the mean, and add brightness in deviations: here both are the
    batch's. Values are not clipped, as theirs are not.

    Args:
      key: a typed key.
      images: `[n, h, w, c]` float.
      config: the kinds to draw from, static.

    Raises:
      ValueError: for a kind that is none.
    """
    unknown = [kind for kind in config.kinds if kind not in KINDS]
    if unknown or not config.kinds:
        raise ValueError(
            f"DSA.kinds = {config.kinds!r}: must be names of {', '.join(KINDS)}"
        )
    kind_key, key = jax.random.split(key)
    kind = jax.random.randint(kind_key, (), 0, len(config.kinds))

    def branch(name):  # What is drawn is in JAX's default type, which may be wider.
        return lambda key, images: KINDS[name](key, images).astype(images.dtype)

    return jax.lax.switch(kind, [branch(name) for name in config.kinds], key, images)


def _color(key, images):
    """Brightness, saturation and contrast, in this order."""
    keys = jax.random.split(key, 3)
    lightness, saturation, contrast = (
        jax.random.uniform(k, (len(images), 1, 1, 1)) for k in keys
    )
    deviation = jax.lax.stop_gradient(images.std())
    images = images + 2 * _BRIGHTNESS * (lightness - 0.5) * deviation
    grey = images.mean(-1, keepdims=True)
    images = grey + _SATURATION * saturation * (images - grey)
    mean = images.mean((1, 2, 3), keepdims=True)
    return mean + (contrast + _CONTRAST) * (images - mean)


def _crop(key, images):
    """Moves images by whole pixels."""
    n, *size, _ = images.shape
    most = jnp.array([int(_CROP * side + 0.5) for side in size])
    pixels = jax.random.randint(key, (n, 2), -most, most + 1)
    shift = 2 * pixels / (jnp.array(size) - 1)
    return _warp(images, jnp.tile(jnp.eye(2), (n, 1, 1)), shift)


def _cutout(key, images):
    """Fills a square of half the side, whose centre may be anywhere in the image."""
    n, *size, _ = images.shape
    inside = []
    for axis_key, side in zip(jax.random.split(key), size):
        length = int(_CUTOUT * side + 0.5)
        centre = jax.random.randint(axis_key, (n, 1), 0, side + 1 - length % 2)
        distance = jnp.arange(side) - (centre - length // 2)
        inside.append((distance >= 0) & (distance < length))
    square = inside[0][:, :, None, None] & inside[1][:, None, :, None]
    return jnp.where(square, _mean(images), images)


def _flip(key, images):
    mirrored = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def _scale(key, images):
    """Stretches each axis on its own."""
    shape = len(images), 2
    factors = jax.random.uniform(key, shape, minval=1 / _SCALE, maxval=_SCALE)
    return _warp(images, jax.vmap(jnp.diag)(factors))


def _rotate(key, images):
    angle = jnp.deg2rad(_DEGREES) * jax.random.uniform(key, (len(images),), minval=-1.0)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    matrix = jnp.array([[cosine, -sine], [sine, cosine]])
    return _warp(images, jnp.moveaxis(matrix, -1, 0))


KINDS = {
    "color": _color, "crop": _crop, "cutout": _cutout, "flip": _flip,
    "scale": _scale, "rotate": _rotate,
}  # fmt: skip


def _mean(images):
    return jax.lax.stop_gradient(images.mean((0, 1, 2)))


def _warp(images, matrix, shift=None):
    """Samples images bilinearly at `matrix @ (y, x) + shift` of every pixel's `(y, x)`.

    Args:
      images: `[n, h, w, c]`; outside they are `_mean`.
      matrix: `[n, 2, 2]`, of coordinates from -1 to 1, the centres of the outermost
        pixels (`align_corners=True`, as the authors').
      shift: `[n, 2]`, in the same units.
    """
    n, h, w, c = images.shape
    size = jnp.array([h, w])
    pixels = jnp.stack(jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij"), -1)
    target = (2 * pixels / (size - 1) - 1).reshape(-1, 2)
    # Full precision: TPU's default bfloat16 would move every pixel.
    at = jnp.einsum("nij,pj->npi", matrix, target, precision="highest")
    if shift is not None:
        at += shift[:, None]
    at = (at + 1) * (size - 1) / 2
    fill = _mean(images)
    values = (images - fill).reshape(n, h * w, c)
    warped = jnp.zeros_like(values)
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        place = jnp.floor(at) + jnp.array(corner)
        weight = jnp.prod(1 - jnp.abs(at - place), -1)
        weight *= ((place >= 0) & (place < size)).all(-1)
        row, column = jnp.moveaxis(jnp.clip(place, 0, size - 1), -1, 0)
        index = (row * w + column).astype(jnp.int32)
        found = jnp.take_along_axis(values, index[..., None], axis=1)
        warped += weight[..., None] * found
    return warped.reshape(images.shape) + fill
