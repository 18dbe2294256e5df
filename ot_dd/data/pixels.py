"""Images as bytes, which are kept, and as floats, which are computed with."""

import jax
import jax.numpy as jnp


def to_float(images: jax.Array) -> jax.Array:
    """Maps uint8 `[0, 255]` to float32 `[-1, 1]`."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(images: jax.Array) -> jax.Array:
    """Maps float `[-1, 1]` to uint8, rounding and clipping."""
    return jnp.round(jnp.clip(images * 127.5 + 127.5, 0, 255)).astype(jnp.uint8)
