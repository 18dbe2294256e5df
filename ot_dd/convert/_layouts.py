"""How public checkpoints name their tensors: one table of rules for each layout."""

import math
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ot_dd.convert._engine import Rule
from ot_dd.models import Preprocess


class Layout(NamedTuple):
    """One way to name a model's tensors.

    Attributes:
      name: whose names they are.
      rules: the table.
      preprocess: what the published weights expect of images, or None.
      licence: a note on the published weights.
    """

    name: str
    rules: tuple[Rule, ...]
    preprocess: Preprocess | None
    licence: str


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
TORCHVISION = "torchvision's weights: BSD-3-Clause; trained on ImageNet-1K (its terms)"
TIMM = "timm's weights: mostly Apache-2.0, see the model card; ImageNet's terms"


def _torchvision(rules, resize=256, interpolation="bilinear"):
    preprocess = Preprocess(resize, 224, interpolation, **IMAGENET)
    return Layout("torchvision", tuple(rules), preprocess, TORCHVISION)


def _timm(rules, resize, mean_std=IMAGENET, name="timm"):
    preprocess = Preprocess(resize, 224, "bicubic", **mean_std)
    return Layout(name, tuple(rules), preprocess, TIMM)


def _pair(source: str, target: str) -> list[Rule]:
    """Rules of torchvision's Conv2dNormActivation: `.0` and `.1` of a sequence."""
    return [
        Rule(rf"{source}\.0", "conv", target),
        Rule(rf"{source}\.1", "batch_norm", _suffixed(target)),
    ]


def _suffixed(target):
    """Returns the name of the norm that follows a convolution."""
    if target.startswith("conv_"):
        return target.replace("conv_", "norm_", 1)
    return f"{target}_norm"


_RESNET = (
    Rule("conv1", "conv", "conv1"),
    Rule("bn1", "batch_norm", "norm1"),
    Rule(r"layer(\d)\.(\d+)\.conv(\d)", "conv", r"layer\1_\2/conv\3"),
    Rule(r"layer(\d)\.(\d+)\.bn(\d)", "batch_norm", r"layer\1_\2/norm\3"),
    Rule(r"layer(\d)\.(\d+)\.downsample\.0", "conv", r"layer\1_\2/conv_shortcut"),
    Rule(r"layer(\d)\.(\d+)\.downsample\.1", "batch_norm", r"layer\1_\2/norm_shortcut"),
    Rule("fc", "dense", "fc"),
)

_ALEXNET = (
    *(Rule(rf"features\.{k}", "conv", f"conv{i}")
      for i, k in enumerate((0, 3, 6, 8, 10), 1)),
    # Its input is 6 x 6 x c here, c x 6 x 6 there.
    Rule(r"classifier\.1", "dense_6x6", "fc1"),
    Rule(r"classifier\.4", "dense", "fc2"),
    Rule(r"classifier\.6", "dense", "fc3"),
)  # fmt: skip


def _at(counts: Iterable[int], offset: int = 0):
    """Returns `number -> "stage_index"` of blocks that are numbered through."""
    names = [f"{s}_{i}" for s, count in enumerate(counts) for i in range(count)]

    def name(number: str) -> str:
        k = int(number) - offset
        return names[k] if 0 <= k < len(names) else "none"

    return name


def _block(path: str, at: Callable[[str], str]):
    return lambda match: f"block{at(match[1])}/{path}"


def _mobilenet_torchvision(counts):
    at = _at(counts, 1)
    first, other = r"features\.(1)\.conv", r"features\.(\d+)\.conv"
    rows = [
        (first, "0.0", "conv", "depthwise"),
        (first, "0.1", "batch_norm", "depthwise_norm"),
        (first, "1", "conv", "project"),
        (first, "2", "batch_norm", "project_norm"),
        (other, "0.0", "conv", "expand"),
        (other, "0.1", "batch_norm", "expand_norm"),
        (other, "1.0", "conv", "depthwise"),
        (other, "1.1", "batch_norm", "depthwise_norm"),
        (other, "2", "conv", "project"),
        (other, "3", "batch_norm", "project_norm"),
    ]
    return [
        *_pair(r"features\.0", "conv_stem"),
        *_pair(r"features\.18", "conv_head"),
        *(
            Rule(rf"{module}\.{re.escape(part)}", kind, _block(path, at))
            for module, part, kind, path in rows
        ),
        Rule(r"classifier\.1", "dense", "fc"),
    ]


