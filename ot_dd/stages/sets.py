"""Every set of images by its name: ours, its ablations and the baselines."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ot_dd import baselines
from ot_dd.config import fingerprint
from ot_dd.data import to_float, to_uint8
from ot_dd.diffusion import SAMPLERS, process
from ot_dd.flops import traced_flops
from ot_dd.parallel import side_by_side
from ot_dd.stages import vocabulary
from ot_dd.stages.artifacts import ImageSet, Prepared
from ot_dd.stages.batched import decode_set, in_batches
from ot_dd.stages.minimax import fine_tuned
from ot_dd.stages.refine import refine
from ot_dd.stages.sample import make_process, sample, sampler_recipe
from ot_dd.workdir import WorkDir


def distil(
    config,
    workdir: WorkDir,
    prepared: Prepared,
    *,
    seed: int,
    mesh=None,
    refined=True,
    name="ot_dd",
) -> ImageSet:
    """Returns the full method's set: guided sampling, then refinement."""
    if config.refine.start == "sampled":
        start = sample(
            config, workdir, prepared, name="guided", seed=seed,
            terms=config.guidance.terms, mesh=mesh,
        )  # fmt: skip
    else:
        start = make_set(config, workdir, prepared, config.refine.start, seed, mesh)
        # Where the start has no chance in it, refinement still has.
        key = fingerprint(start.key, seed)
        start = start._replace(seed=seed, key=key, weights=None)
    if not refined:
        return start
    return refine(config, workdir, prepared, start, name=name)


def make_set(
    config, workdir: WorkDir, prepared: Prepared, name: str, seed: int, mesh=None
) -> ImageSet:
    """Returns any set of the comparison by its name.

    Args:
      config: the whole config.
      workdir: where sets are kept.
      prepared: networks and real images.
      name: "ot_dd", one of `vocabulary.CHANGES`, or one of `vocabulary.BASELINES`.
      seed: the set's seed.
      mesh: devices for sampling.
    """
    if name == "ot_dd" or name in vocabulary.CHANGES:
        return distil(
            ablated(config, name), workdir, prepared, seed=seed, mesh=mesh, name=name
        )
    if name == "prototypes":
        made = _made_of_real(config, workdir, prepared, "centroids", seed)
        return made._replace(name=name, weights=None)
    if name in ("d4m", "quantised"):
        return _d4m(config, workdir, prepared, name, seed)
    terms = {"igd": ("influence", "deviation")}
    if name == "minimax":
        prepared = fine_tuned(config, workdir, prepared)
    scale = config.denoiser.plain_guidance_scale
    if scale and name in ("diffusion", "minimax"):
        prepared = prepared._replace(
            denoiser=prepared.denoiser.replace(scale=scale),
            denoiser_key=fingerprint(prepared.denoiser_key, scale),
        )
    if name == "igd":  # One image after another: deviation is from those before.
        config = config.copy_and_resolve_references()
        config.sampler.group = 1
    if name in ("diffusion", "igd", "minimax"):
        return sample(
            config, workdir, prepared, name=name, seed=seed,
            terms=terms.get(name, ()), mesh=mesh,
        )  # fmt: skip
    return _made_of_real(config, workdir, prepared, name, seed)


def ablated(config, name: str):
    """Returns a copy of the config with the changes of one of `vocabulary.CHANGES`."""
    changed = config.copy_and_resolve_references()
    for field, value in vocabulary.CHANGES.get(name, {}).items():
        if callable(value):
            value = value(config)
        changed.update_from_flattened_dict({field: value})
    return changed


def make_sets(
    config, workdir: WorkDir, prepared: Prepared, names, count: int, mesh=None
) -> dict[str, list[ImageSet]]:
    """Returns `{name: sets}`, `count` of each, or the one there is without a seed.

    Args:
      config: the whole config.
      workdir: where sets are kept.
      prepared: networks and real images.
      names: as `make_set` takes them.
      count: sets of each name.
      mesh: devices for sampling.
    """
    with side_by_side(workdir.metrics.stop) as submit:
        jobs = {
            name: [
                submit(make_set, config, workdir, prepared, name, seed, mesh)
                for seed in range(1 if without_seed(name, config.ipc) else count)
            ]
            for name in names
        }
        return {name: [job.result() for job in jobs[name]] for name in names}


