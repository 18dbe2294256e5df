"""The ensemble's size chosen on the validation split (`lia.auto`)."""

import jax
import pytest

from configs import digits
from ot_dd.stages.prepare import prepare
from ot_dd.stages.study import choose_teachers
from ot_dd.workdir import WorkDir


def config():
    made = digits.get_config("debug")
    made.ipc, made.refine.steps = 5, 0
    made.teachers.models = ("convnet",)
    made.teachers.steps, made.teachers.batch_size = 100, 64
    made.lia.auto, made.lia.teachers_by_ipc = True, ((1, 1),)
    made.student.steps, made.student.batch_size = 60, 50
    return made


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    work = WorkDir(tmp_path_factory.mktemp("lia"))
    prepared = prepare(config(), work)
    assert prepared.facts["teachers"][0]["validation_accuracy"] > 0.8
    return work, prepared


def scaled(teacher, factor):
    """The same teacher with its logits multiplied."""
    params = dict(teacher.variables["params"])
    params["fc"] = jax.tree.map(lambda leaf: factor * leaf, params["fc"])
    return teacher.replace(variables={**teacher.variables, "params": params})


@pytest.mark.parametrize(("factors", "best"), [((1.0, -3.0), 1), ((-1.0, 3.0), 2)])
def test_auto_takes_the_ensemble_that_teaches_best(ready, factors, best):
    """A wrong teacher ruins the mean of logits, as second, or as first and alone."""
    work, prepared = ready
    teachers = tuple(scaled(prepared.teachers[0], factor) for factor in factors)
    altered = prepared._replace(
        teachers=teachers, teacher_keys=tuple(map(str, factors))
    )
    assert choose_teachers(config(), work, altered) == best
