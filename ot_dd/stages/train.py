"""Stage 3: students trained on a set, with hard labels or by logit matching (OTM)."""

import functools
import math
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ot_dd import data, models
from ot_dd.config import fingerprint, options
from ot_dd.metrics import Stopped
from ot_dd.parallel import barrier, mesh_for, place, side_by_side, told_to_end
from ot_dd.stages.artifacts import ImageSet, Prepared
from ot_dd.stages.networks import augment_config
from ot_dd.stages.relabel import SoftLabels
from ot_dd.training.students import (
    Curve,
    Progress,
    Recipe,
    train_student,
    training_flops,
)
from ot_dd.workdir import WorkDir

# Seconds of training that a student may lose; it is saved after an evaluation only.
_SAVE_EVERY = 60.0
_SHOW_AFTER = 10.0  # Seconds after which its progress is worth a line.

# What only soft labels heed.
_OF_SOFT_LABELS = {
    "ce_weight": 0.0, "mse_weight": 0.0, "ot_weight": 0.0, "kl_weight": 0.0,
    "kl_temperature": 1.0, "temperature": 1.0, "epsilon": 1.0, "num_iters": 1,
    "plan": "identity",
}  # fmt: skip


def recipe_of(config, labels: str, **changes) -> Recipe:
    """Returns the config's student recipe; `changes` are an ablation's."""
    settings = options(config.student)
    fields = {name: settings[name] for name in Recipe._fields if name in settings}
    fields["decays"] = tuple(map(tuple, fields["decays"]))
    if labels == "hard":  # A change of what they do not heed trains no student anew.
        fields |= _OF_SOFT_LABELS
    augment = augment_config(config.data.augment)
    if settings["dsa"] and labels == "hard":
        kinds = data.DSA().kinds
        augment = data.DSA(tuple(k for k in kinds if augment.flip or k != "flip"))
    return Recipe(labels=labels, augment=augment, **fields)._replace(**changes)


def evaluation_parts(images: np.ndarray, labels: np.ndarray):
    """Returns `(images [parts, b, h, w, c], labels [parts, b])`, padded by labels of -1."""
    shape = part_shape(len(images), jax.local_device_count())
    short = math.prod(shape) - len(images)
    images = np.concatenate([images, np.zeros((short, *images.shape[1:]), np.uint8)])
    labels = np.concatenate([labels, np.full(short, -1, labels.dtype)])
    images = images.reshape(*shape, *images.shape[1:])
    return images, labels.reshape(shape)


