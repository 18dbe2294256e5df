"""Functions of images or latents, a part at a time, on all devices of all processes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from ot_dd.data import to_uint8
from ot_dd.parallel import gather_rows, local_mesh, place
from ot_dd.stages.artifacts import Autoencoder
from ot_dd.stages.networks import as_floats


@partial(jax.jit, static_argnums=(0, 1))
def apply_to_part(fn, mesh, inputs, batch):
    """Returns `fn(*inputs, batch)`, each device of the mesh with rows of its own."""
    if mesh is not None:
        split = P(mesh.axis_names[0])
        specs = (*(P() for _ in inputs), split)
        fn = jax.shard_map(
            fn, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False
        )
    return fn(*inputs, batch)


def in_batches(fn, inputs: tuple, batch) -> np.ndarray:
    """Applies `fn(*inputs, part)` to parts of `batch`; a module-level fn compiles once.

    Of several processes each takes its share, on all of its devices, and all get the
    whole.

    Args:
      fn: a function defined at module level.
      inputs: pytrees passed before the part.
      batch: `[n, ...]`, an array or `Stored`; uint8 images reach `fn` as floats.

    Returns:
      The concatenated results `[n, ...]`, on the host.
    """
    return gather_rows(batch.shape[0], partial(of_rows, fn, inputs, batch))


def of_rows(fn, inputs: tuple, batch, rows: range) -> np.ndarray:
    """Applies `fn` to a range of rows; every device of this process takes some."""
    mesh, share = local_mesh(), -(-batch.shape[0] // jax.device_count())
    size = min(rows_at_once(fn, inputs, batch), share) * jax.local_device_count()
    inputs, out = place(inputs, mesh), []
    for start in range(rows.start, rows.stop, size):
        part = jnp.asarray(batch[start : min(start + size, rows.stop)])
        if short := size - part.shape[0]:
            part = jnp.concatenate([part, jnp.repeat(part[-1:], short, axis=0)])
        part = as_floats(place(part, mesh, "data"))
        out.append(apply_to_part(fn, mesh, inputs, part))
        if len(out) > 1:  # A part is computed while the next one is read.
            out[-2] = np.asarray(out[-2])
    return np.concatenate(out)[: len(rows)]


def rows_at_once(fn, inputs: tuple, batch) -> int:
    """Returns how many rows `in_batches` gives a device: 32 images of 256 x 256 x 3."""
    row = jax.ShapeDtypeStruct((1, *batch.shape[1:]), jnp.float32)
    out = jax.eval_shape(partial(apply_to_part, fn, None), inputs, row)
    sizes = (x.size for x in jax.tree.leaves((row, out)))
    return int(np.clip(HELD_VALUES // max(sizes), 1, 500))


HELD_VALUES = 32 * 256 * 256 * 3  # Of the images that a device works on at once.


def encode(autoencoder, images):
    """Images `[n, h, w, c]` to latents, for `in_batches`."""
    return autoencoder.encode(images)


def decode(autoencoder, latents):
    """Latents to images `[n, h, w, c]`, for `in_batches`."""
    return autoencoder.decode(latents)


def decode_bytes(autoencoder, latents):
    """Latents to images uint8 `[n, h, w, c]`, for `in_batches`."""
    return to_uint8(autoencoder.decode(latents))


def decode_set(autoencoder: Autoencoder, latents: np.ndarray) -> np.ndarray:
    """Decodes a set's latents `[classes, ipc, ...]` to images uint8, as many."""
    flat = latents.reshape(-1, *latents.shape[2:])
    images = in_batches(decode_bytes, (autoencoder,), flat)
    return images.reshape(*latents.shape[:2], *images.shape[1:])
