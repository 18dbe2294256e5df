"""The comparison: our set, its ablations and the baselines, all trained alike."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ot_dd import baselines, ot
from ot_dd.config import fingerprint
from ot_dd.parallel import side_by_side
from ot_dd.stages.artifacts import ImageSet, Prepared, to_float, to_uint8
from ot_dd.stages.prepare import _encode, decode_images, in_batches
from ot_dd.stages.refine import refine
from ot_dd.stages.relabel import relabel, teachers_for
from ot_dd.stages.sample import sample
from ot_dd.stages.train import train
from ot_dd.workdir import WorkDir


class Study(NamedTuple):
    """What the comparison found.

    Attributes:
      records: one object per trained student.
      transport: exact transport cost to held-out latents, `{set: {mean, per_seed,
        per_class}}`, squared Euclidean, standardised latents.
      sets: `{name: [ImageSet per seed]}`.
      teachers: size of the label ensemble of the full method.
    """

    records: list[dict]
    transport: dict[str, dict]
    sets: dict[str, list[ImageSet]]
    teachers: int


def distil(
    config, workdir: WorkDir, prepared: Prepared, *, seed: int, mesh=None, refined=True
) -> ImageSet:
    """Returns the full method's set: guided sampling, then refinement."""
    start = sample(
        config, workdir, prepared, name="guided", seed=seed,
        terms=config.guidance.terms, mesh=mesh,
    )  # fmt: skip
    if not refined:
        return start
    return refine(config, workdir, prepared, start, mesh=mesh, name="ot_dd")


def make_set(
    config, workdir: WorkDir, prepared: Prepared, name: str, seed: int, mesh=None
) -> ImageSet:
    """Returns any set of the comparison by its name.

    Args:
      config: the whole config.
      workdir: where sets are kept.
      prepared: networks and real images.
      name: "ot_dd", a baseline, or an ablation that changes the images.
      seed: the set's seed.
      mesh: devices for sampling and `refine`.
    """

    def sampled(terms):
        return sample(
            config, workdir, prepared, name=name, seed=seed, terms=terms, mesh=mesh
        )

    if name == "ot_dd":
        return distil(config, workdir, prepared, seed=seed, mesh=mesh)
    if name == "no_refine":
        made = distil(config, workdir, prepared, seed=seed, mesh=mesh, refined=False)
        return made._replace(name=name)
    if name == "no_otg":
        start = sampled(tuple(t for t in config.guidance.terms if t != "transport"))
        return refine(config, workdir, prepared, start, mesh=mesh, name=name)
    if name == "diffusion":
        return sampled(())
    if name == "igd":
        return sampled(("influence", "deviation"))
    return _real_set(config, workdir, prepared, name, seed)


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
      mesh: devices for sampling and `refine`.
    """
    with side_by_side(workdir.metrics.stop) as submit:
        jobs = {
            name: [
                submit(make_set, config, workdir, prepared, name, seed, mesh)
                for seed in range(1 if name in WITHOUT_SEED else count)
            ]
            for name in names
        }
        return {name: [job.result() for job in jobs[name]] for name in names}


def _real_set(config, workdir, prepared, name, seed):
    """Returns a baseline that chooses real images, or is made of them."""
    images, labels = prepared.dataset.train
    ipc, number = config.ipc, config.seed * 1000 + seed
    chosen = "always alike" if name in WITHOUT_SEED else (config.seed, seed)
    key = fingerprint(prepared.key, name, ipc, chosen)

    def make():
        return _MAKERS[name](prepared, labels, ipc, number)

    made = workdir.arrays(f"{name}-{key}", make)
    if "rows" in made:
        made["images"] = images[made["rows"]]
        made["latents"] = np.asarray(prepared.latents)[made["rows"]]
    if name == "random_decoded":
        made["images"] = _decoded(prepared, made["latents"])
    return ImageSet(
        name, seed, made["images"], made.get("latents"), key,
        weights=made.get("weights"),
    )  # fmt: skip


def _decoded(prepared, latents):
    """Decodes latents `[classes, ipc, ...]` to uint8 images."""
    flat = jnp.asarray(latents.reshape(-1, *latents.shape[2:]))
    images = np.asarray(
        to_uint8(jnp.asarray(decode_images(prepared.autoencoder, flat)))
    )
    return images.reshape(*latents.shape[:2], *images.shape[1:])


def _flat_latents(prepared):
    return np.asarray(prepared.latents).reshape(len(prepared.latents), -1)


def _random(prepared, labels, ipc, seed):
    return {"rows": baselines.random_rows(labels, ipc, seed)}


def _kmeans(prepared, labels, ipc, seed):
    return {"rows": baselines.kmeans_rows(_flat_latents(prepared), labels, ipc, seed)}


def _by_features(choose):
    """Returns a maker that chooses rows by the first teacher's features."""

    def make(prepared, labels, ipc, seed):
        images = to_float(jnp.asarray(prepared.dataset.train.images))
        features = in_batches(class_features, (prepared.teachers[0],), images)
        return {"rows": choose(features, labels, ipc, seed)}

    return make


