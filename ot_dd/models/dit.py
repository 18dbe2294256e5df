"""Diffusion transformer with adaLN-zero (Peebles & Xie, 2023), from the paper."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ot_dd.models import layers


def timestep_frequencies(t: jax.Array, dim: int = 256) -> jax.Array:
    """Embeds times by cosines then sines of geometric frequencies down to 1e-4.

    Args:
      t: times `[b]`, integer-like or fractional.
      dim: even size of the embedding.

    Returns:
      `[b, dim]`, float32: `cos(t w_k)` then `sin(t w_k)`, `w_k = 10000^(-2k / dim)`.
    """
    frequencies = jnp.exp(-math.log(1e4) * jnp.arange(dim // 2) / (dim // 2))
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


def sincos_positions(rows: int, columns: int, dim: int) -> np.ndarray:
    """Returns fixed 2-D position embeddings `[rows * columns, dim]`, float32.

    The first half embeds the column, the second the row, each as sines then cosines
    (the order of MAE, He et al., 2022, that the released DiT weights expect).

    Args:
      rows: patches along the height.
      columns: patches along the width.
      dim: multiple of 4.

    Raises:
      ValueError: if `dim` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"dim={dim} must be a multiple of 4 for 2-D positions.")
    # float64, or the angles of large grids differ from the reference's last digits.
    frequencies = 1e4 ** (-np.arange(dim // 4, dtype=np.float64) / (dim // 4))
    row, column = np.mgrid[:rows, :columns]
    angles = [axis.reshape(-1, 1) * frequencies for axis in (column, row)]
    parts = [f(angle) for angle in angles for f in (np.sin, np.cos)]
    return np.concatenate(parts, -1).astype(np.float32)


class _TimestepEmbedder(nn.Module):
    dim: int

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        init = nn.initializers.normal(0.02)
        y = nn.Dense(self.dim, kernel_init=init, name="fc1")(timestep_frequencies(t))
        return nn.Dense(self.dim, kernel_init=init, name="fc2")(nn.silu(y))


def _modulated_norm(x, shift, scale):
    """Layer norm without affine part, then `x (1 + scale) + shift`, `[b, n, d]`."""
    x = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False)(x)
    return x * (1 + scale[:, None]) + shift[:, None]


def _modulation(chunks: int, conditioning, *, name: str):
    """Returns `chunks` vectors `[b, d]`, all zero at initialisation."""
    dense = nn.Dense(
        chunks * conditioning.shape[-1], kernel_init=nn.initializers.zeros, name=name
    )
    return jnp.split(dense(nn.silu(conditioning)), chunks, -1)


class _Block(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, conditioning: jax.Array):
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = _modulation(
            6, conditioning, name="adaln"
        )
        y = _modulated_norm(x, shift_attn, scale_attn)
        y = layers.SelfAttention(self.heads, name="attn")(y)
        x = x + gate_attn[:, None] * y
        y = _modulated_norm(x, shift_mlp, scale_mlp)
        y = layers.Mlp(approximate_gelu=True, name="mlp")(y)
        return x + gate_mlp[:, None] * y, None


class _FinalLayer(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x: jax.Array, conditioning: jax.Array) -> jax.Array:
        shift, scale = _modulation(2, conditioning, name="adaln")
        x = _modulated_norm(x, shift, scale)
        init = nn.initializers.zeros
        return nn.Dense(self.features, kernel_init=init, name="linear")(x)


class DiT(nn.Module):
    """Class-conditional diffusion transformer; the defaults are DiT-XL/2.

    Its output is zero at initialisation. Class dropout for classifier-free guidance is
    the caller's: replace labels by `null_class`.

    Attributes:
      num_classes: number of classes; the table has one more row, `null_class`.
      patch: side of a patch; must divide the image.
      dim: width of the tokens, a multiple of 4 and of `heads`.
      depth: number of blocks.
      heads: attention heads.
      learn_sigma: output twice the channels (the second half sets the variance).
      remat: recompute the blocks in the backward pass.
    """

    num_classes: int
    patch: int = 2
    dim: int = 1152
    depth: int = 28
    heads: int = 16
    learn_sigma: bool = True
    remat: bool = False

    @property
    def null_class(self) -> int:
        """The label of "no class"."""
        return self.num_classes

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
        """Denoises.

        Args:
          x: noisy images or latents `[b, h, w, c]`.
          t: times `[b]`, float, in units of the 1,000 training steps.
          y: labels `[b]`, int, in `0..num_classes`.

        Returns:
          `[b, h, w, c]`, or `[b, h, w, 2 c]` with `learn_sigma`.
        """
        b, h, w, c = x.shape
        p = self.patch
        out = 2 * c if self.learn_sigma else c
        init = nn.initializers.normal(0.02)
        labels = nn.Embed(
            self.num_classes + 1, self.dim, embedding_init=init, name="y_embedder"
        )(y)
        times = _TimestepEmbedder(self.dim, name="t_embedder")(t)
        conditioning = (times + labels).astype(x.dtype)

        z = layers.PatchEmbed(p, self.dim, name="patch_embed")(x)
        rows, columns = z.shape[1:3]
        z = z.reshape(b, rows * columns, self.dim)
        z = z + sincos_positions(rows, columns, self.dim).astype(z.dtype)
        blocks = layers.scan_blocks(_Block, self.depth, remat=self.remat)
        z, _ = blocks(self.heads, name="blocks")(z, conditioning)
        z = _FinalLayer(p * p * out, name="final")(z, conditioning)
        z = z.reshape(b, rows, columns, p * p * out)
        return layers.depth_to_space(z, p)
