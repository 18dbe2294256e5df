"""A small convolutional autoencoder with a Gaussian latent (Rombach et al., 2022)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ot_dd.models import layers
from ot_dd.models.autoencoder_kl import ResBlock


class _Encoder(nn.Module):
    channels: tuple[int, ...]
    out_channels: int
    blocks: int
    patch: int
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = layers.space_to_depth(x, self.patch)
        x = layers.Conv(self.channels[0], name="conv_in")(x)
        for level, c in enumerate(self.channels):
            if level > 0:
                # Pad below and to the right only, as Stable Diffusion's encoder does.
                pad = ((0, 1), (0, 1))
                x = layers.Conv(c, strides=2, padding=pad, name=f"down{level}")(x)
            for i in range(self.blocks):
                x = ResBlock(c, self.groups, name=f"block{level}_{i}")(x)
        x = layers.GroupNorm(self.groups, 1e-6, name="norm_out")(x)
        return layers.Conv(self.out_channels, name="conv_out")(nn.silu(x))


class _Decoder(nn.Module):
    channels: tuple[int, ...]
    out_channels: int
    blocks: int
    patch: int
    groups: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        x = layers.Conv(self.channels[-1], name="conv_in")(z)
        for level, c in reversed(list(enumerate(self.channels))):
            if level < len(self.channels) - 1:
                x = x.repeat(2, 1).repeat(2, 2)
                x = layers.Conv(c, name=f"up{level}")(x)
            for i in range(self.blocks):
                x = ResBlock(c, self.groups, name=f"block{level}_{i}")(x)
        x = layers.GroupNorm(self.groups, 1e-6, name="norm_out")(x)
        x = layers.Conv(self.patch**2 * self.out_channels, name="conv_out")(nn.silu(x))
        return layers.depth_to_space(x, self.patch)


class SmallAutoencoder(nn.Module):
    """Images `[b, h, w, c]` to Gaussian latents `[b, h / f, w / f, latent]` and back.

    The factor `f` is `patch * 2^(len(channels) - 1)`. Without attention and with the
    change of channels inside the resampling convolutions, it is cheaper than Stable
    Diffusion's autoencoder and takes none of its weights.

    Attributes:
      image_channels: channels `c` of the images.
      channels: channels per resolution, finest first.
      latent_channels: channels of the latent.
      blocks: residual blocks per resolution.
      patch: factor of the space-to-depth that stands before the first convolution.
      groups: groups of the group norms; must divide every entry of `channels`.
    """

    image_channels: int = 3
    channels: tuple[int, ...] = (32, 64)
    latent_channels: int = 4
    blocks: int = 1
    patch: int = 1
    groups: int = 8

    def setup(self):
        """Makes `encoder` and `decoder`, so that each can be applied alone."""
        sizes = (self.blocks, self.patch, self.groups)
        self.encoder = _Encoder(self.channels, 2 * self.latent_channels, *sizes)
        self.decoder = _Decoder(self.channels, self.image_channels, *sizes)

    @property
    def factor(self) -> int:
        """Ratio of the sides of the image and of the latent."""
        return self.patch * 2 ** (len(self.channels) - 1)

    def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encodes.

        Args:
          x: images `[b, h, w, c]` in [-1, 1].

        Returns:
          Mean and log-variance (clipped to [-30, 20]) `[b, h / f, w / f, latent]`.

        Raises:
          ValueError: if `f` does not divide the image, or `c` is not `image_channels`.
        """
        layers.check_autoencoder_input(self, x)
        mean, log_variance = jnp.split(self.encoder(x), 2, -1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def decode(self, z: jax.Array) -> jax.Array:
        """Decodes latents `[b, h / f, w / f, latent]` to about [-1, 1], unclipped."""
        return self.decoder(z)

    def __call__(self, x: jax.Array):
        """Returns the reconstruction of the mean, the mean and the log-variance."""
        mean, log_variance = self.encode(x)
        return self.decode(mean), mean, log_variance
