"""ShuffleNetV2 (Ma et al., 2018) with torchvision's layout."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from ot_dd.models import layers

_conv = partial(layers.Conv, use_bias=False, kernel_init=layers.he_normal_out)
_REPEATS = (4, 8, 4)


def channel_shuffle(x: jax.Array, groups: int = 2) -> jax.Array:
    """Interleaves the channels of `groups` groups, `[b, h, w, c] -> [b, h, w, c]`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, groups, c // groups).swapaxes(3, 4)
    return x.reshape(b, h, w, c)


class _Unit(nn.Module):
    """Half of the channels pass, half are transformed, then both are shuffled.

    A unit with stride 2 transforms all channels twice, by two branches.

    Attributes:
      features: output channels.
      strides: 1 or 2.
      norm: "batch" or "instance".
    """

    features: int
    strides: int
    norm: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        half = self.features // 2

        def pointwise(x, name):
            x = _conv(half, (1, 1), name=name)(x)
            return nn.relu(layers.norm(self.norm, train=train, name=f"{name}_norm")(x))

        def depthwise(x, name):
            c = x.shape[-1]
            x = _conv(c, (3, 3), self.strides, 1, groups=c, name=name)(x)
            return layers.norm(self.norm, train=train, name=f"{name}_norm")(x)

        if self.strides == 1:
            kept, x = jnp.split(x, 2, -1)
        else:
            kept = pointwise(depthwise(x, "left_depthwise"), "left_project")
        x = depthwise(pointwise(x, "expand"), "depthwise")
        return channel_shuffle(jnp.concatenate([kept, pointwise(x, "project")], -1))


class ShuffleNetV2(nn.Module):
    """Stem, three stages of shuffle units, a 1x1 convolution, linear layer.

    Attributes:
      num_classes: size of the last layer.
      channels: channels of the stem, of each stage, and of the last convolution.
      norm: "batch" or "instance".
      stem: "imagenet" (downsampling by 32 in all) or "cifar" (by 8).
    """

    num_classes: int
    channels: tuple[int, ...] = (24, 116, 232, 464, 1024)
    norm: str = "batch"
    stem: str = "imagenet"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, features: bool = False):
        """Returns logits `[b, classes]`, with features `[b, d]` if `features`."""
        layers.check_stem(self.stem)
        cifar = self.stem == "cifar"
        norm = partial(layers.norm, self.norm, train=train)
        first, *stages, last = self.channels
        x = _conv(first, (3, 3), 1 if cifar else 2, 1, name="conv_stem")(x)
        x = nn.relu(norm(name="norm_stem")(x))
        if not cifar:
            x = layers.max_pool(x, 3, 2, padding=1)
        for stage, (width, count) in enumerate(zip(stages, _REPEATS, strict=True), 2):
            for i in range(count):
                strides = 2 if i == 0 else 1
                unit = _Unit(width, strides, self.norm, name=f"stage{stage}_{i}")
                x = unit(x, train)
        x = _conv(last, (1, 1), name="conv_head")(x)
        x = nn.relu(norm(name="norm_head")(x)).mean((1, 2))
        logits = nn.Dense(self.num_classes, name="fc")(x)
        return (logits, x) if features else logits
