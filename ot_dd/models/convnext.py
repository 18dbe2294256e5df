"""ConvNeXt (Liu et al., 2022)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ot_dd.models import layers


class _Block(nn.Module):
    """7x7 depthwise convolution, layer norm, perceptron, scaled, around a shortcut."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = x.shape[-1]
        y = layers.Conv(c, (7, 7), 1, 3, groups=c, name="depthwise")(x)
        y = nn.LayerNorm(epsilon=1e-6, name="norm")(y)
        y = layers.Mlp(name="mlp")(y)
        init = nn.initializers.constant(1e-6)
        scale = self.param("layer_scale", init, (c,), jnp.float32)
        return x + scale.astype(y.dtype) * y


class ConvNeXt(nn.Module):
    """Four stages of blocks; the defaults are ConvNeXt-T. Without stochastic depth.

    Attributes:
      num_classes: size of the last layer.
      depths: blocks per stage.
      dims: channels per stage.
      patch: side of the stem's patches; the stages halve the sides three times more.
    """

    num_classes: int
    depths: tuple[int, ...] = (3, 3, 9, 3)
    dims: tuple[int, ...] = (96, 192, 384, 768)
    patch: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, features: bool = False):
        """Returns logits `[b, classes]`, with features `[b, d]` if `features`."""
        del train  # No batch norm, no stochastic depth.
        layers.check_size("convnext", x, self.patch * 2 ** (len(self.dims) - 1))
        x = _patches(x, self.patch, self.dims[0], "stem")
        x = nn.LayerNorm(epsilon=1e-6, name="norm_stem")(x)
        for stage, (count, dim) in enumerate(zip(self.depths, self.dims, strict=True)):
            if stage > 0:
                x = nn.LayerNorm(epsilon=1e-6, name=f"down{stage}_norm")(x)
                x = _patches(x, 2, dim, f"down{stage}")
            for i in range(count):
                x = _Block(name=f"block{stage}_{i}")(x)
        x = nn.LayerNorm(epsilon=1e-6, name="norm")(x.mean((1, 2)))
        logits = nn.Dense(self.num_classes, name="fc")(x)
        return (logits, x) if features else logits


def _patches(x, size, dim, name):
    """Embeds disjoint patches; rows and columns that do not fill one are dropped."""
    return layers.Conv(dim, (size, size), size, "VALID", name=name)(x)
