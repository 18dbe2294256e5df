import flax.linen as nn
import pytest

from ot_dd import models


def test_every_name_makes_a_module():
    assert list(models.names()) == sorted(models.names())
    for name in models.names():
        assert isinstance(models.create(name, num_classes=10), nn.Module)


def test_presets_can_be_overridden():
    assert models.create("convnet3", num_classes=10, depth=4).depth == 4
    assert models.create("resnet_ap10", num_classes=10, norm="batch").norm == "batch"


def test_lists_become_tuples():
    module = models.create("autoencoder_small", channels=[8, 16])
    assert module.channels == (8, 16)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet81", {"num_classes": 2}, "model 'resnet81' .did you mean 'resnet"),
        ("qqq", {"num_classes": 2}, "unknown model 'qqq'; known: alexnet, "),
        ("convnet3", {"num_classes": 2, "widht": 3}, "'widht'.*did you mean 'width'"),
        ("convnet3", {"num_classes": 2, "parent": 3}, "unknown option 'parent'"),
        ("convnet3", {}, "num_classes=None"),
        ("convnet3", {"num_classes": 0}, "num_classes=0"),
    ],
)
def test_errors_name_the_nearest(name, options, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, **options)