def class_features(teacher, images):
    """Returns a teacher's features; a function of its own, so that it compiles once."""
    return teacher.features(images)


def _el2n(prepared, labels, ipc, seed):
    images = to_float(jnp.asarray(prepared.dataset.train.images))
    # The first checkpoint is the random initialisation; there may be no other.
    checkpoints = jax.tree.map(
        lambda p: p[1:] if len(p) > 1 else p, prepared.surrogate.params
    )
    surrogate = prepared.surrogate.replace(params=checkpoints)
    probabilities = in_batches(_probabilities, (surrogate,), images)
    scores = baselines.el2n_scores(probabilities.transpose(1, 0, 2), labels)
    return {"rows": baselines.easiest_rows(scores, labels, ipc)}


def _probabilities(surrogate, images):
    """Returns `[b, checkpoints, classes]`."""

    def at(params):
        logits = surrogate.module.apply({"params": params}, images, train=False)
        return jax.nn.softmax(logits)

    return jax.lax.map(at, surrogate.params).transpose(1, 0, 2)


def _quantised(prepared, labels, ipc, seed):
    flat = _flat_latents(prepared)
    centroids, weights = baselines.quantise(flat, labels, ipc, seed)
    shape = (*centroids.shape[:2], *prepared.latents.shape[1:])
    latents = centroids.astype(np.float32).reshape(shape)
    return {
        "latents": latents, "weights": weights, "images": _decoded(prepared, latents),
    }  # fmt: skip


def _prototypes(prepared, labels, ipc, seed):
    made = _quantised(prepared, labels, ipc, seed)
    return {k: v for k, v in made.items() if k != "weights"}


def _collage(prepared, labels, ipc, seed):
    teacher, key = prepared.teachers[0], jax.random.key(seed)
    made = []
    for c in range(len(prepared.dataset.class_names)):
        own = to_float(jnp.asarray(prepared.dataset.train.images[labels == c]))

        def loss(views, c=c):
            return -jax.nn.log_softmax(teacher(views))[:, c]

        made.append(baselines.collages(own, ipc, loss, jax.random.fold_in(key, c)))
    return {"images": np.asarray(to_uint8(jnp.asarray(np.stack(made))))}


# Sets that nothing random is in: one of each is all there are.
WITHOUT_SEED = ("herding", "kcenter", "el2n")
_MAKERS = {
    "random": _random,
    "random_decoded": _random,
    "kmeans": _kmeans,
    "kmeans_features": _by_features(baselines.kmeans_rows),
    "herding": _by_features(lambda f, y, ipc, seed: baselines.herding_rows(f, y, ipc)),
    "kcenter": _by_features(lambda f, y, ipc, seed: baselines.kcenter_rows(f, y, ipc)),
    "el2n": _el2n,
    "quantised": _quantised,
    "prototypes": _prototypes,
    "collage": _collage,
}