def _made_of_real(config, workdir, prepared, name, seed):
    """Returns a baseline that chooses real images, or is made of them."""
    images, labels = prepared.dataset.train
    ipc, number = config.ipc, config.seed * 1000 + seed
    alike = without_seed(name, ipc)
    chosen = "always alike" if alike else (config.seed, seed)
    key = fingerprint(_inputs(prepared, name), name, ipc, chosen)

    def make():
        return _MAKERS[name](prepared, labels, ipc, number)

    made = workdir.arrays(f"{name}-{key}", make)
    if "rows" in made:
        made["images"] = images[made["rows"]]
        if prepared.latents is not None:
            made["latents"] = np.asarray(prepared.latents[made["rows"]])
    if name == "random_decoded":
        made["images"] = decode_set(prepared.autoencoder, made["latents"])
    return ImageSet(
        name, seed, made["images"], made.get("latents"), key,
        weights=made.get("weights"),
    )  # fmt: skip


def _inputs(prepared, name):
    """Returns the keys of what a baseline made of real images depends on."""
    if name in vocabulary.WITHOUT_GENERATOR:  # The data, and a teacher that chooses.
        teacher = () if name == "random" else prepared.teacher_keys[:1]
        return prepared.data_key, *teacher
    if name in ("el2n", "forgetting"):
        return prepared.autoencoder_key, prepared.surrogate_key
    return (prepared.autoencoder_key,)


def _random(prepared, labels, ipc, seed):
    return {"rows": baselines.random_rows(labels, ipc, seed)}


def _kmeans(prepared, labels, ipc, seed):
    return {"rows": baselines.kmeans_rows(prepared.latents, labels, ipc, seed)}


def _by_features(choose):
    """Returns a maker that chooses rows by the first teacher's features."""

    def make(prepared, labels, ipc, seed):
        images = prepared.dataset.train.images
        features = in_batches(class_features, (prepared.teachers[0],), images)
        return {"rows": choose(features, labels, ipc, seed)}

    return make


def class_features(teacher, images):
    """Returns a teacher's features; a function of its own, so that it compiles once."""
    return teacher.features(images)


def _el2n(prepared, labels, ipc, seed):
    images = prepared.dataset.train.images
    # The first checkpoint is the random initialisation; there may be no other.
    checkpoints = jax.tree.map(
        lambda p: p[1:] if len(p) > 1 else p, prepared.surrogate.params
    )
    surrogate = prepared.surrogate.replace(params=checkpoints)
    probabilities = in_batches(_probabilities, (surrogate,), images)
    scores = baselines.el2n_scores(probabilities.transpose(1, 0, 2), labels)
    return {"rows": baselines.easiest_rows(scores, labels, ipc)}


def _forgetting(prepared, labels, ipc, seed):
    images = prepared.dataset.train.images
    predicted = in_batches(_predictions, (prepared.trajectory,), images)
    scores = baselines.forgetting_scores(predicted.T == labels)
    return {"rows": baselines.easiest_rows(-scores, labels, ipc)}


def _predictions(surrogate, images):
    """Returns `[b, checkpoints]`."""
    return _probabilities(surrogate, images).argmax(-1)


def _probabilities(surrogate, images):
    """Returns `[b, checkpoints, classes]`."""

    def at(params):
        logits = surrogate.module.apply({"params": params}, images, train=False)
        return jax.nn.softmax(logits)

    return jax.lax.map(at, surrogate.params).transpose(1, 0, 2)


