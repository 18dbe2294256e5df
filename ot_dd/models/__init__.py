"""Linen networks by name: students and teachers, diffusion transformers, autoencoders.

`create("resnet18", num_classes=10)` returns a module; `names()` lists them. A
classifier maps images `[b, h, w, c]` in [-1, 1] to logits `[b, classes]`:
`module.apply(variables, x, train=False)`, or with `features=True` to `(logits, features
[b, d])`, the input of the last linear layer. Batch-norm networks keep a `batch_stats`
collection. `load(directory)` returns a network whose weights `python -m ot_dd.convert`
made of a public checkpoint.
"""

from ot_dd.models._preprocess import Preprocess
from ot_dd.models._registry import create, names
from ot_dd.models._stored import Loaded, load, module_of, save, shapes
from ot_dd.models.autoencoder_kl import AutoencoderKL
from ot_dd.models.dit import DiT

__all__ = [
    "AutoencoderKL",
    "DiT",
    "Loaded",
    "Preprocess",
    "create",
    "load",
    "module_of",
    "names",
    "save",
    "shapes",
]