# timm's names of inverted residual blocks; the first stage has no expansion.
_INVERTED_TIMM = (
    Rule("conv_stem", "conv", "conv_stem"),
    Rule("bn1", "batch_norm", "norm_stem"),
    Rule(r"blocks\.0\.(\d+)\.conv_dw", "conv", r"block0_\1/depthwise"),
    Rule(r"blocks\.0\.(\d+)\.bn1", "batch_norm", r"block0_\1/depthwise_norm"),
    Rule(r"blocks\.0\.(\d+)\.conv_pw", "conv", r"block0_\1/project"),
    Rule(r"blocks\.0\.(\d+)\.bn2", "batch_norm", r"block0_\1/project_norm"),
    Rule(r"blocks\.(\d)\.(\d+)\.conv_pw", "conv", r"block\1_\2/expand"),
    Rule(r"blocks\.(\d)\.(\d+)\.bn1", "batch_norm", r"block\1_\2/expand_norm"),
    Rule(r"blocks\.(\d)\.(\d+)\.conv_dw", "conv", r"block\1_\2/depthwise"),
    Rule(r"blocks\.(\d)\.(\d+)\.bn2", "batch_norm", r"block\1_\2/depthwise_norm"),
    Rule(r"blocks\.(\d)\.(\d+)\.conv_pwl", "conv", r"block\1_\2/project"),
    Rule(r"blocks\.(\d)\.(\d+)\.bn3", "batch_norm", r"block\1_\2/project_norm"),
    Rule(r"blocks\.(\d)\.(\d+)\.se\.conv_reduce", "dense", r"block\1_\2/se/fc1"),
    Rule(r"blocks\.(\d)\.(\d+)\.se\.conv_expand", "dense", r"block\1_\2/se/fc2"),
    Rule("conv_head", "conv", "conv_head"),
    Rule("bn2", "batch_norm", "norm_head"),
    Rule("classifier", "dense", "fc"),
)


def _stage(path: str, offset: int = 1, halve: bool = False):
    """Returns a target `block<stage>_<index>/<path>` of groups that count from offset.

    With `halve`, blocks have the odd places of a sequence and what is between the even.
    """

    def target(match):
        stage = (int(match[1]) - offset) // (2 if halve else 1)
        return f"block{stage}_{match[2]}/{path}"

    return target


def _efficientnet_torchvision():
    parts = [("depthwise", 0), ("se", 1), ("project", 2)]
    rules = _pair(r"features\.0", "conv_stem") + _pair(r"features\.8", "conv_head")
    for stage, shift in ((r"(1)", 0), (r"([2-7])", 1)):
        block = rf"features\.{stage}\.(\d+)\.block"
        numbered = [("expand", 0)] * shift + [(n, k + shift) for n, k in parts]
        for name, k in numbered:
            if name == "se":
                rules += [
                    Rule(rf"{block}\.{k}\.(fc[12])", "dense",
                         lambda m: f"block{int(m[1]) - 1}_{m[2]}/se/{m[3]}")
                ]  # fmt: skip
            else:
                rules += [
                    Rule(rf"{block}\.{k}\.0", "conv", _stage(name)),
                    Rule(rf"{block}\.{k}\.1", "batch_norm", _stage(f"{name}_norm")),
                ]
    return [*rules, Rule(r"classifier\.1", "dense", "fc")]


def _efficientnet_lite(depth_mult):
    middle = [math.ceil(n * depth_mult) for n in (2, 2, 3, 3, 4)]
    at = _at([1, *middle, 1])
    block = r"_blocks\.(\d+)\._"
    rows = [
        ("expand_conv", "conv", "expand"),
        ("bn0", "batch_norm", "expand_norm"),
        ("depthwise_conv", "conv", "depthwise"),
        ("bn1", "batch_norm", "depthwise_norm"),
        ("project_conv", "conv", "project"),
        ("bn2", "batch_norm", "project_norm"),
    ]
    return [
        Rule("_conv_stem", "conv", "conv_stem"),
        Rule("_bn0", "batch_norm", "norm_stem"),
        *(Rule(block + part, kind, _block(path, at)) for part, kind, path in rows),
        Rule("_conv_head", "conv", "conv_head"),
        Rule("_bn1", "batch_norm", "norm_head"),
        Rule("_fc", "dense", "fc"),
    ]


