"""What `prepare` makes: trained networks as pytrees that carry their own functions.

Variables are leaves and modules are static, so an artifact is passed to a jitted
function as an argument: its weights never become constants of the program.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ot_dd.data import Dataset
from ot_dd.diffusion import (
    Prediction,
    Process,
    classifier_free_guidance,
    predict,
)
from ot_dd.models import Preprocess


def apply_in(dtype: str, module: nn.Module, params, x: jax.Array, *inputs) -> jax.Array:
    """Applies a network that computes in `dtype` to float32 `x`, with float32 params."""
    params, x = jax.tree.map(lambda v: v.astype(dtype), (params, x))
    return module.apply({"params": params}, x, *inputs).astype(jnp.float32)


@flax.struct.dataclass
class Autoencoder:
    """Images `[b, h, w, c]` in `[-1, 1]` to standardised latents and back.

    Attributes:
      variables: the module's variables; empty for pixel space.
      mean: per-channel mean of the raw latents `[k]`.
      std: per-channel standard deviation `[k]`.
      module: an autoencoder, or None: latents are pixels.
      image_shape: `(h, w, c)`.
      padding: rows and columns added at each end to reach a size the module divides.
    """

    variables: Any
    mean: jax.Array
    std: jax.Array
    module: nn.Module | None = flax.struct.field(pytree_node=False)
    image_shape: tuple[int, ...] = flax.struct.field(pytree_node=False)
    padding: int = flax.struct.field(pytree_node=False)

    def pad(self, images: jax.Array) -> jax.Array:
        """Pads with black so that the sides divide the module's factor."""
        p = self.padding
        widths = ((0, 0), (p, p), (p, p), (0, 0))
        return jnp.pad(images, widths, constant_values=-1.0) if p else images

    def moments(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the raw latents' mean and log variance."""
        return self.module.apply(self.variables, self.pad(images), method="encode")

    def encode(self, images: jax.Array) -> jax.Array:
        """Returns standardised latents `[b, ...]` (the posterior's mean)."""
        raw = images if self.module is None else self.moments(images)[0]
        return (raw - self.mean) / self.std

    def decode(self, latents: jax.Array) -> jax.Array:
        """Returns images `[b, h, w, c]`; not clipped, so that gradients flow."""
        raw = latents * self.std + self.mean
        return raw if self.module is None else self.decode_raw(raw)

    def decode_raw(self, raw: jax.Array) -> jax.Array:
        """Decodes latents in the module's own units, and crops the padding."""
        images = self.module.apply(self.variables, raw, method="decode")
        h, w, _ = self.image_shape
        p = self.padding
        return images[:, p : p + h, p : p + w]


@flax.struct.dataclass
class Denoiser:
    """A class-conditional diffusion network with classifier-free guidance.

    Attributes:
      params: the (averaged) parameters.
      module: maps `(z [b, ...], timestep [b], class [b])` to its output.
      parametrization: see `diffusion.predict`.
      num_classes: number of classes; this number is the null class.
      scale: classifier-free guidance; 1 switches it off.
      cfg_channels: guide only the first of these channels (DiT's quirk); 0 is all.
      dtype: what the network computes in; parameters and latents stay float32.
      class_ids: the network's own number of each class and, last, of the null class;
        empty where they are the same.
    """

    params: Any
    module: nn.Module = flax.struct.field(pytree_node=False)
    parametrization: str = flax.struct.field(pytree_node=False)
    num_classes: int = flax.struct.field(pytree_node=False)
    scale: float = flax.struct.field(pytree_node=False)
    cfg_channels: int = flax.struct.field(pytree_node=False)
    dtype: str = flax.struct.field(pytree_node=False, default="float32")
    class_ids: tuple[int, ...] = flax.struct.field(pytree_node=False, default=())

    def __call__(self, process: Process, z, i, classes) -> Prediction:
        """Predicts from noisy latents `[b, ...]` at step index `i` (scalar)."""
        time = jnp.broadcast_to(process.timestep[i], z.shape[:1])

        def apply(z, time, classes):
            if self.class_ids:
                classes = jnp.asarray(self.class_ids)[classes]
            return apply_in(self.dtype, self.module, self.params, z, time, classes)

        if self.scale == 1.0:
            output = apply(z, time, classes)
        else:
            null = jnp.full_like(classes, self.num_classes)
            double = (jnp.concatenate(pair) for pair in ((z, z), (time, time)))
            both = apply(*double, jnp.concatenate((classes, null)))
            output = classifier_free_guidance(
                *jnp.split(both, 2), self.scale, channels=self.cfg_channels or None
            )
        return predict(process, i, z, output, parametrization=self.parametrization)


@flax.struct.dataclass
class Classifier:
    """A trained classifier.

    Attributes:
      variables: parameters and, with batch norm, statistics.
      module: the network.
      name: its registered name.
      preprocess: the normalisation that its weights expect, or None for [-1, 1].
    """

    variables: Any
    module: nn.Module = flax.struct.field(pytree_node=False)
    name: str = flax.struct.field(pytree_node=False)
    preprocess: Preprocess | None = flax.struct.field(pytree_node=False, default=None)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits `[b, classes]` of images in `[-1, 1]`."""
        return self.logits_and_features(images)[0]

    def logits_and_features(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns logits `[b, classes]` and the features before the last layer."""
        if self.preprocess is not None:
            images = self.preprocess.normalise(images)
        return self.module.apply(self.variables, images, train=False, features=True)

    def features(self, images: jax.Array) -> jax.Array:
        """Returns the features before the last layer `[b, d]`."""
        return self.logits_and_features(images)[1]


@flax.struct.dataclass
class Surrogate:
    """Checkpoints of the surrogate along its training trajectory.

    Attributes:
      params: every leaf `[e, ...]`; the first is the random initialisation.
      module: the network.
    """

    params: Any
    module: nn.Module = flax.struct.field(pytree_node=False)


class Prepared(NamedTuple):
    """The result of `prepare`.

    Attributes:
      dataset: the images.
      autoencoder: images to latents and back.
      latents: standardised latents of the training images `[n, ...]`.
      denoiser: the diffusion network.
      teachers: classifiers in the config's order.
      surrogate: selected checkpoints, for influence guidance and features.
      trajectory: the surrogate at the start and after every epoch, on the host.
      data_key: fingerprint of the data.
      autoencoder_key: of the autoencoder, and so of the latents; the data's is in it.
      denoiser_key: of the denoiser; that of the latents is in it.
      surrogate_key: of the surrogate; the data's is in it.
      teacher_keys: of each teacher.
      facts: accuracies, reconstruction errors and curves, for the report.
    """

    dataset: Dataset
    autoencoder: Autoencoder
    latents: jax.Array
    denoiser: Denoiser
    teachers: tuple[Classifier, ...]
    surrogate: Surrogate
    trajectory: Surrogate
    data_key: str
    autoencoder_key: str
    denoiser_key: str
    surrogate_key: str
    teacher_keys: tuple[str, ...]
    facts: dict


class ImageSet(NamedTuple):
    """A small data set: distilled, or a baseline.

    Attributes:
      name: what it is called in records.
      seed: the set's seed.
      images: uint8 `[classes, ipc, h, w, c]`.
      latents: float `[classes, ipc, ...]`, or None for pixels without latents.
      key: fingerprint of its recipe.
      distances: mean transport distance along sampling `[groups, steps]`, or None.
      weights: what each image counts in a student's loss `[classes, ipc]`, 1 on average;
        None where all count alike.
      left_out: gradients of guidance that were not finite and so left out.
    """

    name: str
    seed: int
    images: Any
    latents: Any
    key: str
    distances: Any = None
    weights: Any = None
    left_out: int = 0

    def flat(self) -> tuple[Any, Any]:
        """Returns images `[n, h, w, c]` and labels `[n]`, class by class."""
        classes, ipc = self.images.shape[:2]
        labels = np.repeat(np.arange(classes, dtype=np.int32), ipc)
        return self.images.reshape(classes * ipc, *self.images.shape[2:]), labels
