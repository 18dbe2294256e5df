"""DenseNet (Huang et al., 2017) with torchvision's layout."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from ot_dd.models import layers

_conv = partial(layers.Conv, use_bias=False, kernel_init=layers.he_normal_out)


class DenseNet(nn.Module):
    """Blocks of layers that read all earlier ones; the defaults are DenseNet-121.

    Attributes:
      num_classes: size of the last layer.
      blocks: layers per block.
      growth: channels that a layer adds; the stem has twice as many.
      norm: "batch" or "instance".
      stem: "imagenet" (7x7, then downsampling by 4 in all) or "cifar" (3x3, none).
    """

    num_classes: int
    blocks: tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 32
    norm: str = "batch"
    stem: str = "imagenet"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, features: bool = False):
        """Returns logits `[b, classes]`, with features `[b, d]` if `features`."""
        layers.check_stem(self.stem)
        imagenet = self.stem == "imagenet"

        def activate(x, name):
            return nn.relu(layers.norm(self.norm, train=train, name=name)(x))

        size, strides = (7, 2) if imagenet else (3, 1)
        x = _conv(2 * self.growth, (size, size), strides, size // 2, name="conv0")(x)
        x = activate(x, "norm0")
        if imagenet:
            x = layers.max_pool(x, 3, 2, padding=1)
        for block, count in enumerate(self.blocks, 1):
            for i in range(1, count + 1):
                name = f"block{block}_{i}"
                y = activate(x, f"{name}_norm1")
                y = _conv(4 * self.growth, (1, 1), name=f"{name}_conv1")(y)
                y = activate(y, f"{name}_norm2")
                y = _conv(self.growth, (3, 3), 1, 1, name=f"{name}_conv2")(y)
                x = jnp.concatenate([x, y], -1)
            if block < len(self.blocks):
                x = activate(x, f"transition{block}_norm")
                x = _conv(x.shape[-1] // 2, (1, 1), name=f"transition{block}_conv")(x)
                x = layers.avg_pool(x)
        x = activate(x, "norm5").mean((1, 2))
        logits = nn.Dense(self.num_classes, name="fc")(x)
        return (logits, x) if features else logits
