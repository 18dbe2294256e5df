"""Everything that refinement may move, with every kind of feature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cifar100
from ot_dd import ot
from ot_dd.data import AugmentConfig, to_float
from ot_dd.stages.artifacts import Prepared
from ot_dd.stages.prepare import prepare
from ot_dd.stages.refine import (
    _feature_sources,
    _fixed,
    _real_features,
    feature_distance,
    refine,
)
from ot_dd.stages.sample import sample
from ot_dd.stages.sets import distil, make_set
from ot_dd.workdir import WorkDir

pytestmark = pytest.mark.slow


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
    "changes",
    [
        {"optimise": "latents", "features": ("fresh:convnet3", "surrogate")},
        {
            "optimise": "pixels",
            "features": ("teachers",),
            "divergence": "mean",
            "anchor_weight": 1.0,
        },
        {"optimise": "decoder", "divergence": "distance"},
        {"optimise": "denoiser", "rank": 2, "clip": 1.0},
        {
            "pool": 2,
            "features": ("fresh:convnet3", "surrogate", "teachers"),
            "real_batch": 40,
            "epsilon": 0.5,
            "epsilon_end": 0.1,
            "tau": 0.8,
        },
    ],
)
def test_each_target_changes_the_images(ready, changes):
    work, prepared = ready
    made = config()
    made.refine.update(changes)
    start = sample(made, work, prepared, name="guided", seed=0, terms=())
    end = refine(made, work, prepared, start)
    assert end.images.shape == start.images.shape and end.images.dtype == np.uint8
    assert (end.images != start.images).mean() > 0.02
    assert np.isfinite(end.latents).all()
    # The latents are those of the images, whatever has been moved.
    assert np.abs(end.latents - start.latents).max() > 1e-4


def test_plain_samples_have_a_guidance_scale_of_their_own(ready):
    work, prepared = ready
    made = config()
    kinds = {}
    for scale in (0.0, 3.0):
        made.denoiser.plain_guidance_scale = scale
        for name in ("diffusion", "igd"):
            kinds[name, scale] = make_set(made, work, prepared, name, seed=0)
    assert (kinds["diffusion", 0.0].latents != kinds["diffusion", 3.0].latents).any()
    assert kinds["diffusion", 0.0].key != kinds["diffusion", 3.0].key
    assert kinds["igd", 0.0].key == kinds["igd", 3.0].key


def test_one_prototype_is_always_alike_and_what_is_sampled_from_it_is_not(ready):
    work, prepared = ready
    made = config()
    made.ipc = 1
    for name, alike in (("prototypes", True), ("d4m", False), ("quantised", False)):
        one, two = (make_set(made, work, prepared, name, seed=s) for s in (0, 1))
        assert (one.images == two.images).all() == alike
        assert (one.key == two.key) == alike


def test_ablations_of_guidance_change_what_the_config_says(ready):
    work, prepared = ready
    made = config()
    made.sampler.num_steps, made.guidance.transport.window = 5, (0, 2)
    strength = made.guidance.transport.strength
    for name, base, fields in (
        ("weak_guidance", "ot_dd", {"strength": strength / 4}),
        ("strong_guidance", "ot_dd", {"strength": strength * 4}),
        ("early_guidance", "ot_dd", {"window": (3, 4)}),
        ("early_no_refine", "no_refine", {"window": (3, 4)}),
    ):
        told = made.copy_and_resolve_references()
        told.guidance.transport.update(fields)
        own = make_set(made, work, prepared, name, seed=0)
        assert own.key == make_set(told, work, prepared, base, seed=0).key
        assert own.key != make_set(made, work, prepared, base, seed=0).key
    assert made.guidance.transport.strength == strength
    assert made.guidance.transport.window == (0, 2)


def test_real_images_may_be_the_start(ready):
    work, prepared = ready
    made = config()
    made.refine.start, made.refine.steps = "quantised", 0
    # As when it is refined: an ablation differs in one thing alone.
    assert distil(made, work, prepared, seed=1).weights is None
    made.refine = config().refine
    made.refine.start = "random"
    real = make_set(made, work, prepared, "random", seed=1)
    end = distil(made, work, prepared, seed=1)
    moved = np.abs(end.latents - real.latents)
    rate = made.refine.learning_rate
    assert 1e-4 < moved.max() <= made.refine.steps * rate * 1.01  # Adam's largest steps
    made.refine.steps = 0
    assert (distil(made, work, prepared, seed=1).images == real.images).all()
    # Random rows are those of the data; what refines them is not, and names the result.
    others = prepared._replace(autoencoder_key="another")
    assert make_set(made, work, others, "random", seed=1).key == real.key
    made.refine.steps = config().refine.steps
    keys = {distil(made, work, p, seed=1).key for p in (prepared, others)}
    assert len(keys) == 2 and real.key not in keys


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
            "class_weight_by_ipc": ((1, 1e4),),
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
    made.refine.class_weight_by_ipc = ((1, 0.0),)
    without = refine(made, work, prepared, start)
    assert cross_entropy(end) < cross_entropy(start) - 0.02
    assert cross_entropy(end) < cross_entropy(without) - 0.02


def test_the_class_term_is_that_of_the_images_per_class(ready):
    work, prepared = ready
    made = config()
    made.refine.steps = 2
    start = sample(made, work, prepared, name="guided", seed=0, terms=())

    def key(*pairs):
        changed = made.copy_and_resolve_references()
        changed.refine.update({"features": ("teachers",), "class_weight_by_ipc": pairs})
        return refine(changed, work, prepared, start).key

    weighted, plain = key((1, 2.0)), key((1, 0))
    assert weighted != plain
    ipc = made.ipc
    assert key((ipc + 1, 0.0), (1, 2.0)) == weighted
    assert key((1, 2.0), (ipc, 0.0)) == plain
    assert key((ipc + 1, 2.0)) == weighted


def test_features_that_are_kept_are_those_of_the_pool(ready):
    work, prepared = ready
    settings = config().refine
    settings.pool, settings.features = 2, ("fresh:convnet3", "surrogate")
    trajectory = jax.tree.leaves(prepared.surrogate.params)[0].shape[0]
    sources = _feature_sources(settings, 3, trajectory)
    plain = AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=False)
    start = sample(config(), work, prepared, name="guided", seed=0, terms=())
    fixed = _fixed(config(), prepared, start)
    images = jnp.asarray(prepared.dataset.train.images)
    kept = _real_features(sources, plain, images, fixed, size=7)
    assert [k.shape[:2] for k in kept] == [(n, len(images)) for n in (2, trajectory)]
    for source, features in zip(sources, kept):
        for number in range(source.count):
            _, want = source.run(jnp.int32(number), to_float(images), fixed)
            np.testing.assert_allclose(features[number], want, rtol=1e-4, atol=1e-4)
    assert np.abs(kept[0][0] - kept[0][1]).max() > 1e-2


def test_distance_of_features_is_the_divergence_up_to_the_real_term():
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(n, 4)), jnp.float32) for n in (6, 9))
    settings = config().refine
    settings.epsilon, settings.num_iters = 0.5, 500

    def divergence(x, real):
        epsilon = 0.5 * jax.lax.stop_gradient(((x[:, None] - real) ** 2).sum(-1).mean())
        return ot.sinkhorn_divergence(
            x, real, cost_fn="sqeuclidean", epsilon=epsilon, num_iters=500
        )

    ours = jax.grad(lambda x: feature_distance(x, y, settings))(x)
    np.testing.assert_allclose(ours, jax.grad(divergence)(x, y), atol=1e-5)
    # Annealed: at the end of the run it is the distance at `epsilon_end`.
    settings.epsilon, settings.epsilon_end = 10.0, 0.5
    end = jax.grad(lambda x: feature_distance(x, y, settings, 1.0))(x)
    np.testing.assert_allclose(end, ours, atol=1e-5)
    start = jax.grad(lambda x: feature_distance(x, y, settings, 0.0))(x)
    assert np.abs(start - ours).max() > 1e-3


@pytest.mark.parametrize("divergence", ["sinkhorn", "distance"])
def test_features_that_are_all_alike_have_a_distance(divergence):
    settings = config().refine
    settings.divergence, same = divergence, jnp.zeros((3, 4))
    value, gradient = jax.value_and_grad(feature_distance)(same, same, settings)
    assert np.isfinite(value) and np.isfinite(gradient).all()
