"""Every tensor of the public checkpoints has a place, and every place a tensor.

The tables in `state_dicts/` (key, shape, type) were printed from the real classes.
"""

from pathlib import Path

import numpy as np
import pytest

from ot_dd import models
from ot_dd.convert import _convert, _engine
from ot_dd.convert._files import TensorFile
from ot_dd.convert._layouts import layouts_of

TABLES = sorted((Path(__file__).parent / "state_dicts").glob("*.tsv"))
MODELS = {  # the table's name: (our model, the layout)
    "DiT-XL-2-256x256": ("dit_xl_2", "dit"),
    "facebook_DiT-XL-2-256_diffusers": ("dit_xl_2", "diffusers"),
    "sd-vae-ft-ema_diffusers": ("autoencoder_kl", "diffusers"),
    "timm_deit_tiny_patch16_224": ("deit_tiny", "timm"),
    "timm_mobilenetv2_100": ("mobilenet_v2", "timm"),
    "timm_swin_tiny_patch4_window7_224": ("swin_t", "timm"),
    "timm_vit_base_patch16_224": ("vit_b_16", "timm"),
    # timm's residual networks have torchvision's names.
    "timm_resnet18": ("resnet18", "torchvision"),
    "timm_resnet50": ("resnet50", "torchvision"),
}


def expected(table):
    library, _, name = table.stem.partition("_")
    return MODELS.get(table.stem, (name, library))


def shapes_of(table):
    rows = [line.split("\t") for line in table.read_text().splitlines()]
    return {
        key: () if shape == "scalar" else tuple(map(int, shape.split("x")))
        for key, shape, _ in rows
    }


def unreadable(key):
    raise AssertionError(f"{key} was read")


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t.stem)
def test_public_checkpoints_are_covered(table):
    model, name = expected(table)
    file = TensorFile(shapes_of(table), unreadable)
    layout = _convert.recognise(layouts_of(model), file)
    assert layout.name == name
    options, inputs = _convert._sizes(model, layout, file)
    wanted = models.shapes(models.create(model, **options), inputs)
    places = _engine.match(file, layout.rules, wanted)
    assert {place.path for place in places.values()} == set(wanted)
    # The sizes that the keys tell are those of the name.
    named = models.shapes(models.create(model, num_classes=1000), inputs)
    assert named == wanted
    ignored = set(file.shapes) - set(places)
    ends = (
        "num_batches_tracked",
        "relative_position_index",
        "pos_embed",
        "embedding_table.weight",
    )
    assert all(k.endswith(ends) or ".timestep_embedder." in k for k in ignored)


def test_every_problem_is_named_at_once():
    table = next(t for t in TABLES if t.stem == "torchvision_resnet18")
    shapes = shapes_of(table)
    del shapes["layer1.0.bn1.running_var"], shapes["conv1.weight"]
    shapes["fc.weight"] = (1000, 511)
    shapes["layer2.0.conv1.weight"] = (128,)
    shapes["head.scale"] = (3,)
    layout = layouts_of("resnet18")[0]
    wanted = models.shapes(
        models.create("resnet18", num_classes=1000), (1, 224, 224, 3)
    )
    with pytest.raises(_engine.ConversionError) as error:
        _engine.match(TensorFile(shapes, unreadable), layout.rules, wanted)
    message = str(error.value)
    assert "2 missing" in message and "1 unused" in message
    assert "2 of the wrong shape" in message
    for name in ("layer1_0/norm1/var", "conv1/kernel", "head.scale", "fc.weight",
                 "layer2.0.conv1.weight is [128]"):  # fmt: skip
        assert name in message, name


def test_a_stack_with_a_hole_is_incomplete():
    table = next(t for t in TABLES if t.stem == "facebook_DiT-XL-2-256_diffusers")
    shapes = shapes_of(table)
    del shapes["transformer_blocks.3.attn1.to_k.bias"]
    layout = layouts_of("dit_xl_2")[1]
    wanted = models.shapes(models.create("dit_xl_2", num_classes=1000), (1, 32, 32, 4))
    with pytest.raises(_engine.ConversionError, match=r"qkv/bias.*\(1 of its parts\)"):
        _engine.match(TensorFile(shapes, unreadable), layout.rules, wanted)


def test_parts_and_entries_go_where_they_belong():
    rules = (
        _engine.Rule(r"b\.(\d)\.q", "dense", r"s[\1]/qkv#0/2"),
        _engine.Rule(r"b\.(\d)\.k", "dense", r"s[\1]/qkv#1/2"),
    )
    tensors = {
        f"b.{i}.{part}.weight": np.full((2, 3), 10 * i + k, "f4")
        for i in range(3)
        for k, part in enumerate("qk")
    }
    file = TensorFile({k: v.shape for k, v in tensors.items()}, tensors.__getitem__)
    wanted = {("params", "s", "qkv", "kernel"): (3, 3, 4)}
    places = _engine.match(file, rules, wanted)
    seen = []
    filled = _engine.fill(
        file, places, wanted, progress=lambda *done: seen.append(done)
    )
    kernel = filled["params"]["s"]["qkv"]["kernel"]
    for i in range(3):
        np.testing.assert_array_equal(kernel[i, :, :2], 10 * i)
        np.testing.assert_array_equal(kernel[i, :, 2:], 10 * i + 1)
    assert seen[-1] == (36, 36)


def test_a_dit_of_another_size_is_named():
    table = next(t for t in TABLES if t.stem == "DiT-XL-2-256x256")
    file = TensorFile(shapes_of(table), unreadable)
    layout = layouts_of("dit_s_2")[0]
    for name in ("dit_s_2", "dit_xl_8"):
        with pytest.raises(_engine.ConversionError, match="those of dit_xl_2"):
            _convert._sizes(name, layout, file)


def test_a_dit_without_a_size_in_its_name_has_the_heads_of_its_width():
    layout = layouts_of("dit")[0]
    for size, heads in (("s", 6), ("b", 12), ("l", 16), ("xl", 16)):
        dim = models.create(f"dit_{size}_2", num_classes=1).dim
        file = TensorFile({"x_embedder.proj.weight": (dim, 4, 2, 2)}, unreadable)
        assert _convert._sizes("dit", layout, file)[0]["heads"] == heads
    file = TensorFile({"x_embedder.proj.weight": (512, 4, 2, 2)}, unreadable)
    with pytest.raises(_engine.ConversionError, match="its width is 512"):
        _convert._sizes("dit", layout, file)
