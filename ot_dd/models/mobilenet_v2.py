"""MobileNetV2 (Sandler et al., 2018) with torchvision's layout."""

from functools import partial

import flax.linen as nn
import jax

from ot_dd.models import layers

_conv = partial(layers.Conv, use_bias=False, kernel_init=layers.he_normal_out)

# Expansion, channels, repetitions, stride of the first repetition: table 2.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def scaled(channels: int, width_mult: float) -> int:
    """Scales a channel count to a multiple of 8 that is at most 10 % smaller."""
    scaled = channels * width_mult
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


class _InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection, with a shortcut where shapes allow.

    Attributes:
      features: output channels.
      expansion: factor on the channels inside; 1 leaves the expansion out.
      strides: the stride of the depthwise convolution.
      norm: "batch" or "instance".
    """

    features: int
    expansion: int
    strides: int
    norm: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = partial(layers.norm, self.norm, train=train)
        inner = x.shape[-1] * self.expansion
        y = x
        if self.expansion != 1:
            y = _conv(inner, (1, 1), name="expand")(y)
            y = nn.relu6(norm(name="expand_norm")(y))
        y = _conv(inner, (3, 3), self.strides, 1, groups=inner, name="depthwise")(y)
        y = nn.relu6(norm(name="depthwise_norm")(y))
        y = _conv(self.features, (1, 1), name="project")(y)
        y = norm(name="project_norm")(y)
        return x + y if x.shape == y.shape else y


class MobileNetV2(nn.Module):
    """MobileNetV2, without the dropout that torchvision has before the last layer.

    Attributes:
      num_classes: size of the last layer.
      width_mult: factor on every channel count but the last, which never shrinks.
      norm: "batch" or "instance".
      stem: "imagenet" (downsampling by 32 in all) or "cifar" (by 8: strides 1 in the
        stem and in the first strided stage).
    """

    num_classes: int
    width_mult: float = 1.0
    norm: str = "batch"
    stem: str = "imagenet"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, features: bool = False):
        """Returns logits `[b, classes]`, with features `[b, d]` if `features`."""
        layers.check_stem(self.stem)
        cifar = self.stem == "cifar"
        norm = partial(layers.norm, self.norm, train=train)
        width = scaled(32, self.width_mult)
        x = _conv(width, (3, 3), 1 if cifar else 2, 1, name="conv_stem")(x)
        x = nn.relu6(norm(name="norm_stem")(x))
        for stage, (expansion, channels, count, strides) in enumerate(_STAGES):
            if cifar and stage == 1:
                strides = 1
            for i in range(count):
                x = _InvertedResidual(
                    features=scaled(channels, self.width_mult),
                    expansion=expansion,
                    strides=strides if i == 0 else 1,
                    norm=self.norm,
                    name=f"block{stage}_{i}",
                )(x, train)
        x = _conv(scaled(1280, max(1.0, self.width_mult)), (1, 1), name="conv_head")(x)
        x = nn.relu6(norm(name="norm_head")(x)).mean((1, 2))
        init = nn.initializers.normal(0.01)
        logits = nn.Dense(self.num_classes, kernel_init=init, name="fc")(x)
        return (logits, x) if features else logits
