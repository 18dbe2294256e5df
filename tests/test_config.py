"""Configs: all of them validate, and mistakes are named."""

import importlib

import pytest

from configs import digits, imagenette
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


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("ipc", 0, "config.ipc is 0: must be at least 1"),
        ("student.model", "resnet19", "did you mean 'resnet18'"),
        ("teachers.models", ("convnet", "vitt"), "did you mean 'vit'"),
        ("guidance.transport.window", (3, 40), "within the 20 steps"),
        ("guidance.influence.window", (9, 3), "config.guidance.influence.window"),
        ("sampler.group", 3, "must be 1 .greedy., 0 .joint. or divide ipc=10"),
        ("sampler.name", "ddpm", "is sampled by flow"),
        ("sampler.num_steps", 2000, "config.sampler.num_steps is 2000: must be from 2"),
        ("refine.optimise", "labels", "config.refine.optimise is 'labels'"),
        ("refine.features", ("clip",), "use 'fresh:<model>'"),
        ("lia.teachers_by_ipc", ((1, 9),), "1 to 4 teachers"),
        ("lia.mode", "later", "config.lia.mode"),
        ("study.baselines", ("luck",), "known are random"),
    ],
)
def test_mistakes_are_named(field, value, message):
    config = (imagenette if field == "sampler.num_steps" else digits).get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ConfigError, match=message):
        validate(config)


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