def _shufflenet():
    left, right = r"stage(\d)\.(\d+)\.branch1", r"stage(\d)\.(\d+)\.branch2"
    rows = [
        (left, 0, "left_depthwise"),
        (left, 2, "left_project"),
        (right, 0, "expand"),
        (right, 3, "depthwise"),
        (right, 5, "project"),
    ]
    rules = _pair("conv1", "conv_stem") + _pair("conv5", "conv_head")
    for branch, k, name in rows:
        target = rf"stage\1_\2/{name}"
        rules += [
            Rule(rf"{branch}\.{k}", "conv", target),
            Rule(rf"{branch}\.{k + 1}", "batch_norm", f"{target}_norm"),
        ]
    return [*rules, Rule("fc", "dense", "fc")]


# The published files have the older names with one more dot: `norm.1`, `conv.2`.
_DENSENET = (
    Rule(r"features\.conv0", "conv", "conv0"),
    Rule(r"features\.norm([05])", "batch_norm", r"norm\1"),
    Rule(
        r"features\.denseblock(\d)\.denselayer(\d+)\.conv\.?(\d)",
        "conv",
        r"block\1_\2_conv\3",
    ),
    Rule(
        r"features\.denseblock(\d)\.denselayer(\d+)\.norm\.?(\d)",
        "batch_norm",
        r"block\1_\2_norm\3",
    ),
    Rule(r"features\.transition(\d)\.conv", "conv", r"transition\1_conv"),
    Rule(r"features\.transition(\d)\.norm", "batch_norm", r"transition\1_norm"),
    Rule("classifier", "dense", "fc"),
)


def _swin(block, stem, norm, mlp, down, target_of, down_of, head):
    """Rules of a Swin transformer under the names of one library."""
    rows = [
        ("norm1", "norm", "norm1"),
        (r"attn\.qkv", "dense", "attn/qkv"),
        (r"attn\.proj", "dense", "attn/proj"),
        (
            r"attn\.relative_position_bias_table",
            "tensor",
            "attn/relative_position_bias",
        ),
        (r"attn\.relative_position_index", "unused", ""),
        ("attn_mask", "unused", ""),
        ("norm2", "norm", "norm2"),
        (rf"mlp\.{mlp[0]}", "dense", "mlp/fc1"),
        (rf"mlp\.{mlp[1]}", "dense", "mlp/fc2"),
    ]
    return [
        Rule(stem, "conv", "patch_embed"),
        Rule(norm, "norm", "patch_norm"),
        *(Rule(rf"{block}\.{part}", k, target_of(path)) for part, k, path in rows),
        Rule(rf"{down}\.norm", "norm", down_of("_norm")),
        Rule(rf"{down}\.reduction", "dense", down_of("")),
        Rule("norm", "norm", "norm"),
        Rule(head, "dense", "fc"),
    ]


def _between(ending: str):
    """Returns a target `down<stage>` for the even places of torchvision's sequence."""
    return lambda match: f"down{int(match[1]) // 2}{ending}"


def _swin_torchvision():
    return _swin(
        r"features\.([1357])\.(\d+)", r"features\.0\.0", r"features\.0\.2", (0, 3),
        r"features\.([246])", lambda path: _stage(path, 1, True), _between, "head",
    )  # fmt: skip


def _swin_timm(head: str, down: int):
    """Before timm 0.9 a stage's end, not its beginning, merged the patches."""
    return _swin(
        r"layers\.(\d)\.blocks\.(\d+)", r"patch_embed\.proj", r"patch_embed\.norm",
        ("fc1", "fc2"), r"layers\.(\d)\.downsample", lambda path: _stage(path, 0),
        lambda ending: lambda m: f"down{int(m[1]) + down}{ending}", head,
    )  # fmt: skip


def _convnext_torchvision():
    block = r"features\.([1357])\.(\d+)"

    def target(path):
        return _stage(path, 1, True)

    return [
        Rule(r"features\.0\.0", "conv", "stem"),
        Rule(r"features\.0\.1", "norm", "norm_stem"),
        Rule(rf"{block}\.layer_scale", "vector", target("layer_scale")),
        Rule(rf"{block}\.block\.0", "conv", target("depthwise")),
        Rule(rf"{block}\.block\.2", "norm", target("norm")),
        Rule(rf"{block}\.block\.3", "dense", target("mlp/fc1")),
        Rule(rf"{block}\.block\.5", "dense", target("mlp/fc2")),
        Rule(r"features\.([246])\.0", "norm", _between("_norm")),
        Rule(r"features\.([246])\.1", "conv", _between("")),
        Rule(r"classifier\.0", "norm", "norm"),
        Rule(r"classifier\.2", "dense", "fc"),
    ]


