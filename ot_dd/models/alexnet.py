"""AlexNet (Krizhevsky, 2014) with torchvision's layout, and a form for small images."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ot_dd.models import layers


def _adaptive_weights(size: int, out: int) -> jax.Array:
    """Returns `[out, size]`, PyTorch's `AdaptiveAvgPool` along one axis."""
    weights = np.zeros((out, size), np.float32)
    for i in range(out):
        start, stop = i * size // out, -(-(i + 1) * size // out)
        weights[i, start:stop] = 1 / (stop - start)
    return jnp.asarray(weights)


class AlexNet(nn.Module):
    """Five convolutions and three linear layers, without torchvision's dropout.

    Attributes:
      num_classes: size of the last layer.
      width: channels of the first convolution; the others keep torchvision's ratios,
        and the two hidden linear layers have 64 times as many.
      stem: "imagenet" (11x11 with stride 4, three 3x3 max pools, features averaged to
        6x6; at least 63 pixels) or "cifar" (5x5 with stride 1, three 2x2 max pools).
    """

    num_classes: int
    width: int = 64
    stem: str = "imagenet"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, features: bool = False):
        """Returns logits `[b, classes]`, with features `[b, d]` if `features`."""
        del train  # Neither batch norm nor dropout.
        layers.check_stem(self.stem)
        cifar = self.stem == "cifar"
        layers.check_size(f"alexnet with stem={self.stem!r}", x, 8 if cifar else 63)
        window = 2 if cifar else 3
        stem = ((5, 5), 1, 2) if cifar else ((11, 11), 4, 2)
        x = nn.relu(layers.Conv(self.width, *stem, name="conv1")(x))
        x = layers.max_pool(x, window, 2)
        x = nn.relu(layers.Conv(3 * self.width, (5, 5), 1, 2, name="conv2")(x))
        x = layers.max_pool(x, window, 2)
        for i, ratio in enumerate((6, 4, 4), 3):
            x = nn.relu(layers.Conv(ratio * self.width, name=f"conv{i}")(x))
        x = layers.max_pool(x, window, 2)
        if not cifar:
            rows, columns = (_adaptive_weights(size, 6) for size in x.shape[1:3])
            x = jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns).astype(x.dtype)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(64 * self.width, name="fc1")(x))
        x = nn.relu(nn.Dense(64 * self.width, name="fc2")(x))
        logits = nn.Dense(self.num_classes, name="fc3")(x)
        return (logits, x) if features else logits
