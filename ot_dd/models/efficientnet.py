"""EfficientNet (Tan & Le, 2019) and EfficientNet-Lite: inverted residual networks.

B0 has torchvision's layout. The Lite networks (Liu, 2020) leave squeeze-excitation out,
use ReLU6, keep stem and head at every scale, and pad as TensorFlow does.
"""

import math
from functools import partial

import flax.linen as nn
import jax

from ot_dd.models import layers
from ot_dd.models.mobilenet_v2 import scaled

_conv = partial(layers.Conv, use_bias=False, kernel_init=layers.he_normal_out)

# Expansion, channels, repetitions, stride of the first repetition, kernel: table 1.
_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


class _SqueezeExcite(nn.Module):
    """Scales channels by a two-layer network of their means (Hu et al., 2018)."""

    squeezed: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.mean((1, 2))
        y = nn.silu(nn.Dense(self.squeezed, name="fc1")(y))
        y = nn.sigmoid(nn.Dense(x.shape[-1], name="fc2")(y))
        return x * y[:, None, None, :]


class _Block(nn.Module):
    """1x1 expansion, depthwise, squeeze-excitation, 1x1 projection, and a shortcut.

    Attributes:
      features: output channels.
      expansion: factor on the channels inside; 1 leaves the expansion out.
      strides: the stride of the depthwise convolution.
      kernel: side of the depthwise kernel.
      lite: no squeeze-excitation, ReLU6, TensorFlow's padding and epsilon.
      norm: "batch" or "instance".
    """

    features: int
    expansion: int
    strides: int
    kernel: int
    lite: bool
    norm: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        act, norm, padding = _style(self.lite, self.norm, train)
        k, inner, y = self.kernel, x.shape[-1] * self.expansion, x
        if self.expansion != 1:
            y = act(norm(name="expand_norm")(_conv(inner, (1, 1), name="expand")(y)))
        y = _conv(
            inner, (k, k), self.strides, padding(k), groups=inner, name="depthwise"
        )(y)
        y = act(norm(name="depthwise_norm")(y))
        if not self.lite:
            y = _SqueezeExcite(max(1, x.shape[-1] // 4), name="se")(y)
        y = norm(name="project_norm")(_conv(self.features, (1, 1), name="project")(y))
        return x + y if x.shape == y.shape else y


def _style(lite: bool, kind: str, train: bool):
    """Returns the activation, the norm and the padding of a kernel size."""
    norm = partial(layers.norm, kind, train=train, epsilon=1e-3 if lite else 1e-5)
    if lite:
        return nn.relu6, norm, lambda kernel: "SAME"
    return nn.silu, norm, lambda kernel: kernel // 2


class EfficientNet(nn.Module):
    """EfficientNet; the defaults are B0. Without dropout and stochastic depth.

    Attributes:
      num_classes: size of the last layer.
      width_mult: factor on channel counts (rounded to multiples of 8).
      depth_mult: factor on repetitions (rounded up).
      lite: the Lite form; it scales neither stem, head nor the first and last stage.
      norm: "batch" or "instance".
      stem: "imagenet" (downsampling by 32 in all) or "cifar" (by 8: strides 1 in the
        stem and in the first strided stage).
    """

    num_classes: int
    width_mult: float = 1.0
    depth_mult: float = 1.0
    lite: bool = False
    norm: str = "batch"
    stem: str = "imagenet"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, features: bool = False):
        """Returns logits `[b, classes]`, with features `[b, d]` if `features`."""
        layers.check_stem(self.stem)
        cifar = self.stem == "cifar"
        act, norm, padding = _style(self.lite, self.norm, train)
        ends = 1.0 if self.lite else self.width_mult
        strides = 1 if cifar else 2
        x = _conv(scaled(32, ends), (3, 3), strides, padding(3), name="conv_stem")(x)
        x = act(norm(name="norm_stem")(x))
        last = len(_STAGES) - 1
        for stage, (expansion, channels, count, strides, kernel) in enumerate(_STAGES):
            if not (self.lite and stage in (0, last)):
                count = math.ceil(count * self.depth_mult)
            if cifar and stage == 1:
                strides = 1
            for i in range(count):
                x = _Block(
                    features=scaled(channels, self.width_mult),
                    expansion=expansion,
                    strides=strides if i == 0 else 1,
                    kernel=kernel,
                    lite=self.lite,
                    norm=self.norm,
                    name=f"block{stage}_{i}",
                )(x, train)
        x = _conv(scaled(1280, ends), (1, 1), name="conv_head")(x)
        x = act(norm(name="norm_head")(x)).mean((1, 2))
        init = nn.initializers.normal(0.01)
        logits = nn.Dense(self.num_classes, kernel_init=init, name="fc")(x)
        return (logits, x) if features else logits
