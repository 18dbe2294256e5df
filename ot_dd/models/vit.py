"""Vision transformer (Dosovitskiy et al., 2020), pre-norm, with a class token."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ot_dd.models import layers


class _Block(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array):
        y = nn.LayerNorm(epsilon=1e-6, name="norm1")(x)
        x = x + layers.SelfAttention(self.heads, name="attn")(y)
        y = nn.LayerNorm(epsilon=1e-6, name="norm2")(x)
        return x + layers.Mlp(name="mlp")(y), None


class ViT(nn.Module):
    """ViT; the defaults are ViT-B/16. Positions are learned at the first image size.

    Attributes:
      num_classes: size of the last layer.
      patch: side of a patch in pixels; must divide the image.
      dim: width of the tokens.
      depth: number of blocks.
      heads: attention heads.
    """

    num_classes: int
    patch: int = 16
    dim: int = 768
    depth: int = 12
    heads: int = 12

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, features: bool = False):
        """Returns logits `[b, classes]`, with features `[b, d]` if `features`."""
        del train  # Neither batch norm nor dropout.
        x = layers.PatchEmbed(self.patch, self.dim, name="patch_embed")(x)
        x = x.reshape(x.shape[0], -1, self.dim)
        shape = 1, 1, self.dim
        token = self.param("class_token", nn.initializers.zeros, shape, jnp.float32)
        token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.dim))
        x = jnp.concatenate([token, x], 1)
        init = nn.initializers.normal(0.02)
        shape = 1, *x.shape[1:]
        x = x + self.param("positions", init, shape, jnp.float32).astype(x.dtype)
        x, _ = layers.scan_blocks(_Block, self.depth)(self.heads, name="blocks")(x)
        x = nn.LayerNorm(epsilon=1e-6, name="norm")(x)[:, 0]
        logits = nn.Dense(self.num_classes, name="fc")(x)
        return (logits, x) if features else logits
