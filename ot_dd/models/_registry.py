"""Names to modules."""

import dataclasses
import difflib
from collections.abc import Iterable
from types import MappingProxyType

import flax.linen as nn

from ot_dd.models.alexnet import AlexNet
from ot_dd.models.autoencoder_kl import AutoencoderKL
from ot_dd.models.convnet import ConvNet
from ot_dd.models.dit import DiT
from ot_dd.models.mlp import MLP
from ot_dd.models.mobilenet_v2 import MobileNetV2
from ot_dd.models.resnet import ResNet
from ot_dd.models.vit import ViT

# Module class and the fields in which a name differs from the class's defaults.
_MODELS = MappingProxyType(
    {
        "alexnet": (AlexNet, {}),
        "autoencoder_kl": (AutoencoderKL, {}),
        "convnet": (ConvNet, {}),
        "convnet3": (ConvNet, {"depth": 3}),
        "convnet6": (ConvNet, {"depth": 6}),
        "dit": (DiT, {}),
        "mlp": (MLP, {}),
        "mobilenet_v2": (MobileNetV2, {}),
        "resnet10": (ResNet, {"blocks": (1, 1, 1, 1)}),
        "resnet18": (ResNet, {"blocks": (2, 2, 2, 2)}),
        "resnet50": (ResNet, {"blocks": (3, 4, 6, 3), "bottleneck": True}),
        "resnet_ap10": (
            ResNet,
            {"blocks": (1, 1, 1, 1), "pool": True, "norm": "instance"},
        ),
        "vit": (ViT, {}),
        "wide_resnet50_2": (
            ResNet,
            {"blocks": (3, 4, 6, 3), "bottleneck": True, "inner_width": 2},
        ),
    }
)


def names() -> tuple[str, ...]:
    """Returns the registered names, sorted."""
    return tuple(sorted(_MODELS))


def create(name: str, *, num_classes: int | None = None, **options) -> nn.Module:
    """Makes a model by name.

    Args:
      name: one of `names()`.
      num_classes: number of classes; `autoencoder_kl` alone has none and ignores it.
      **options: attributes of the module class (see its docstring). Lists become
        tuples, since configs read from JSON have lists.

    Returns:
      An unbound linen module.

    Raises:
      ValueError: if the name or an option is unknown, or `num_classes` is missing.
    """
    if name not in _MODELS:
        raise ValueError(f"unknown model {name!r}{_nearest(name, names())}")
    module_class, preset = _MODELS[name]
    fields = {f.name for f in dataclasses.fields(module_class)} - {"parent", "name"}
    for option in options:
        if option not in fields - {"num_classes"}:
            hint = _nearest(option, sorted(fields - {"num_classes"}))
            raise ValueError(f"unknown option {option!r} of model {name!r}{hint}")
    if "num_classes" in fields:
        if num_classes is None or num_classes < 1:
            raise ValueError(f"model {name!r}: num_classes={num_classes}, expected > 0")
        options["num_classes"] = num_classes
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    return module_class(**{**preset, **options})


def _nearest(word: str, choices: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, choices, 1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"{hint} Known: {', '.join(choices)}."