_CONVNEXT_TIMM = (
    Rule(r"stem\.0", "conv", "stem"),
    Rule(r"stem\.1", "norm", "norm_stem"),
    Rule(r"stages\.(\d)\.blocks\.(\d+)\.gamma", "vector", r"block\1_\2/layer_scale"),
    Rule(r"stages\.(\d)\.blocks\.(\d+)\.conv_dw", "conv", r"block\1_\2/depthwise"),
    Rule(r"stages\.(\d)\.blocks\.(\d+)\.norm", "norm", r"block\1_\2/norm"),
    Rule(r"stages\.(\d)\.blocks\.(\d+)\.mlp\.(fc\d)", "dense", r"block\1_\2/mlp/\3"),
    Rule(r"stages\.(\d)\.downsample\.0", "norm", r"down\1_norm"),
    Rule(r"stages\.(\d)\.downsample\.1", "conv", r"down\1"),
    Rule(r"head\.norm", "norm", "norm"),
    Rule(r"head\.fc", "dense", "fc"),
)

_LAYER = r"encoder\.layers\.encoder_layer_(\d+)"
_VIT_TORCHVISION = (
    Rule("class_token", "tensor", "class_token"),
    Rule(r"encoder\.pos_embedding", "tensor", "positions"),
    Rule("conv_proj", "conv", "patch_embed"),
    Rule(rf"{_LAYER}\.ln_(\d)", "norm", r"blocks[\1]/norm\2"),
    Rule(rf"{_LAYER}\.self_attention\.in_proj", "in_proj", r"blocks[\1]/attn/qkv"),
    Rule(rf"{_LAYER}\.self_attention\.out_proj", "dense", r"blocks[\1]/attn/proj"),
    Rule(rf"{_LAYER}\.mlp\.(?:0|linear_1)", "dense", r"blocks[\1]/mlp/fc1"),
    Rule(rf"{_LAYER}\.mlp\.(?:3|linear_2)", "dense", r"blocks[\1]/mlp/fc2"),
    Rule(r"encoder\.ln", "norm", "norm"),
    Rule(r"heads\.head", "dense", "fc"),
)
_VIT_TIMM = (
    Rule("cls_token", "tensor", "class_token"),
    Rule("pos_embed", "tensor", "positions"),
    Rule(r"patch_embed\.proj", "conv", "patch_embed"),
    Rule(r"blocks\.(\d+)\.norm(\d)", "norm", r"blocks[\1]/norm\2"),
    Rule(r"blocks\.(\d+)\.(attn|mlp)\.(\w+)", "dense", r"blocks[\1]/\2/\3"),
    Rule("norm", "norm", "norm"),
    Rule("head", "dense", "fc"),
)

_DIT_LICENCE = "DiT's released weights: CC-BY-NC-4.0, not for commercial use"
_DIT = (
    # Fixed, and compared with ours instead of stored: see `_check_positions`.
    Rule("pos_embed", "unused"),
    Rule(r"x_embedder\.proj", "conv", "patch_embed"),
    Rule(r"t_embedder\.mlp\.0", "dense", "t_embedder/fc1"),
    Rule(r"t_embedder\.mlp\.2", "dense", "t_embedder/fc2"),
    Rule(r"y_embedder\.embedding_table", "embedding", "y_embedder"),
    Rule(r"blocks\.(\d+)\.(attn|mlp)\.(\w+)", "dense", r"blocks[\1]/\2/\3"),
    Rule(r"blocks\.(\d+)\.adaLN_modulation\.1", "dense", r"blocks[\1]/adaln"),
    Rule(r"final_layer\.linear", "dense", "final/linear"),
    Rule(r"final_layer\.adaLN_modulation\.1", "dense", "final/adaln"),
)
_T = r"transformer_blocks\.(\d+)"
_EMBEDDER = r"norm1\.emb\.timestep_embedder\.linear_([12])"
_LABELS = r"norm1\.emb\.class_embedder\.embedding_table"
_DIT_DIFFUSERS = (
    Rule(r"pos_embed\.proj", "conv", "patch_embed"),
    # Every block has a copy of both embedders.
    Rule(rf"transformer_blocks\.0\.{_EMBEDDER}", "dense", r"t_embedder/fc\1"),
    Rule(rf"transformer_blocks\.0\.{_LABELS}", "embedding", "y_embedder"),
    Rule(rf"{_T}\.{_EMBEDDER}", "unused"),
    Rule(rf"{_T}\.{_LABELS}", "unused"),
    Rule(rf"{_T}\.norm1\.linear", "dense", r"blocks[\1]/adaln"),
    Rule(rf"{_T}\.attn1\.to_q", "dense", r"blocks[\1]/attn/qkv#0/3"),
    Rule(rf"{_T}\.attn1\.to_k", "dense", r"blocks[\1]/attn/qkv#1/3"),
    Rule(rf"{_T}\.attn1\.to_v", "dense", r"blocks[\1]/attn/qkv#2/3"),
    Rule(rf"{_T}\.attn1\.to_out\.0", "dense", r"blocks[\1]/attn/proj"),
    Rule(rf"{_T}\.ff\.net\.0\.proj", "dense", r"blocks[\1]/mlp/fc1"),
    Rule(rf"{_T}\.ff\.net\.2", "dense", r"blocks[\1]/mlp/fc2"),
    Rule("proj_out_1", "dense", "final/adaln"),
    Rule("proj_out_2", "dense", "final/linear"),
)

