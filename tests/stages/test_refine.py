"""Everything that refinement may move, with every kind of feature."""

import jax
import numpy as np
import pytest

from configs import cifar100
from ot_dd.stages.artifacts import Prepared, to_float
from ot_dd.stages.prepare import prepare
from ot_dd.stages.refine import refine
from ot_dd.stages.sample import sample
from ot_dd.workdir import WorkDir


def config():
    made = cifar100.get_config("debug")
    made.data.source = "synthetic:classes=3,size=16,n=12"
    made.data.image_size = 16
    made.teachers.models = ("convnet3",)
    made.lia.teachers_by_ipc = ((1, 1),)
    made.refine.steps, made.refine.width = 3, 8
    return made


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> tuple[WorkDir, Prepared]:
    work = WorkDir(tmp_path_factory.mktemp("refine"))
    return work, prepare(config(), work)


@pytest.mark.parametrize(
    ("changes", "moves_latents"),
    [
        ({"optimise": "latents", "features": ("fresh:convnet3", "surrogate")}, True),
        ({"optimise": "latents", "divergence": "mean", "anchor_weight": 1.0}, True),
        ({"optimise": "pixels", "features": ("teachers",)}, True),
        ({"optimise": "decoder", "divergence": "distance"}, False),
        ({"optimise": "denoiser", "rank": 2, "clip": 1.0}, True),
    ],
)
def test_each_target_changes_the_images(ready, changes, moves_latents):
    work, prepared = ready
    made = config()
    made.refine.update(changes)
    start = sample(made, work, prepared, name="guided", seed=0, terms=())
    end = refine(made, work, prepared, start)
    assert end.images.shape == start.images.shape and end.images.dtype == np.uint8
    assert (end.images != start.images).mean() > 0.02
    assert np.isfinite(end.latents).all()
    assert (np.abs(end.latents - start.latents).max() > 1e-4) == moves_latents


def test_no_steps_leave_the_set_as_it_is(ready):
    work, prepared = ready
    made = config()
    made.refine.steps = 0
    start = sample(made, work, prepared, name="guided", seed=0, terms=())
    assert refine(made, work, prepared, start).key == start.key


def test_the_class_term_lowers_the_cross_entropy_of_trained_networks(ready):
    work, prepared = ready
    made = config()
    made.refine.update(
        {
            "features": ("teachers",),
            "class_weight": 1e4,
            "views": 2,
            "steps": 40,
            "optimise": "pixels",
            "learning_rate": 0.2,
        }
    )
    start = sample(made, work, prepared, name="guided", seed=0, terms=())
    end = refine(made, work, prepared, start)

    def cross_entropy(image_set):
        images, labels = image_set.flat()
        logits = prepared.teachers[0](to_float(images))
        return -np.asarray(jax.nn.log_softmax(logits))[
            range(len(labels)), labels
        ].mean()

    # The teacher has seen six batches: its cross-entropy is near log 3 everywhere.
    made.refine.class_weight = 0.0
    without = refine(made, work, prepared, start)
    assert cross_entropy(end) < cross_entropy(start) - 0.02
    assert cross_entropy(end) < cross_entropy(without) - 0.02
