"""Residual networks (He et al., 2015) with torchvision's layout, and ResNetAP.

ResNetAP (Zhao et al., 2021; Kim et al., 2022) puts average pooling where a ResNet has
strides and a max pool; ResNetAP-10 is a usual student of distilled sets.
"""

from functools import partial

import flax.linen as nn
import jax

from ot_dd.models import layers

_conv = partial(layers.Conv, use_bias=False, kernel_init=layers.he_normal_out)


class _Block(nn.Module):
    """A basic or bottleneck block, `[b, h, w, c] -> [b, h / s, w / s, features]`.

    Attributes:
      features: output channels.
      inner: channels of the convolutions inside.
      strides: the downsampling `s`, 1 or 2.
      bottleneck: 1x1, 3x3, 1x1 convolutions instead of two 3x3 ones.
      pool: downsample by average pooling instead of a strided convolution.
      norm: "instance" or "batch".
    """

    features: int
    inner: int
    strides: int
    bottleneck: bool
    pool: bool
    norm: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = partial(layers.norm, self.norm, train=train)
        # (channels, kernel size, strides); the 3x3 of a bottleneck has the stride, as
        # in torchvision ("v1.5").
        if self.bottleneck:
            convs = ((self.inner, 1, 1), (self.inner, 3, self.strides))
        else:
            convs = ((self.inner, 3, self.strides),)
        y = x
        for i, (features, size, strides) in enumerate(convs, 1):
            kernel = (size, size)
            conv_strides = 1 if self.pool else strides
            y = _conv(features, kernel, conv_strides, size // 2, name=f"conv{i}")(y)
            y = nn.relu(norm(name=f"norm{i}")(y))
            if self.pool and strides > 1:
                y = layers.avg_pool(y)
        last, size = len(convs) + 1, 1 if self.bottleneck else 3
        y = _conv(self.features, (size, size), 1, size // 2, name=f"conv{last}")(y)
        y = norm(name=f"norm{last}")(y)

        if self.strides > 1 or x.shape[-1] != self.features:
            strides = self.strides
            if self.pool and strides > 1:
                # Pooling commutes with a 1x1 convolution, and first it costs less.
                x, strides = layers.avg_pool(x), 1
            x = _conv(self.features, (1, 1), strides, 0, name="conv_shortcut")(x)
            x = norm(name="norm_shortcut")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Stem, four stages of residual blocks, global average pooling, linear layer.

    Attributes:
      num_classes: size of the last layer.
      blocks: blocks per stage.
      bottleneck: bottleneck blocks (outputs four times as wide) instead of basic ones.
      width: channels of the first stage; they double from stage to stage.
      inner_width: factor on the channels inside a bottleneck (2 in Wide ResNet-50-2).
      norm: "batch" or "instance".
      stem: "imagenet" (7x7, then downsampling by 4 in all) or "cifar" (3x3, none).
      pool: average pooling instead of strides and of the max pool (ResNetAP).
    """

    num_classes: int
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False
    width: int = 64
    inner_width: int = 1
    norm: str = "batch"
    stem: str = "imagenet"
    pool: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, features: bool = False):
        """Returns logits `[b, classes]`, with features `[b, d]` if `features`."""
        layers.check_stem(self.stem)
        imagenet = self.stem == "imagenet"
        size, strides = (7, 1 if self.pool else 2) if imagenet else (3, 1)
        x = _conv(self.width, (size, size), strides, size // 2, name="conv1")(x)
        x = nn.relu(layers.norm(self.norm, train=train, name="norm1")(x))
        if imagenet and self.pool:
            x = layers.avg_pool(layers.avg_pool(x))
        elif imagenet:
            x = layers.max_pool(x, 3, 2, padding=1)
        for stage, count in enumerate(self.blocks):
            width = self.width * 2**stage
            for i in range(count):
                x = _Block(
                    features=width * (4 if self.bottleneck else 1),
                    inner=width * self.inner_width,
                    strides=2 if stage > 0 and i == 0 else 1,
                    bottleneck=self.bottleneck,
                    pool=self.pool,
                    norm=self.norm,
                    name=f"layer{stage + 1}_{i}",
                )(x, train)
        x = x.mean((1, 2))
        logits = nn.Dense(self.num_classes, name="fc")(x)
        return (logits, x) if features else logits