_KL_LICENCE = (
    "sd-vae-ft-ema and -mse: MIT; Stable Diffusion v1's: CreativeML OpenRAIL-M"
)


def _residual(source: str, target: str, shortcut: str) -> list[Rule]:
    return [
        *(Rule(rf"{source}\.norm{k}", "norm", f"{target}/norm{k}") for k in "12"),
        *(Rule(rf"{source}\.conv{k}", "conv", f"{target}/conv{k}") for k in "12"),
        Rule(rf"{source}\.{shortcut}", "conv", f"{target}/conv_shortcut"),
    ]


def _attention(source: str, target: str, names: dict[str, str]) -> list[Rule]:
    places = {"norm": "norm", "q": "attn/qkv#0/3", "k": "attn/qkv#1/3",
              "v": "attn/qkv#2/3", "out": "attn/proj"}  # fmt: skip
    return [
        Rule(
            rf"{source}\.{names[part]}",
            "norm" if part == "norm" else "dense",
            f"{target}/{place}",
        )
        for part, place in places.items()
    ]


def _kl_diffusers(levels: int):
    """Current and old Diffusers' names; its decoder counts from the coarsest level."""
    rules = [
        *_residual(r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder/block\1_\2",
                   "conv_shortcut"),
        Rule(r"encoder\.down_blocks\.(\d)\.downsamplers\.0\.conv", "conv",
             r"encoder/down\1"),
    ]  # fmt: skip
    for up in range(levels):
        level = levels - 1 - up
        block = rf"decoder\.up_blocks\.{up}"
        rules += _residual(
            rf"{block}\.resnets\.(\d)", rf"decoder/block{level}_\1", "conv_shortcut"
        )
        rules += [Rule(rf"{block}\.upsamplers\.0\.conv", "conv", f"decoder/up{level}")]
    new = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v",
           "out": r"to_out\.0"}  # fmt: skip
    old = {"norm": "group_norm", "q": "query", "k": "key", "v": "value",
           "out": "proj_attn"}  # fmt: skip
    for half in ("encoder", "decoder"):
        middle = rf"{half}\.mid_block"
        rules += _residual(
            rf"{middle}\.resnets\.([01])", rf"{half}/middle/block\1", "conv_shortcut"
        )
        for names in (new, old):
            rules += _attention(
                rf"{middle}\.attentions\.0", f"{half}/middle/attention", names
            )
        rules += _ends(half, "conv_norm_out")
    return rules


