"""Linen networks by name: students and teachers, a diffusion transformer, a VAE.

`create("resnet18", num_classes=10)` returns a module; `names()` lists them. A
classifier maps images `[b, h, w, c]` in [-1, 1] to logits `[b, classes]`:
`module.apply(variables, x, train=False)`, or with `features=True` to `(logits, features
[b, d])`, the input of the last linear layer. Batch-norm networks keep a `batch_stats`
collection.
"""

from ot_dd.models._registry import create, names

__all__ = ["create", "names"]
