"""A multilayer perceptron on pixels: the plainest teacher, for very small images."""

import flax.linen as nn
import jax


class MLP(nn.Module):
    """`depth` hidden layers of `width` units with ReLU; then linear.

    Attributes:
      num_classes: size of the last layer.
      depth: hidden layers.
      width: units of each.
    """

    num_classes: int
    depth: int = 2
    width: int = 256

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, features: bool = False):
        """Returns logits `[b, classes]`, with features `[b, d]` if `features`."""
        del train  # Neither batch norm nor dropout.
        x = x.reshape(x.shape[0], -1)
        for i in range(self.depth):
            x = nn.relu(nn.Dense(self.width, name=f"fc{i + 1}")(x))
        logits = nn.Dense(self.num_classes, name="fc")(x)
        return (logits, x) if features else logits
