"""Stage 2: soft labels from a teacher ensemble whose size follows the IPC (LIA)."""

import contextlib
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ot_dd.config import by_ipc, fingerprint
from ot_dd.flops import traced_flops
from ot_dd.parallel import mesh_for, place, split
from ot_dd.stages.artifacts import ImageSet, Prepared
from ot_dd.stages.networks import augment_config
from ot_dd.training.views import batches_per_epoch, mean_logits, view_batch
from ot_dd.workdir import WorkDir


class SoftLabels(NamedTuple):
    """Soft labels of every view of a set.

    Attributes:
      logits: fp16 `[views, batches, size, classes]`, or None: made during training.
      teachers: how many of the ordered teachers wrote them.
      seed: the integer the views are replayed from.
      views: number of passes with labels; later passes start again at the first.
      key: fingerprint of the recipe.
    """

    logits: np.ndarray | None
    teachers: int
    seed: int
    views: int
    key: str

    def bytes(self) -> int:
        """Returns the size of the stored labels."""
        return 0 if self.logits is None else int(self.logits.nbytes)


def teachers_for(config, ipc: int) -> int:
    """Returns the ensemble's size at so many images per class."""
    return by_ipc(config.lia.teachers_by_ipc, ipc)


def views_of(config, count: int) -> tuple[int, int, int]:
    """Returns the batches of a pass over `count` images, their size, and the passes."""
    batches, size = batches_per_epoch(count, config.student.batch_size)
    epochs = max(1, config.student.steps // batches)
    return batches, size, min(config.lia.views or epochs, epochs)


def relabel(
    config, workdir: WorkDir, prepared: Prepared, image_set: ImageSet, *, teachers: int
) -> SoftLabels:
    """Writes the soft labels of a set's augmented views.

    Args:
      config: the whole config; `lia`, `student` and `data.augment` matter.
      workdir: where labels are kept.
      prepared: the teachers.
      image_set: the images.
      teachers: use the first so many of the ordered teachers.

    Returns:
      The labels; without logits when `lia.mode` is "online".
    """
    images, labels = image_set.flat()
    batches, size, views = views_of(config, len(images))
    seed = config.seed * 1000 + image_set.seed
    augment = augment_config(config.data.augment)
    teacher_keys = list(prepared.teacher_keys[:teachers])
    key = fingerprint(
        image_set.key, teacher_keys, views, size, config.data.augment, seed
    )
    if config.lia.mode == "online":
        return SoftLabels(None, teachers, seed, views, key)

    name = f"labels-{image_set.name}-{image_set.seed}-{key}"

    mesh = mesh_for(size)

    @cache
    def placed():
        """Not before a label is made: most runs find them all there."""
        ensemble = prepared.teachers[:teachers]
        inputs = jnp.asarray(images), labels, jax.random.key(seed), ensemble
        return place(inputs, mesh, strategy="fsdp")

    def of_views(rows):
        static = (batches, size, len(rows), augment)
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            traced = write_labels.trace(static, rows.start, *placed())
            operations = traced_flops(traced)
            workdir.count_flops(f"{name}-{rows.start}", operations, everyone=True)
            return np.asarray(write_labels(static, rows.start, *placed()))

    shape = views, batches, size, len(prepared.dataset.class_names)
    # Parts do not depend on how many processes share them: a resumed run may have more.
    many = 2 * np.prod(shape, dtype=float) > _LARGE
    with workdir.turn(name):
        part = -(-views // _PARTS) if many else views
        stored = workdir.records(name, shape, np.float16, part, of_views)
    return SoftLabels(np.asarray(stored), teachers, seed, views, key)


_LARGE, _PARTS = 16e6, 16  # Labels of so many bytes are written in so many parts.


@partial(jax.jit, static_argnums=0)
def write_labels(static, first, images, labels, key, teachers):
    """Returns the labels of `views` views from the view `first` on.

    Args:
      static: batches of a pass, their size, views, and the augmentation.
      first: the first view.
      images: the set's images `[n, h, w, c]`.
      labels: their classes `[n]`.
      key: what the views are made from.
      teachers: the ensemble.
    """
    batches, size, views, augment = static

    def one(index):
        epoch, batch = first + index // batches, index % batches
        augmented, _, _ = view_batch(images, labels, key, epoch, batch, size, augment)
        return mean_logits(teachers, split(augmented)).astype(jnp.float16)

    logits = jax.lax.map(one, jnp.arange(views * batches))
    return logits.reshape(views, batches, size, -1)


def view_parameters(config, image_set: ImageSet, soft: SoftLabels) -> dict:
    """Returns every view's rows and augmentation parameters, for other frameworks.

    Returns:
      Arrays with leading axes `[views, batches]`, one for each `AugmentParams` field,
      and `rows`, the images of each batch in the set's flat order.
    """
    images, _ = image_set.flat()
    batches, size = batches_per_epoch(len(images), config.student.batch_size)
    augment = augment_config(config.data.augment)
    rows, key = jnp.arange(len(images)), jax.random.key(soft.seed)

    @jax.jit
    def one(index):
        pixels = jnp.zeros(images.shape, images.dtype)  # Only their shape matters.
        epoch, batch = index // batches, index % batches
        _, own, params = view_batch(pixels, rows, key, epoch, batch, size, augment)
        return {"rows": own, **params._asdict()}

    made = jax.lax.map(one, jnp.arange(soft.views * batches))
    return {
        name: np.asarray(value).reshape(soft.views, batches, *value.shape[1:])
        for name, value in made.items()
    }
