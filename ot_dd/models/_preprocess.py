"""What a network's published weights expect of images."""

from typing import NamedTuple

import jax
import numpy as np
from PIL import Image


class Preprocess(NamedTuple):
    """Resize, centre crop and normalisation; call it on uint8 images.

    Attributes:
      resize: pixels of the shorter side, or None to keep the size.
      crop: side of the central square, or None to keep everything.
      interpolation: "bilinear" or "bicubic", both with antialiasing, by Pillow.
      mean: per-channel mean of images in [0, 1].
      std: per-channel standard deviation.
    """

    resize: int | None
    crop: int | None
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images) -> np.ndarray:
        """Returns float32 `[b, crop, crop, 3]`, normalised.

        Args:
          images: uint8 `[b, h, w, 3]`, or a sequence of `[h, w, 3]` of several sizes.

        Raises:
          ValueError: for images that are not uint8 with three channels, or smaller
            than the crop.
        """
        cropped = []
        for image in images:
            image = np.asarray(image)
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
                raise ValueError(
                    f"images must be uint8 [h, w, 3], found {image.dtype} "
                    f"{list(image.shape)}"
                )
            cropped.append(self._crop(self._resize(image)))
        scaled = np.stack(cropped).astype(np.float32) / 255.0
        return (scaled - np.float32(self.mean)) / np.float32(self.std)

    def normalise(self, images: jax.Array) -> jax.Array:
        """Maps images in [-1, 1] to this normalisation; differentiable."""
        mean, std = np.float32(self.mean), np.float32(self.std)
        return (images * 0.5 + 0.5 - mean) / std

    def _resize(self, image):
        if self.resize is None:
            return image
        h, w = image.shape[:2]
        short = min(h, w)
        # The longer side is rounded down, as torchvision's is.
        size = tuple(self.resize * side // short for side in (w, h))
        method = Image.Resampling[self.interpolation.upper()]
        return np.asarray(Image.fromarray(image).resize(size, method))

    def _crop(self, image):
        if self.crop is None:
            return image
        if min(image.shape[:2]) < self.crop:
            raise ValueError(
                f"images of {image.shape[0]}x{image.shape[1]} pixels are smaller than the "
                f"crop of {self.crop}, and are not resized"
            )
        top, left = (round((side - self.crop) / 2) for side in image.shape[:2])
        return image[top : top + self.crop, left : left + self.crop]
