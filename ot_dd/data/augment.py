"""Random resized crop, flip, colour jitter and CutMix, split into drawing and doing.

`sample_params` draws a small tuple from a key and `apply` carries it out, so an epoch
of soft labels can be stored as its keys and replayed exactly: the fast knowledge
distillation of Shen & Xing 2022 (arXiv:2112.01528) without the stored crops. The chain
and the one CutMix box for a whole batch are those of EDC's relabelling (Shao et al.
2024, arXiv:2404.13733).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

_CROP_TRIES = 10  # As torchvision's RandomResizedCrop.
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's and torchvision's grey.


class AugmentConfig(NamedTuple):
    """Static choices; hashable, so it may be a static argument of `jax.jit`.

    Attributes:
      crop_scale: Least and largest share of the image's area in a crop, in `(0, 1]`.
      crop_ratio: Least and largest width / height of a crop in pixels.
      flip: Whether to mirror left and right with probability 1/2.
      jitter: Strength s: the three colour factors are uniform in `[1 - s, 1 + s]`.
      cutmix: Probability that a batch is mixed.
      cutmix_alpha: The kept share is drawn from Beta(alpha, alpha).
      shift: If above 0, images are moved by up to so many whole pixels along each axis
        (the border is repeated) in place of the resized crop: for small images.
    """

    crop_scale: tuple[float, float] = (0.5, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    jitter: float = 0.0
    cutmix: float = 0.0
    cutmix_alpha: float = 1.0
    shift: int = 0


class AugmentParams(NamedTuple):
    """What was drawn for one batch; all a replay needs.

    Attributes:
      crop: `[n, 4]` y, x, height, width as shares of the image.
      flip: `[n]` bool.
      jitter: `[n, 3]` factors of brightness, contrast and saturation; 1 does nothing.
      mix_index: `[n]` int32, whose augmented image fills the box.
      mix_box: `[4]` int32 y0, x0, y1, x1 in pixels, half open; zeros mix nothing.
      mix_ratio: `[]` exact share of its own pixels that an image keeps.
    """

    crop: jax.Array
    flip: jax.Array
    jitter: jax.Array
    mix_index: jax.Array
    mix_box: jax.Array
    mix_ratio: jax.Array


def augment(
    key: jax.Array, images: jax.Array, config: AugmentConfig
) -> tuple[jax.Array, AugmentParams]:
    """Draws and applies in one go; `apply(images, params)` gives the same images.

    Args:
      key: A typed key.
      images: `[n, h, w, c]` float in `[-1, 1]`.
      config: Static choices.

    Returns:
      The augmented images `[n, h, w, c]` and what was drawn.
    """
    params = sample_params(key, images.shape[0], images.shape[1:], config)
    return apply(images, params), params


def sample_params(
    key: jax.Array, n: int, image_shape: tuple[int, ...], config: AugmentConfig
) -> AugmentParams:
    """Draws the parameters of one batch.

    Every kind of augmentation has its own key, so switching one off leaves the draws of
    the others as they were.

    Args:
      key: A typed key.
      n: Batch size, static.
      image_shape: `(h, w, c)`, static.
      config: Static choices.

    Returns:
      Parameters for `apply`.

    Raises:
      ValueError: A field of `config` is out of range.
    """
    check(config)
    height, width = image_shape[-3:-1]
    crop_key, flip_key, jitter_key, index_key, box_key = jax.random.split(key, 5)
    if config.shift:
        pixels = jax.random.randint(crop_key, (n, 2), -config.shift, config.shift + 1)
        start = pixels / jnp.array([height, width])
        crop = jnp.concatenate([start, jnp.ones((n, 2))], axis=1)
    else:
        crop = _sample_crops(crop_key, n, height, width, config)
    flip = jnp.zeros(n, bool)
    if config.flip:
        flip = jax.random.bernoulli(flip_key, 0.5, (n,))
    jitter = jnp.ones((n, 3))
    if config.jitter:
        spread = jax.random.uniform(jitter_key, (n, 3), minval=-1.0)
        jitter = 1 + config.jitter * spread
    index, box = jnp.arange(n, dtype=jnp.int32), jnp.zeros(4, jnp.int32)
    if config.cutmix:
        index = jax.random.permutation(index_key, index)
        box = _sample_box(box_key, height, width, config)
    # The box is clipped at the border: the share is counted, not the one drawn.
    area = (box[2] - box[0]) * (box[3] - box[1])
    ratio = 1 - area / (height * width)
    return AugmentParams(crop, flip, jitter, index, box, ratio)


def apply(images: jax.Array, params: AugmentParams) -> jax.Array:
    """Carries out drawn augmentations: resized crop, flip, colour jitter, CutMix.

    The crop is bilinear without antialiasing, as two small matrix products, which
    accelerators and automatic differentiation both take better than gathers. Where a
    crop reaches outside the image, the border is repeated. Differentiable with respect
    to `images`; colour jitter clips to `[-1, 1]`, with no gradient where it does.

    Args:
      images: `[n, h, w, c]` float in `[-1, 1]`, `c` 1 or 3 (saturation needs colours
        and does nothing for other `c`).
      params: From `sample_params` for the same `n`, `h` and `w`.

    Returns:
      `[n, h, w, c]` of the same dtype.
    """
    height, width = images.shape[1:3]
    top, left, crop_height, crop_width = params.crop.astype(jnp.float32).T
    rows = _bilinear_weights(top, crop_height, jnp.zeros_like(params.flip), height)
    columns = _bilinear_weights(left, crop_width, params.flip, width)
    # Full precision: TPU's default bfloat16 would quantise every augmented image.
    out = jnp.einsum("nij,njwc->niwc", rows, images, precision="highest")
    out = jnp.einsum("nkw,niwc->nikc", columns, out, precision="highest")
    out = _jitter(out.astype(images.dtype), params.jitter.astype(images.dtype))
    y, x = jnp.arange(height)[:, None], jnp.arange(width)
    y0, x0, y1, x1 = params.mix_box
    inside = ((y0 <= y) & (y < y1) & (x0 <= x) & (x < x1))[None, :, :, None]
    return jnp.where(inside, out[params.mix_index], out)


def check(config: AugmentConfig) -> None:
    """Raises an error that names the field if one cannot be.

    Raises:
      ValueError: A field of `config` is out of range.
    """
    low, high = config.crop_scale
    narrow, wide = config.crop_ratio
    for field, valid, wanted in (
        ("crop_scale", 0 < low <= high <= 1, "0 < least <= largest <= 1"),
        ("crop_ratio", 0 < narrow <= wide, "0 < least <= largest"),
        ("jitter", 0 <= config.jitter <= 1, "between 0 and 1"),
        ("cutmix", 0 <= config.cutmix <= 1, "a probability"),
        ("cutmix_alpha", config.cutmix_alpha > 0, "above 0"),
        ("shift", config.shift >= 0, "0 or more"),
    ):
        if not valid:
            value = getattr(config, field)
            raise ValueError(f"AugmentConfig.{field} = {value!r}: must be {wanted}")


def _sample_crops(
    key: jax.Array, n: int, height: int, width: int, config: AugmentConfig
) -> jax.Array:
    """Crops `[n, 4]` by torchvision's rule, but not rounded to whole pixels.

    Area and log ratio are uniform; the first of ten draws that fits inside the image is
    taken. If none fits, the whole image is cut at the centre to an allowed ratio.
    """
    scale_key, ratio_key, place_key = jax.random.split(key, 3)
    tries = (n, _CROP_TRIES)
    low, high = config.crop_scale
    share = jax.random.uniform(scale_key, tries, minval=low, maxval=high)
    low, high = (math.log(ratio) for ratio in config.crop_ratio)
    ratio = jnp.exp(jax.random.uniform(ratio_key, tries, minval=low, maxval=high))
    # Shares of the image: the ratio of shares is the ratio in pixels over the image's.
    relative = ratio * (height / width)
    sides = jnp.stack([jnp.sqrt(share / relative), jnp.sqrt(share * relative)], -1)
    fits = (sides <= 1).all(-1)
    first = jnp.argmax(fits, axis=1)
    sides = jnp.take_along_axis(sides, first[:, None, None], axis=1)[:, 0]
    whole = min(max(width / height, config.crop_ratio[0]), config.crop_ratio[1])
    whole = whole * height / width
    fallback = jnp.array([min(1, 1 / whole), min(1, whole)])
    found = fits.any(1)[:, None]
    sides = jnp.where(found, sides, fallback)
    place = jnp.where(found, jax.random.uniform(place_key, (n, 2)), 0.5)
    return jnp.concatenate([place * (1 - sides), sides], axis=1)


def _sample_box(
    key: jax.Array, height: int, width: int, config: AugmentConfig
) -> jax.Array:
    """A CutMix box `[4]` (Yun et al. 2019, arXiv:1905.04899), zeros if not mixing."""
    mix_key, share_key, centre_key = jax.random.split(key, 3)
    if config.cutmix_alpha == 1:  # Beta(1, 1), without its rejection loop.
        kept = jax.random.uniform(share_key)
    else:
        kept = jax.random.beta(share_key, config.cutmix_alpha, config.cutmix_alpha)
    size = jnp.array([height, width])
    half = (size * jnp.sqrt(1 - kept)).astype(jnp.int32) // 2
    centre = jax.random.randint(centre_key, (2,), 0, size)
    box = jnp.concatenate(
        [jnp.maximum(centre - half, 0), jnp.minimum(centre + half, size)]
    )
    mix = jax.random.bernoulli(mix_key, config.cutmix)
    return jnp.where(mix, box, 0).astype(jnp.int32)


def _bilinear_weights(
    start: jax.Array, length: jax.Array, flip: jax.Array, size: int
) -> jax.Array:
    """Matrices `[n, size, size]` that resample `[start, start + length]` of an axis.

    Pixel centres are at half integers (`align_corners=False`); mirroring costs nothing
    here, it only reverses the order in which the axis is read.
    """
    index = jnp.arange(size, dtype=jnp.float32)
    target = jnp.where(flip[:, None], index[::-1], index) + 0.5
    # In this order of operations the whole image maps to exact whole positions.
    position = start[:, None] * size + target * length[:, None] - 0.5
    position = jnp.clip(position, 0, size - 1)
    return jnp.maximum(1 - jnp.abs(position[:, :, None] - index), 0)


def _jitter(images: jax.Array, factors: jax.Array) -> jax.Array:
    """Brightness, contrast, saturation, in this order, as torchvision's ColorJitter."""
    brightness, contrast, saturation = factors.T[:, :, None, None, None]
    x = (images + 1) / 2
    x = jnp.clip(brightness * x, 0, 1)
    mean = _grey(x).mean((1, 2, 3), keepdims=True)
    x = jnp.clip(mean + contrast * (x - mean), 0, 1)
    if images.shape[-1] == 3:
        grey = _grey(x)
        x = jnp.clip(grey + saturation * (x - grey), 0, 1)
    # Images that are not jittered pass untouched, even where they leave [-1, 1].
    jittered = (factors != 1).any(1)[:, None, None, None]
    return jnp.where(jittered, 2 * x - 1, images)


def _grey(images: jax.Array) -> jax.Array:
    """Luma `[n, h, w, 1]` of colour images; the mean of channels otherwise."""
    if images.shape[-1] == 3:
        return (images * jnp.array(_LUMA, images.dtype)).sum(-1, keepdims=True)
    return images.mean(-1, keepdims=True)
