"""Data: labelled images in memory or on disk, and augmentations that replay from a key.

`sources` reads a data set into uint8 NumPy arrays with fixed splits and never imports
TensorFlow. `augment` draws random crops, flips, colour jitter and CutMix as a small
tuple of parameters, and applies it on the device; `dsa` is what DSA's students see.
"""

from ot_dd.data.augment import (
    AugmentConfig,
    AugmentParams,
    apply,
    augment,
    sample_params,
)
from ot_dd.data.dsa import DSA, dsa
from ot_dd.data.pixels import to_float, to_uint8
from ot_dd.data.sources import Dataset, Images, load
from ot_dd.data.stored import Batch, Stored, Stream

__all__ = [
    "DSA",
    "AugmentConfig",
    "AugmentParams",
    "Batch",
    "Dataset",
    "Images",
    "Stored",
    "Stream",
    "apply",
    "augment",
    "dsa",
    "load",
    "sample_params",
    "to_float",
    "to_uint8",
]
