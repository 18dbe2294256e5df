"""Stable Diffusion's KL autoencoder (Rombach et al., 2022), encoder and decoder."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ot_dd.models import layers


class ResBlock(nn.Module):
    """Two rounds of GroupNorm, SiLU and 3x3 convolution around a shortcut.

    Attributes:
      features: output channels; where they change, the shortcut is a 1x1 convolution.
      groups: groups of the norms.
    """

    features: int
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[b, h, w, c]` to `[b, h, w, features]`."""
        y = layers.GroupNorm(self.groups, 1e-6, name="norm1")(x)
        y = layers.Conv(self.features, name="conv1")(nn.silu(y))
        y = layers.GroupNorm(self.groups, 1e-6, name="norm2")(y)
        y = layers.Conv(self.features, name="conv2")(nn.silu(y))
        if x.shape[-1] != self.features:
            x = layers.Conv(self.features, (1, 1), name="conv_shortcut")(x)
        return x + y


class _Attention(nn.Module):
    """Single-head attention over all positions, around a shortcut."""

    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        y = layers.GroupNorm(self.groups, 1e-6, name="norm")(x)
        return x + layers.SelfAttention(1, name="attn")(y.reshape(b, h * w, c)).reshape(
            x.shape
        )


class _Middle(nn.Module):
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = x.shape[-1]
        x = ResBlock(c, self.groups, name="block0")(x)
        x = _Attention(self.groups, name="attention")(x)
        return ResBlock(c, self.groups, name="block1")(x)


class _Encoder(nn.Module):
    channels: tuple[int, ...]
    out_channels: int
    blocks: int
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = layers.Conv(self.channels[0], name="conv_in")(x)
        for level, c in enumerate(self.channels):
            for i in range(self.blocks):
                x = ResBlock(c, self.groups, name=f"block{level}_{i}")(x)
            if level < len(self.channels) - 1:
                # Padded below and to the right only.
                pad = ((0, 1), (0, 1))
                x = layers.Conv(c, strides=2, padding=pad, name=f"down{level}")(x)
        x = _Middle(self.groups, name="middle")(x)
        x = layers.GroupNorm(self.groups, 1e-6, name="norm_out")(x)
        return layers.Conv(self.out_channels, name="conv_out")(nn.silu(x))


class _Decoder(nn.Module):
    channels: tuple[int, ...]
    out_channels: int
    blocks: int
    groups: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        x = layers.Conv(self.channels[-1], name="conv_in")(z)
        x = _Middle(self.groups, name="middle")(x)
        for level, c in reversed(list(enumerate(self.channels))):
            for i in range(self.blocks + 1):
                x = ResBlock(c, self.groups, name=f"block{level}_{i}")(x)
            if level > 0:
                x = x.repeat(2, 1).repeat(2, 2)
                x = layers.Conv(c, name=f"up{level}")(x)
        x = layers.GroupNorm(self.groups, 1e-6, name="norm_out")(x)
        return layers.Conv(self.out_channels, name="conv_out")(nn.silu(x))


class AutoencoderKL(nn.Module):
    """Images `[b, h, w, c]` to Gaussian latents `[b, h / f, w / f, latent]` and back.

    The factor `f` is `2^(len(channels) - 1)`; the defaults are Stable Diffusion 1's.
    Latents are in the network's own units: Stable Diffusion multiplies them by 0.18215
    before diffusion.

    Attributes:
      image_channels: channels `c` of the images.
      channels: channels per resolution, finest first.
      latent_channels: channels of the latent.
      blocks: residual blocks per resolution of the encoder; the decoder has one more.
      groups: groups of the group norms; must divide every entry of `channels`.
      slices: decode and encode so many images at a time, 0 for all: activations at full
        resolution take some 0.5 GiB an image of 256 x 256.
    """

    image_channels: int = 3
    channels: tuple[int, ...] = (128, 256, 512, 512)
    latent_channels: int = 4
    blocks: int = 2
    groups: int = 32
    slices: int = 0

    def setup(self):
        """Makes encoder and decoder, so that each can be applied alone."""
        sizes = (self.blocks, self.groups)
        moments = 2 * self.latent_channels
        self.encoder = _Encoder(self.channels, moments, *sizes)
        self.decoder = _Decoder(self.channels, self.image_channels, *sizes)
        self.quant_conv = layers.Conv(moments, (1, 1))
        self.post_quant_conv = layers.Conv(self.latent_channels, (1, 1))

    @property
    def factor(self) -> int:
        """Ratio of the sides of the image and of the latent."""
        return 2 ** (len(self.channels) - 1)

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
        moments = self._sliced(lambda part: self.quant_conv(self.encoder(part)), x)
        mean, log_variance = jnp.split(moments, 2, -1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def decode(self, z: jax.Array) -> jax.Array:
        """Decodes latents `[b, h / f, w / f, latent]` to about [-1, 1], unclipped."""
        return self._sliced(lambda part: self.decoder(self.post_quant_conv(part)), z)

    def _sliced(self, fn, x):
        if not self.slices or x.shape[0] <= self.slices or self.is_initializing():
            return fn(x)
        return jax.lax.map(lambda one: fn(one[None])[0], x, batch_size=self.slices)

    def __call__(self, x: jax.Array):
        """Returns the reconstruction of the mean, the mean and the log-variance."""
        mean, log_variance = self.encode(x)
        return self.decode(mean), mean, log_variance
