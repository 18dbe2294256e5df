"""The ConvNets of dataset distillation.

Gidaris & Komodakis (2018), as used since Zhao et al. (2021).
"""

import flax.linen as nn
import jax

from ot_dd.models import layers


class ConvNet(nn.Module):
    """`depth` blocks of 3x3 convolution, norm, ReLU and 2x2 average pool; then linear.

    ConvNet-3 is the usual student at 32x32 and ConvNet-6 at 256x256. Unlike the code
    of the first papers, 28x28 grey images are not padded to 32x32 in the first layer.

    Attributes:
      num_classes: size of the last layer.
      depth: number of blocks; every block halves the image.
      width: channels of every block.
      norm: "instance", "batch" or "none".
    """

    num_classes: int
    depth: int = 3
    width: int = 128
    norm: str = "instance"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, features: bool = False):
        """Returns logits `[b, classes]`, with features `[b, d]` if `features`."""
        for i in range(self.depth):
            x = layers.Conv(self.width, padding=1, name=f"conv{i + 1}")(x)
            x = layers.norm(self.norm, train=train, name=f"norm{i + 1}")(x)
            x = layers.avg_pool(nn.relu(x))
        x = x.reshape(x.shape[0], -1)
        logits = nn.Dense(self.num_classes, name="fc")(x)
        return (logits, x) if features else logits
