"""Augmented views of a small set, replayable from their seed alone.

Soft labels belong to views, not to images: the same crop, flip and CutMix that a
teacher saw must be seen by the student. A view is a function of (seed, epoch, batch),
so labels can be stored and the views made again, or both made again.
"""

import jax
import jax.numpy as jnp

from ot_dd import data


def view_batch(
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    epoch: jax.Array,
    batch: jax.Array,
    size: int,
    config: data.AugmentConfig | data.DSA,
):
    """Returns one augmented batch.

    Args:
      images: the whole set as uint8, or floats in `[-1, 1]`, `[n, h, w, c]`.
      labels: classes `[n]`.
      key: the views' key.
      epoch: which pass over the set.
      batch: which batch of the pass, `0 .. n // size - 1`.
      size: images in a batch.
      config: the augmentation.

    Returns:
      Images `[size, h, w, c]`, labels `[size]`, and the `AugmentParams` used, None
      with DSA.
    """
    epoch_key = jax.random.fold_in(key, epoch)
    order = jax.random.permutation(jax.random.fold_in(epoch_key, 0), images.shape[0])
    rows = jax.lax.dynamic_slice_in_dim(order, batch * size, size)
    view_key = jax.random.fold_in(epoch_key, batch + 1)
    batch = images[rows]
    if batch.dtype == jnp.uint8:
        batch = data.to_float(batch)
    if isinstance(config, data.DSA):
        return data.dsa(view_key, batch, config), labels[rows], None
    augmented, params = data.augment(view_key, batch, config)
    return augmented, labels[rows], params


def batches_per_epoch(count: int, size: int) -> tuple[int, int]:
    """Returns (batches, batch size): the size is cut to the set's when that is less."""
    size = min(size, count)
    return count // size, size


def mean_logits(teachers, images: jax.Array) -> jax.Array:
    """Returns the mean of the teachers' logits `[b, classes]`, as EDC does (LIA)."""
    return jnp.stack([teacher(images) for teacher in teachers]).mean(0)
