"""The comparison: our set, its ablations and the baselines, all trained alike."""

from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from ot_dd import geometry
from ot_dd.config import fingerprint
from ot_dd.parallel import side_by_side
from ot_dd.stages import vocabulary
from ot_dd.stages.artifacts import ImageSet, Prepared
from ot_dd.stages.batched import encode, in_batches
from ot_dd.stages.relabel import relabel, teachers_for
from ot_dd.stages.sets import ablated, make_set, make_sets
from ot_dd.stages.train import train
from ot_dd.training.views import mean_logits
from ot_dd.workdir import WorkDir


class Study(NamedTuple):
    """What the comparison found.

    Attributes:
      records: one object per trained student.
      transport: exact transport cost to held-out latents, `{set: {mean, per_seed,
        per_class}}`, squared Euclidean, standardised latents.
      label_gaps: the distance of labels on synthetic and on unseen images by set, see
        `label_gap`; empty without soft labels.
      sets: `{name: [ImageSet per seed]}`.
      teachers: size of the label ensemble of the full method.
    """

    records: list[dict]
    transport: dict[str, dict]
    label_gaps: dict[str, float]
    sets: dict[str, list[ImageSet]]
    teachers: int


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
    names = sets_of(config)
    teachers = choose_teachers(config, workdir, prepared, mesh)
    sets = make_sets(config, workdir, prepared, names, settings.num_sets, mesh)
    plans = students_of(config, teachers)
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
    gaps = {
        name: float(
            np.mean([label_gap(workdir, prepared, one, teachers) for one in sets[name]])
        )
        for name in (names if "soft" in settings.labels else ())
    }
    return Study(records, transport, gaps, sets, teachers)


def sets_of(config) -> list[str]:
    """Returns the names of the study's sets: the full method first.

    Ablations that make the set of the full method, or of one before them, are left out.
    """
    changes, recipes = [], [_image_recipe(config, "ot_dd")]
    for name in config.study.ablations:
        if name in vocabulary.CHANGES:
            recipe = _image_recipe(config, name)
            if recipe not in recipes:
                changes.append(name)
                recipes.append(recipe)
    return ["ot_dd", *config.study.baselines, *changes]


def _image_recipe(config, name: str) -> dict:
    """Returns the fields that the method, or an ablation of it, makes its set by."""
    recipe = ablated(config, name).to_dict()
    terms = recipe["guidance"]["terms"]
    recipe["guidance"] = {term: recipe["guidance"][term] for term in terms}
    if recipe["refine"]["start"] != "sampled":
        recipe["guidance"] = {}
    if not recipe["refine"]["steps"]:
        recipe["refine"] = recipe["refine"]["start"]
    return recipe


def students_of(config, teachers: int) -> list[tuple[str, str, str, int, dict]]:
    """Returns the kinds of students that the study trains.

    Args:
      config: the whole config; `study` says which.
      teachers: size of the label ensemble of the full method.

    Returns:
      `(set, "hard" or "soft", variant, teachers, changed fields of the recipe)` each.
    """
    names = sets_of(config)
    kinds = [(name, "hard", "", 0, {}) for name in names]
    kinds += [(name, "soft", "", teachers, {}) for name in names]
    kinds += [
        ("ot_dd", "soft", name, *variant_of(config, name, teachers))
        for name in config.study.ablations
        if name in vocabulary.VARIANTS and not changes_nothing(config, name, teachers)
    ]
    return [kind for kind in kinds if kind[1] in config.study.labels]


def variant_of(config, name: str, teachers: int) -> tuple[int, dict]:
    """Returns the ensemble's size and the changed fields of the recipe of a variant.

    Args:
      config: the whole config.
      name: one of `vocabulary.VARIANTS`, or "" for the full method itself.
      teachers: size of the label ensemble of the full method.
    """
    return {
        "": (teachers, {}),
        "no_lia": (no_lia_teachers(config, teachers), {}),
        "no_otm": (teachers, {"ot_weight": 0.0}),
        "identity_plan": (teachers, {"plan": "identity"}),
    }[name]


def changes_nothing(config, name: str, teachers: int) -> bool:
    """Tells whether a variant's students learn as those of the full method do."""
    count, changes = variant_of(config, name, teachers)
    if name == "identity_plan" and not config.student.ot_weight:
        return True
    alike = all(config.student[field] == value for field, value in changes.items())
    return alike and count == teachers


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
        return {"latents": in_batches(encode, (prepared.autoencoder,), test)}

    key = prepared.autoencoder_key
    real = workdir.arrays(f"test-latents-{key}", held_out)["latents"]
    real = real.reshape(len(labels), -1)
    size = config.study.transport_points

    def of_set(made):
        def make():
            latents = made.latents
            if latents is None or made.name == "random_decoded":
                flat, _ = made.flat()
                latents = in_batches(encode, (prepared.autoencoder,), flat)
            latents = np.asarray(latents).reshape(*made.images.shape[:2], -1)
            costs = []
            for c, points in enumerate(latents):
                own = real[labels == c][:size]
                costs.append(geometry.exact_transport(own, points))
            return {"per_class": costs}

        # Latents are the autoencoder's.
        own = fingerprint(made.key, key, size)
        return workdir.json(f"transport-{made.name}-{made.seed}-{own}", make)

    per_class = np.array([of_set(made)["per_class"] for made in sets])
    return {
        "mean": float(per_class.mean()),
        "per_seed": [float(v) for v in per_class.mean(1)],
        "per_class": [float(v) for v in per_class.mean(0)],
    }


def label_gap(
    workdir: WorkDir, prepared: Prepared, image_set: ImageSet, teachers: int
) -> float:
    """Returns how far the ensemble's labels on a set are from those on unseen images.

    Args:
      workdir: where labels and result are kept.
      prepared: the teachers, and the images that are unseen.
      image_set: the set.
      teachers: the size of the ensemble.

    Returns:
      The mean over classes of `geometry.label_gap`.
    """
    ensemble = prepared.teachers[:teachers]
    images, classes = prepared.dataset.test
    key = fingerprint(prepared.data_key, list(prepared.teacher_keys[:teachers]))

    def held_out():
        return {"labels": in_batches(_probabilities, (ensemble,), images)}

    real = workdir.arrays(f"test-labels-{key}", held_out)["labels"]

    def make():
        own = in_batches(_probabilities, (ensemble,), image_set.flat()[0])
        own = own.reshape(*image_set.images.shape[:2], -1)
        gaps = [geometry.label_gap(real[classes == c], own[c]) for c in range(len(own))]
        return {"mean": float(np.mean(gaps))}

    name = f"label-gap-{image_set.name}-{image_set.seed}"
    return workdir.json(f"{name}-{fingerprint(image_set.key, key)}", make)["mean"]


def _probabilities(teachers, images):
    return jax.nn.softmax(mean_logits(teachers, images))