def _centroids(prepared, labels, ipc, seed):
    centroids, weights = baselines.quantise(prepared.latents, labels, ipc, seed)
    shape = (*centroids.shape[:2], *prepared.latents.shape[1:])
    latents = centroids.astype(np.float32).reshape(shape)
    return {
        "latents": latents, "weights": weights,
        "images": decode_set(prepared.autoencoder, latents),
    }  # fmt: skip


def _d4m(config, workdir, prepared, name, seed):
    """Samples anew from noised prototypes (D4M: Su et al., CVPR 2024).

    As `quantised` each image weighs what its cluster does (DDOQ: Tan and Slade, ICLR
    2026).
    """
    start = _made_of_real(config, workdir, prepared, "centroids", seed)
    weights = start.weights if name == "quantised" else None
    # The noise has the seed in it, even where the prototypes have no chance.
    key = fingerprint(
        start.key, prepared.denoiser_key, sampler_recipe(config),
        vocabulary.D4M_STRENGTH, config.seed, seed,
    )  # fmt: skip

    full_name = f"d4m-{seed}-{key}"

    def make():
        shape = start.latents.shape
        arguments = (
            (config.sampler.name, vocabulary.D4M_STRENGTH),
            make_process(config),
            prepared.denoiser,
            jnp.asarray(start.latents.reshape(-1, *shape[2:])),
            start.flat()[1],
            jax.random.fold_in(jax.random.key(config.seed), 5000 + seed),
        )
        operations = traced_flops(_sampled_from.trace(*arguments))
        workdir.count_flops(full_name, operations)
        latents = np.asarray(_sampled_from(*arguments)).reshape(shape)
        return {"latents": latents, "images": decode_set(prepared.autoencoder, latents)}

    made = workdir.arrays(full_name, make)
    if weights is not None:
        key = fingerprint(key, "weighted")
    return ImageSet(name, seed, made["images"], made["latents"], key, weights=weights)


@partial(jax.jit, static_argnums=0)
def _sampled_from(static, schedule, denoiser, latents, classes, key):
    """Noises latents `[n, ...]` to a share of the schedule, and samples from there."""
    sampler, strength = static
    first = max(1, round(strength * schedule.alpha.shape[0])) - 1

    def noise(i):
        return jax.random.normal(jax.random.fold_in(key, i), latents.shape)

    def body(z, i):
        prediction = denoiser(schedule, z, i, classes)
        return SAMPLERS[sampler](schedule, i, z, prediction, noise(i)), None

    z = process.add_noise(schedule, first, latents, noise(first + 1))
    return jax.lax.scan(body, z, jnp.arange(first, -1, -1))[0]


def _class_loss(teacher, c, images):
    return -jax.nn.log_softmax(teacher(images))[:, c]


def _collage(prepared, labels, ipc, seed):
    teacher, key = prepared.teachers[0], jax.random.key(seed)
    made = []
    for c in range(len(prepared.dataset.class_names)):
        own = to_float(jnp.asarray(prepared.dataset.train.images[labels == c]))
        loss = jax.tree_util.Partial(_class_loss, teacher, jnp.int32(c))
        made.append(baselines.collages(own, ipc, loss, jax.random.fold_in(key, c)))
    return {"images": np.asarray(to_uint8(jnp.asarray(np.stack(made))))}


def without_seed(name: str, ipc: int) -> bool:
    """Tells whether nothing random is in a set: one of it is all there are."""
    if name in ("herding", "kcenter", "el2n", "forgetting"):
        return True
    # The centroid of a single cluster is the mean.
    return ipc == 1 and name in ("kmeans", "kmeans_features", "prototypes", "centroids")


_MAKERS = {
    "random": _random,
    "random_decoded": _random,
    "kmeans": _kmeans,
    "kmeans_features": _by_features(baselines.kmeans_rows),
    "herding": _by_features(lambda f, y, ipc, seed: baselines.herding_rows(f, y, ipc)),
    "kcenter": _by_features(lambda f, y, ipc, seed: baselines.kcenter_rows(f, y, ipc)),
    "el2n": _el2n,
    "forgetting": _forgetting,
    "centroids": _centroids,
    "collage": _collage,
}
