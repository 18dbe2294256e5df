"""One student's program on a handful of images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ot_dd import models
from ot_dd.data import AugmentConfig
from ot_dd.training import students
from ot_dd.training.students import Recipe, train_student

RECIPE = Recipe(
    labels="hard", steps=7, batch_size=6, optimiser="adam", learning_rate=1e-2,
    weight_decay=0.0, zeta=2.0, decays=(), ema=0.5, ce_weight=0.0, mse_weight=1.0,
    ot_weight=0.0, kl_weight=0.0, kl_temperature=1.0, temperature=1.0, epsilon=0.1,
    num_iters=1, plan="sinkhorn", evaluations=7, augment=AugmentConfig(),
)  # fmt: skip


def student(
    recipe, views=1, soft=None, dtype=jnp.uint8, count=12, module=None, saved=None,
    kind=jnp.asarray,
):  # fmt: skip
    images = jax.random.randint(jax.random.key(0), (12, 8, 8, 1), 0, 256, jnp.uint8)
    images = kind(images)
    labels, key = jnp.arange(12) % 3, jax.random.key(1)
    return train_student(
        module or models.create("mlp", num_classes=3), recipe, views,
        images.astype(dtype),
        labels, jnp.ones(count), soft, key, key, (images[None], labels[None]),
        saved=saved,
    )  # fmt: skip


def test_steps_that_evaluations_do_not_divide_are_trained_too():
    def losses(evaluations):
        return np.asarray(student(RECIPE._replace(evaluations=evaluations)).loss)

    every = losses(7)  # One step each.
    np.testing.assert_allclose(losses(1), [every.mean()], rtol=1e-5)
    # The first of seven comes before the three parts of two.
    np.testing.assert_allclose(losses(3), every[1:].reshape(3, 2).mean(1), rtol=1e-5)


class InMemory:
    """Keeps what it is given, and ends the training at one of the evaluations."""

    def __init__(self, end_after):
        self.end_after, self.kept = end_after, []

    def restore(self, example):
        if not self.kept:
            return None
        assert jax.tree.map(jnp.shape, example) == jax.tree.map(
            jnp.shape, self.kept[-1]
        )
        return self.kept[-1]

    def save(self, progress):
        self.kept.append(jax.tree.map(np.array, progress))
        if len(self.kept) == self.end_after:
            raise InterruptedError


@pytest.mark.parametrize("evaluations", [7, 3, 5])  # 5 leaves two steps to the start.
def test_an_ended_student_goes_on_as_if_it_had_not(evaluations):
    recipe = RECIPE._replace(evaluations=evaluations)
    whole = student(recipe)
    saved = InMemory(end_after=2)
    with pytest.raises(InterruptedError):
        student(recipe, saved=saved)
    programs = students._go_on._cache_size()
    resumed = student(recipe, saved=saved)
    assert students._go_on._cache_size() == programs
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert len(saved.kept) == evaluations - 1  # Nothing was done twice.


def test_arrays_go_to_the_device_once_and_one_program_is_made(monkeypatch):
    go_on = students._go_on

    def guarded(*arguments):
        with jax.transfer_guard_host_to_device("disallow"):
            return go_on(*arguments)

    monkeypatch.setattr(students, "_go_on", guarded)
    before = go_on._cache_size()
    soft = jax.device_put(np.ones((2, 2, 6, 3), np.float16), jax.devices()[0])
    student(RECIPE._replace(labels="soft", evaluations=3), 2, soft, kind=np.asarray)
    assert go_on._cache_size() == before + 1


class WithDropout(nn.Module):
    rate: float

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(self.rate, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(3)(x)


def test_dropout_is_drawn_anew_at_every_step():
    still = RECIPE._replace(learning_rate=0.0)
    plain = np.asarray(student(still, module=WithDropout(0.0)).loss)
    dropped = np.asarray(student(still, module=WithDropout(0.5)).loss)
    assert len(np.unique(dropped - plain)) == len(plain)


@pytest.mark.parametrize(
    ("changes", "soft", "message"),
    [
        ({"labels": "Hard"}, None, "recipe.labels is 'Hard'"),
        ({"optimiser": "SGD"}, None, "recipe.optimiser is 'SGD'"),
        ({"evaluations": 8}, None, "recipe.evaluations is 8: must be from 1 to the 7"),
        ({"labels": "soft"}, None, r"found \[\]"),
        ({"labels": "soft"}, (1, 2, 6, 3), r"= \[2, 2, 6\] .* found \[1, 2, 6\]"),
        ({"labels": "soft"}, (2, 1, 6, 3), r"found \[2, 1, 6\]"),
    ],
)
def test_recipes_and_labels_that_cannot_be(changes, soft, message):
    soft = soft and jnp.zeros(soft, jnp.float16)
    with pytest.raises(ValueError, match=message):
        student(RECIPE._replace(**changes), 2, soft)


def test_images_and_weights_that_cannot_be():
    with pytest.raises(ValueError, match="images must be uint8, found float32"):
        student(RECIPE, dtype=jnp.float32)
    with pytest.raises(ValueError, match="weights must be .12., one of each image"):
        student(RECIPE, count=6)