def _kl_compvis():
    """CompVis's names: the decoder counts as the encoder does, attention is 1x1."""
    before = r"(?:first_stage_model\.)?"
    rules = []
    for half, side, sample in (
        ("encoder", "down", "downsample"),
        ("decoder", "up", "upsample"),
    ):
        block = rf"{before}{half}\.{side}\.(\d)"
        rules += _residual(
            rf"{block}\.block\.(\d)", rf"{half}/block\1_\2", "nin_shortcut"
        )
        rules += [Rule(rf"{block}\.{sample}\.conv", "conv", rf"{half}/{side}\1")]
        for k in (1, 2):
            rules += _residual(
                rf"{before}{half}\.mid\.block_{k}",
                f"{half}/middle/block{k - 1}",
                "nin_shortcut",
            )
        names = {"norm": "norm", "q": "q", "k": "k", "v": "v", "out": "proj_out"}
        rules += _attention(
            rf"{before}{half}\.mid\.attn_1", f"{half}/middle/attention", names
        )
        rules += _ends(half, "norm_out", before)
    # A whole Stable Diffusion file, or the autoencoder's training state.
    other = r"(?:model|model_ema|cond_stage_model|loss|discriminator)\..*"
    schedule = r"(?:betas|alphas_cumprod.*|sqrt_.*|log_one_.*|posterior_.*|logvar)"
    return [*rules, Rule(other, "unused"), Rule(schedule, "unused")]


def _ends(half, norm, before=""):
    quant = "quant_conv" if half == "encoder" else "post_quant_conv"
    return [
        Rule(rf"{before}{half}\.conv_in", "conv", f"{half}/conv_in"),
        Rule(rf"{before}{half}\.{norm}", "norm", f"{half}/norm_out"),
        Rule(rf"{before}{half}\.conv_out", "conv", f"{half}/conv_out"),
        Rule(rf"{before}{quant}", "conv", quant),
    ]


_MOBILENET = (1, 2, 3, 4, 3, 3, 1)
_HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def _lite(depth_mult, size):
    # Its authors crop size / (size + 32) of the shorter side.
    preprocess = Preprocess(
        size + 32, size, "bicubic", (127 / 255,) * 3, (128 / 255,) * 3
    )
    licence = "EfficientNet-Lite's weights: Apache-2.0 (Google); ImageNet's terms"
    rules = tuple(_efficientnet_lite(depth_mult))
    return (
        Layout("efficientnet_lite_pytorch", rules, preprocess, licence),
        Layout("timm", _INVERTED_TIMM, preprocess._replace(**_HALF), licence),
    )


# timm's residual networks have the same names.
_resnets = (
    _torchvision(_RESNET)._replace(
        licence="BSD-3-Clause (torchvision) or Apache-2.0 (timm); ImageNet's terms"
    ),
)
_shufflenets = (_torchvision(_shufflenet()),)
_images = Preprocess(None, None, "bilinear", **_HALF)
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "alexnet": (_torchvision(_ALEXNET),),
    "autoencoder_kl": (
        Layout("diffusers", tuple(_kl_diffusers(4)), _images, _KL_LICENCE),
        Layout("compvis", tuple(_kl_compvis()), _images, _KL_LICENCE),
    ),
    "convnext_tiny": (
        _torchvision(_convnext_torchvision(), 236),
        _timm(_CONVNEXT_TIMM, 235),
    ),
    "deit_tiny": (_timm(_VIT_TIMM, 248),),
    "densenet121": (_torchvision(_DENSENET),),
    "dit": (
        Layout("dit", _DIT, None, _DIT_LICENCE),
        Layout("diffusers", _DIT_DIFFUSERS, None, _DIT_LICENCE),
    ),
    "efficientnet_b0": (
        _torchvision(_efficientnet_torchvision(), 256, "bicubic"),
        _timm(_INVERTED_TIMM, 256),
    ),
    "efficientnet_lite0": _lite(1.0, 224),
    "efficientnet_lite1": _lite(1.1, 240),
    "efficientnet_lite2": _lite(1.2, 260),
    "mobilenet_v2": (
        _torchvision(_mobilenet_torchvision(_MOBILENET)),
        _timm(_INVERTED_TIMM, 256),
    ),
    "resnet18": _resnets,
    "resnet50": _resnets,
    "resnet101": _resnets,
    "wide_resnet50_2": _resnets,
    "shufflenet_v2_x0_5": _shufflenets,
    "shufflenet_v2_x1_0": _shufflenets,
    "swin_t": (
        _torchvision(_swin_torchvision(), 232, "bicubic"),
        _timm(_swin_timm(r"head\.fc", 0), 248),
        _timm(_swin_timm("head", 1), 248, name="timm before 0.9"),
    ),
    "vit_b_16": (
        _torchvision(_VIT_TORCHVISION),
        _timm(_VIT_TIMM, 248, _HALF),
    ),
}


def layouts_of(model: str) -> tuple[Layout, ...]:
    """Returns the layouts that a model's files may have, none if it has no file."""
    return LAYOUTS.get("dit" if model.startswith("dit_") else model, ())
