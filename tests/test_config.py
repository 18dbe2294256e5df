"""Configs: all of them validate, and mistakes are named."""

import importlib

import pytest

from configs import digits
from ot_dd.config import ConfigError, fingerprint, parse_arg
from ot_dd.training.views import batches_per_epoch
from ot_dd.validation import validate

NAMES = ("digits", "fashion_mnist", "imagenet1k", "imagenette", "imagewoof", "cifar100")


@pytest.mark.parametrize("arg", ["", "debug"])
@pytest.mark.parametrize("name", NAMES)
def test_every_config_validates(name, arg):
    module = importlib.import_module(f"configs.{name}")
    validate(module.get_config(arg))
    assert "COMMAND:" in module.__doc__


def test_switches():
    assert parse_arg("debug,ipc50", "debug", "ipc50") == {"debug", "ipc50"}
    with pytest.raises(ConfigError, match="did you mean 'debug'"):
        parse_arg("debgu", "debug")


def test_fingerprints_follow_values_only():
    one, two = digits.get_config(), digits.get_config()
    assert fingerprint(one.refine) == fingerprint(two.refine)
    two.refine.steps += 1
    assert fingerprint(one.refine) != fingerprint(two.refine)


@pytest.mark.parametrize(
    ("name", "classes", "passes"),
    [("imagenette", 10, 300), ("imagenet1k", 1000, 300), ("cifar100", 100, 1000)],
)
def test_students_train_for_as_many_passes_at_any_size(name, classes, passes):
    config = importlib.import_module(f"configs.{name}").get_config()
    for ipc in (1, 10, 50):
        config.ipc = ipc
        own = config.copy_and_resolve_references()
        _, size = batches_per_epoch(ipc * classes, own.student.batch_size)
        assert own.student.steps * size == passes * ipc * classes
    config.student.steps = 7
    config.ipc = 1
    assert config.student.steps == 7
