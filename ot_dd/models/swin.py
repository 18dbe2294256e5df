"""Swin transformer (Liu et al., 2021) with torchvision's layout."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ot_dd.models import layers


def relative_positions(window: int) -> np.ndarray:
    """Returns `[n, n]`, `n = window^2`: rows of the bias table for token pairs."""
    grid = np.stack(np.mgrid[:window, :window]).reshape(2, -1)
    offset = grid[:, :, None] - grid[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


def _windows(x, window):
    """Splits `[b, h, w, c]` into windows `[b, h w / n, n, c]`."""
    return layers.space_to_depth(x, window).reshape(
        x.shape[0], -1, window * window, x.shape[-1]
    )


def _shift_mask(h: int, w: int, window: int, shift: tuple[int, int]) -> np.ndarray:
    """Returns `[windows, n, n]`: -100 for pairs that a shift brought together."""
    region = np.zeros((1, h, w, 1), np.int32)
    for axis, (size, by) in enumerate(((h, shift[0]), (w, shift[1])), 1):
        if by:  # The last window holds, and then wraps around, the first rows.
            along = np.zeros(size, np.int32)
            along[size - window : size - by] = 1
            along[size - by :] = 2
            region += along.reshape(-1 if axis == 1 else 1, -1 if axis == 2 else 1, 1)
            region *= 3 if axis == 1 else 1
    tokens = np.asarray(_windows(region, window))[0, :, :, 0]
    return np.where(tokens[:, None] == tokens[:, :, None], 0.0, -100.0)


class _WindowAttention(nn.Module):
    """Self-attention within (shifted) windows, `[b, h, w, c] -> [b, h, w, c]`."""

    heads: int
    window: int
    shift: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        window, n = self.window, self.window**2
        x = jnp.pad(x, ((0, 0), (0, -h % window), (0, -w % window), (0, 0)))
        sides = x.shape[1:3]
        # A window that covers the image sees all of it: nothing to shift.
        shift = tuple(0 if window >= side else self.shift for side in sides)
        x = jnp.roll(x, (-shift[0], -shift[1]), (1, 2))

        qkv = nn.Dense(3 * c, name="qkv")(_windows(x, window))
        qkv = qkv.reshape(*qkv.shape[:3], 3, self.heads, c // self.heads)
        q, k, v = (qkv[:, :, :, i] for i in range(3))  # [b, windows, n, heads, d]
        init = nn.initializers.truncated_normal(0.02)
        shape = ((2 * window - 1) ** 2, self.heads)
        table = self.param("relative_position_bias", init, shape, jnp.float32)
        bias = table[relative_positions(window)].transpose(2, 0, 1)  # [heads, n, n]
        bias = bias[None] + _shift_mask(*sides, window, shift)[:, None]
        scores = jnp.einsum("bwqhd,bwkhd->bwhqk", q, k) * (c // self.heads) ** -0.5
        weights = jax.nn.softmax(scores + bias.astype(scores.dtype))
        y = jnp.einsum("bwhqk,bwkhd->bwqhd", weights, v)
        y = nn.Dense(c, name="proj")(y.reshape(b, -1, n, c))

        rows, columns = (side // window for side in sides)
        y = layers.depth_to_space(y.reshape(b, rows, columns, n * c), window)
        return jnp.roll(y, shift, (1, 2))[:, :h, :w]


class _Block(nn.Module):
    heads: int
    window: int
    shift: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.LayerNorm(epsilon=1e-5, name="norm1")(x)
        attention = _WindowAttention(self.heads, self.window, self.shift, name="attn")
        x = x + attention(y)
        y = nn.LayerNorm(epsilon=1e-5, name="norm2")(x)
        return x + layers.Mlp(name="mlp")(y)


class Swin(nn.Module):
    """Four stages of window attention; the defaults are Swin-T.

    Without dropout and stochastic depth.

    Attributes:
      num_classes: size of the last layer.
      patch: side of a patch in pixels; must divide the image.
      dim: width of the first stage; it doubles from stage to stage.
      depths: blocks per stage.
      heads: attention heads per stage.
      window: side of a window in tokens; smaller maps are padded to it.
    """

    num_classes: int
    patch: int = 4
    dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, features: bool = False):
        """Returns logits `[b, classes]`, with features `[b, d]` if `features`."""
        del train  # No batch norm, no stochastic depth.
        x = layers.PatchEmbed(self.patch, self.dim, name="patch_embed")(x)
        x = nn.LayerNorm(epsilon=1e-5, name="patch_norm")(x)
        for stage, (count, heads) in enumerate(
            zip(self.depths, self.heads, strict=True)
        ):
            if stage > 0:
                x = self._merge(x, stage)
            for i in range(count):
                shift = self.window // 2 if i % 2 else 0
                block = _Block(heads, self.window, shift, name=f"block{stage}_{i}")
                x = block(x)
        x = nn.LayerNorm(epsilon=1e-5, name="norm")(x).mean((1, 2))
        logits = nn.Dense(self.num_classes, name="fc")(x)
        return (logits, x) if features else logits

    def _merge(self, x, stage):
        """Halves the map: the channels of 2x2 tokens, column by column, into twice c."""
        c = x.shape[-1]
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        parts = [x[:, i::2, j::2] for j in range(2) for i in range(2)]
        x = nn.LayerNorm(epsilon=1e-5, name=f"down{stage}_norm")(
            jnp.concatenate(parts, -1)
        )
        return nn.Dense(2 * c, use_bias=False, name=f"down{stage}")(x)