def part_shape(count: int, devices: int) -> tuple[int, int]:
    """Returns (parts, size) of so many images; the devices divide a part."""
    size = -(-min(256, count) // devices) * devices
    return -(-count // size), size


def train(
    config,
    workdir: WorkDir,
    prepared: Prepared,
    runs: Sequence[tuple[ImageSet, SoftLabels | None]],
    *,
    variant: str = "",
    split: str = "test",
    students: int = 1,
    progress: str = "",
    **changes,
) -> list[dict]:
    """Trains several students of each set, differing in their seed alone.

    On a CPU as many students as it has cores are trained side by side, each by the
    same compiled program.

    Args:
      config: the whole config; `student` and `data.augment` matter.
      workdir: where records are kept; a record that is there is not made again.
      prepared: the evaluation images, and the teachers when labels are made online.
      runs: training images, each with soft labels, or None for hard ones.
      variant: what differs from the set's plain recipe, for the record.
      split: "test", or "validation" for tuning.
      students: how many of each.
      progress: what progress is shown as, if it is.
      **changes: fields of `Recipe` that the variant changes.

    Returns:
      One record for each student, in the order of the runs.
    """
    mesh = mesh_for(config.student.batch_size)

    @functools.cache
    def made():
        parts = evaluation_parts(*getattr(prepared.dataset, split))
        return place(parts, mesh, None, "data") if mesh else jax.device_put(parts)

    def evaluation():
        """Not before a student is trained: the images may be many, and still on disk."""
        with workdir.turn("evaluation images"):
            return made()

    extra = options(config.student.options)
    module = models.create(
        config.student.model, num_classes=len(prepared.dataset.class_names), **extra
    )

    def one(image_set, soft, student_seed, alone=False):
        recipe = recipe_of(config, "hard" if soft is None else "soft", **changes)
        recipe_key = fingerprint(
            image_set.key, soft.key if soft else "", recipe, config.student.model, extra,
            split, config.seed, prepared.data_key, student_seed,
        )  # fmt: skip

        name = f"student-{image_set.name}-{recipe_key}"

        def make():
            shown = f"student {student_seed} of {image_set.name}, set {image_set.seed}"
            shown = ", ".join(filter(None, (shown, variant, f"{recipe.labels} labels")))
            part = workdir.unfinished(name)
            saved = _Saved(workdir.metrics, part, shown, recipe.steps, asks=not alone)
            pixels, labels = image_set.flat()
            target, views, view_seed = _target(prepared, soft)
            arrays = (
                pixels, labels, _weights(image_set), target,
                jax.random.key(view_seed),
                jax.random.fold_in(jax.random.key(config.seed), 4000 + student_seed),
                evaluation(),
            )  # fmt: skip
            curve = train_student(
                module,
                recipe,
                views,
                *arrays,
                mesh=mesh,
                strategy=config.parallel.strategy,
                saved=saved,
            )
            seconds = saved.finish(curve)
            scores = np.asarray(curve.accuracy, np.float64)
            return {
                "set": image_set.name,
                "labels": recipe.labels,
                "variant": variant,
                "student": config.student.model,
                "ipc": int(image_set.images.shape[1]),
                "steps": recipe.steps,
                "batch_size": min(recipe.batch_size, len(pixels)),
                "set_seed": image_set.seed,
                "student_seed": student_seed,
                "accuracy": float(scores[-1]),
                "best_accuracy": float(scores.max()),
                "seconds": round(seconds, 2),
                "device": jax.devices()[0].device_kind,
                "logit_transport": float(curve.transport[-1]),
                "curve": [float(v) for v in scores],
            }

        record = workdir.json(name, make, alone=alone)
        workdir.unfinished(name).delete()
        shape = image_set.flat()[0].shape
        record["flops"] = training_flops(
            module, recipe, shape, len(prepared.dataset.class_names)
        )
        # Names are not part of the recipe: equal sets differ in them.
        own = {"set": image_set.name, "set_seed": image_set.seed, "variant": variant}
        return {**record, **own}

    wanted = [
        (image_set, soft, student_seed)
        for image_set, soft in runs
        for student_seed in range(students)
    ]
    processes = jax.process_count()
    if processes > 1:  # Each trains its share; then all read all the records.
        for number in range(jax.process_index(), len(wanted), processes):
            one(*wanted[number], alone=True)
        barrier("students")
    with side_by_side(workdir.metrics.stop) as submit:
        jobs = [submit(one, *arguments) for arguments in wanted]
        records = []
        for job in jobs:
            records.append(job.result())
            if progress:
                workdir.metrics.progress(progress, len(records), len(jobs))
        return records


class _Saved:
    """Saves a student in training, now and then, and when its process is to end.

    Of several processes each has students of its own, and so does not ask (`asks`)
    whether they are told to end: all would have to ask as often.
    """

    def __init__(self, metrics, part, name: str, steps: int, asks: bool):
        self._metrics, self._part = metrics, part
        self._name, self._steps, self._asks = name, steps, asks
        self._began = self._last = time.monotonic()
        self._before = 0.0  # Seconds of the runs that were ended.
        self._shown = False

    def restore(self, example: Progress) -> Progress | None:
        seconds = jax.ShapeDtypeStruct((), np.float64)
        found = self._part.restore((example, seconds))
        if found is None:
            return None
        self._before = float(found[1])
        return found[0]

    def save(self, progress: Progress) -> None:
        self._check(progress.curve)
        step = int(progress.state.step)
        ended = self._metrics.stop.is_set() or self._asks and told_to_end()
        now = time.monotonic()
        if now - self._began >= _SHOW_AFTER:
            self._metrics.progress(self._name, step, self._steps)
            self._shown = True
        if not ended and now - self._last < _SAVE_EVERY:
            return
        self._part.save((progress, np.float64(self._seconds())))
        self._last = now
        if ended:
            raise Stopped(f"{self._name}, step {step}, which is saved")

    def finish(self, curve: Curve) -> float:
        """Ends the progress, and returns the seconds of training in all runs."""
        self._check(curve)
        if self._shown:
            self._metrics.progress(self._name, self._steps, self._steps)
        return self._seconds()

    def _check(self, curve):
        if not np.isfinite(np.asarray(curve.loss)).all():
            raise FloatingPointError(
                f"{self._name}: the loss is not finite; lower student.learning_rate"
            )

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._began


def _weights(image_set):
    """Returns the weight of every image `[n]`."""
    if image_set.weights is None:
        return jnp.ones(int(np.prod(image_set.images.shape[:2])))
    return jnp.asarray(image_set.weights, jnp.float32).reshape(-1)


def _target(prepared, soft):
    """Returns what `train_student` learns from, its views and the seed of those."""
    if soft is None:
        return None, 1, 0
    if soft.logits is None:
        return prepared.teachers[: soft.teachers], soft.views, soft.seed
    return jnp.asarray(soft.logits), soft.views, soft.seed
