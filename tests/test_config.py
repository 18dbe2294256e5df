"""Configs: all of them validate, and mistakes are named."""

import importlib
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from configs import common, digits
from ot_dd.command import parse_flags
from ot_dd.config import ConfigError, fingerprint, parse_arg
from ot_dd.stages.train import recipe_of
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


_MINE = """from configs import common
def get_config(arg=None):
    config = common.base("mine")
    {}
    return config
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_MINE.format("config.ipcs = 5"), "line 4: the config has no field 'ipcs'. Did you"),
        (_MINE.format("config.refine.stepz = 5"), "line 4: the config has no field 'stepz'."),
        (_MINE.format("config.ipc = 'a'"), "line 4: Could not override field 'ipc'"),
        (_MINE.format("config.ipc = 5 +"), "line 4: invalid syntax"),
        (_MINE.format("config.ipc = five"), "line 4: name 'five' is not defined"),
        (_MINE.format("import statistics; statistics.mean([])"), "line 4: mean requires"),
        (_MINE.format("import nothing_here"), "line 4: No module named 'nothing_here'"),
        ("def get(): pass", "--config: the file has no function get_config"),
        ("def get_config(): pass", "get_config() takes 0 positional arguments but 1 was"),
        ("def get_config(a): pass", "its get_config() must return a ConfigDict"),
    ],
)  # fmt: skip
def test_mistakes_in_a_config_file_are_one_line(
    tmp_path, monkeypatch, capsys, text, message
):
    file = tmp_path / "mine.py"
    file.write_text(text)
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # Another test's.
    own = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=own)
    monkeypatch.setattr(flags, "FLAGS", own)
    with pytest.raises(SystemExit, match="2"):
        parse_flags(["distill", f"--config={file}:debug"])
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ") and message in said


def test_options_of_models_may_be_added_in_a_file():
    config = common.base("mine")
    config.student.options.width = 8
    config.teachers.options.convnet3 = dict(width=8)
    config.teachers.weights.convnet3 = "weights/convnet3"
    validate(config)


def test_hard_labels_heed_nothing_of_soft_ones():
    config = digits.get_config()
    before = [recipe_of(config, labels) for labels in ("hard", "soft")]
    config.student.ot_weight, config.student.temperature = 3.0, 5.0
    assert recipe_of(config, "hard") == before[0]
    assert recipe_of(config, "soft") != before[1]
