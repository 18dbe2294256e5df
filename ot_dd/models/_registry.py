"""Names to modules."""

import dataclasses
from types import MappingProxyType
from typing import Any

import flax.linen as nn

from ot_dd.config import nearest
from ot_dd.models.alexnet import AlexNet
from ot_dd.models.autoencoder_kl import AutoencoderKL
from ot_dd.models.autoencoder_small import SmallAutoencoder
from ot_dd.models.convnet import ConvNet
from ot_dd.models.convnext import ConvNeXt
from ot_dd.models.densenet import DenseNet
from ot_dd.models.dit import DiT
from ot_dd.models.efficientnet import EfficientNet
from ot_dd.models.mlp import MLP
from ot_dd.models.mobilenet_v2 import MobileNetV2
from ot_dd.models.resnet import ResNet
from ot_dd.models.shufflenet_v2 import ShuffleNetV2
from ot_dd.models.swin import Swin
from ot_dd.models.vit import ViT

_DIT_SIZES = {  # Table 1 of Peebles & Xie (2023).
    "s": {"dim": 384, "depth": 12, "heads": 6},
    "b": {"dim": 768, "depth": 12, "heads": 12},
    "l": {"dim": 1024, "depth": 24, "heads": 16},
    "xl": {"dim": 1152, "depth": 28, "heads": 16},
}
_BOTTLENECKS = {"blocks": (3, 4, 6, 3), "bottleneck": True}

# Module class and the fields in which a name differs from the class's defaults.
_MODELS = MappingProxyType(
    {
        "alexnet": (AlexNet, {}),
        "autoencoder_kl": (AutoencoderKL, {}),
        "autoencoder_small": (SmallAutoencoder, {}),
        "convnet": (ConvNet, {}),
        "convnet3": (ConvNet, {"depth": 3}),
        "convnet6": (ConvNet, {"depth": 6}),
        "convnext_tiny": (ConvNeXt, {}),
        "deit_tiny": (ViT, {"dim": 192, "heads": 3}),
        "densenet121": (DenseNet, {}),
        "dit": (DiT, {}),
        **{
            f"dit_{size}_{patch}": (DiT, {**fields, "patch": patch})
            for size, fields in _DIT_SIZES.items()
            for patch in (2, 4, 8)
        },
        "efficientnet_b0": (EfficientNet, {}),
        "efficientnet_lite0": (EfficientNet, {"lite": True}),
        "efficientnet_lite1": (EfficientNet, {"lite": True, "depth_mult": 1.1}),
        "efficientnet_lite2": (
            EfficientNet,
            {"lite": True, "width_mult": 1.1, "depth_mult": 1.2},
        ),
        "mlp": (MLP, {}),
        "mobilenet_v2": (MobileNetV2, {}),
        "resnet10": (ResNet, {"blocks": (1, 1, 1, 1)}),
        "resnet18": (ResNet, {"blocks": (2, 2, 2, 2)}),
        "resnet50": (ResNet, _BOTTLENECKS),
        "resnet101": (ResNet, {**_BOTTLENECKS, "blocks": (3, 4, 23, 3)}),
        "resnet_ap10": (
            ResNet,
            {"blocks": (1, 1, 1, 1), "pool": True, "norm": "instance"},
        ),
        "shufflenet_v2_x0_5": (ShuffleNetV2, {"channels": (24, 48, 96, 192, 1024)}),
        "shufflenet_v2_x1_0": (ShuffleNetV2, {}),
        "swin_t": (Swin, {}),
        "vit": (ViT, {}),
        "vit_b_16": (ViT, {}),
        "wide_resnet50_2": (ResNet, {**_BOTTLENECKS, "inner_width": 2}),
    }
)


_KINDS = {
    AutoencoderKL: "autoencoder",
    SmallAutoencoder: "autoencoder",
    DiT: "denoiser",
}


def names(kind: str = "") -> tuple[str, ...]:
    """Returns the registered names, sorted.

    Args:
      kind: "classifier", "autoencoder" or "denoiser"; default all.
    """
    return tuple(
        name
        for name, (module_class, _) in sorted(_MODELS.items())
        if kind in ("", _KINDS.get(module_class, "classifier"))
    )


def create(name: str, *, num_classes: int | None = None, **options: Any) -> nn.Module:
    """Makes a model by name.

    Args:
      name: one of `names()`.
      num_classes: number of classes; the autoencoders have none and ignore it.
      **options: attributes of the module class (see its docstring). Lists become
        tuples, since configs read from JSON have lists.

    Returns:
      An unbound linen module.

    Raises:
      ValueError: if the name or an option is unknown, or `num_classes` is missing.
    """
    if name not in _MODELS:
        raise ValueError(
            f"unknown model {name!r}{nearest(name, names())}; known: {', '.join(names())}"
        )
    module_class, preset = _MODELS[name]
    fields = {f.name for f in dataclasses.fields(module_class)} - {"parent", "name"}
    for option in options:
        if option not in fields - {"num_classes"}:
            known = sorted(fields - {"num_classes"})
            raise ValueError(
                f"unknown option {option!r} of model {name!r}{nearest(option, known)}; "
                f"known: {', '.join(known)}"
            )
    if "num_classes" in fields:
        if num_classes is None or num_classes < 1:
            raise ValueError(f"model {name!r}: num_classes={num_classes}, expected > 0")
        options["num_classes"] = num_classes
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    return module_class(**{**preset, **options})