def run_study(config, workdir: WorkDir, prepared: Prepared, mesh=None) -> Study:
    """Makes every set of the config's study and trains students on each.

    Image ablations get sets of their own; label and loss ablations are variants of
    the full method's sets.

    Args:
      config: the whole config; `study` says how much.
      workdir: where everything is kept.
      prepared: networks and real images.
      mesh: devices for sampling and `refine`.
    """
    settings = config.study
    images_of = [n for n in settings.ablations if n in ("no_otg", "no_refine")]
    names = ["ot_dd", *settings.baselines, *images_of]
    teachers = choose_teachers(config, workdir, prepared, mesh)
    sets = make_sets(config, workdir, prepared, names, settings.num_sets, mesh)
    plans = [(name, "hard", "", 0, {}) for name in names]
    plans += [(name, "soft", "", teachers, {}) for name in names]
    variants = {
        "no_lia": (no_lia_teachers(config, teachers), {}),
        "no_otm": (teachers, {"ot_weight": 0.0}),
        "identity_plan": (teachers, {"plan": "identity"}),
    }
    plans += [
        ("ot_dd", "soft", variant, *variants[variant])
        for variant in settings.ablations
        if variant in variants
    ]
    plans = [plan for plan in plans if plan[1] in settings.labels]
    records: list[dict] = []
    for done, (name, labels, variant, count, changes) in enumerate(plans):
        soft = [None] * len(sets[name])
        if labels == "soft":
            write = partial(relabel, config, workdir, prepared, teachers=count)
            with side_by_side(workdir.metrics.stop) as submit:
                soft = [job.result() for job in [submit(write, s) for s in sets[name]]]
        runs = list(zip(sets[name], soft))
        records += train(
            config, workdir, prepared, runs, variant=variant,
            students=settings.num_students, **changes,
        )  # fmt: skip
        workdir.metrics.progress(
            "students of", done + 1, len(plans), f"{name} {variant} ({labels} labels)"
        )
    transport = {
        name: _transport(config, workdir, prepared, sets[name]) for name in names
    }
    return Study(records, transport, sets, teachers)


def no_lia_teachers(config, teachers: int) -> int:
    """Returns the ensemble of the run without LIA: all teachers, whatever the IPC.

    Where LIA itself takes all of them, the first alone.
    """
    everyone = len(config.teachers.models)
    return everyone if teachers != everyone else 1


def choose_teachers(config, workdir: WorkDir, prepared: Prepared, mesh=None) -> int:
    """Returns the ensemble's size K(IPC).

    With `lia.auto`, each prefix of the teachers labels the first set, one student is
    trained on it, and the best validation accuracy decides.
    """
    if not config.lia.auto:
        return teachers_for(config, config.ipc)
    made = make_set(config, workdir, prepared, "ot_dd", 0, mesh)
    scores = []
    for count in range(1, len(prepared.teachers) + 1):
        soft = relabel(config, workdir, prepared, made, teachers=count)
        run = [(made, soft)]
        (record,) = train(config, workdir, prepared, run, split="validation")
        scores.append(record["accuracy"])
    best = int(np.argmax(scores)) + 1
    shown = ", ".join(f"{k + 1}: {s:.4f}" for k, s in enumerate(scores))
    workdir.metrics.say(f"  teachers by validation accuracy: {shown}; takes {best}")
    return best


def _transport(config, workdir, prepared, sets):
    """Exact transport from each set to unseen real latents, class by class."""
    test, labels = prepared.dataset.test

    def held_out():
        images = to_float(jnp.asarray(test))
        return {"latents": in_batches(_encode, (prepared.autoencoder,), images)}

    key = fingerprint(prepared.key)
    real = workdir.arrays(f"test-latents-{key}", held_out)["latents"]
    real = real.reshape(len(labels), -1)
    size = config.study.transport_points

    def of_set(made):
        def make():
            latents = made.latents
            if latents is None or made.name == "random_decoded":
                flat = to_float(jnp.asarray(made.flat()[0]))
                latents = in_batches(_encode, (prepared.autoencoder,), flat)
            latents = np.asarray(latents).reshape(*made.images.shape[:2], -1)
            costs = []
            for c, points in enumerate(latents):
                own = real[labels == c][:size]
                own = own[: max(1, len(own) // len(points)) * len(points)]
                cost = ot.cost_matrix(
                    jnp.asarray(points), jnp.asarray(own), "sqeuclidean"
                )
                costs.append(ot.exact(cost))
            return {"per_class": costs}

        return workdir.json(f"transport-{made.name}-{made.seed}-{made.key}", make)

    per_class = np.array([of_set(made)["per_class"] for made in sets])
    return {
        "mean": float(per_class.mean()),
        "per_seed": [float(v) for v in per_class.mean(1)],
        "per_class": [float(v) for v in per_class.mean(0)],
    }
