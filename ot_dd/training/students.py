"""Student training: one compiled program from each evaluation to the next."""

import contextlib
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ot_dd import data, losses
from ot_dd.flops import flops
from ot_dd.parallel import keep, place, split
from ot_dd.training.loop import TrainState, make_state, make_step
from ot_dd.training.schedules import smoothing_cosine, step_decay
from ot_dd.training.views import batches_per_epoch, mean_logits, view_batch

OPTIMISERS = ("adamw", "adam", "sgd")


class Recipe(NamedTuple):
    """How a student is trained; hashable, so that equal recipes compile once.

    Attributes:
      labels: "hard" (cross-entropy on CutMix's mixed labels) or "soft"
        (`losses.student_loss`, with the un-mixed hard label, as EDC does).
      steps: optimisation steps.
      batch_size: images in a step.
      optimiser: one of `OPTIMISERS`.
      learning_rate: its peak rate.
      weight_decay: AdamW's decay of matrices, or SGD's of everything.
      zeta: of the smoothing cosine schedule.
      decays: `(share of the run, factor)` pairs of a step schedule, in place of the
        cosine; empty for the cosine.
      ema: decay of the parameters' average, which is what is evaluated.
      ce_weight: see `losses.student_loss`.
      mse_weight: see there.
      ot_weight: see there.
      kl_weight: see there.
      kl_temperature: see there.
      temperature: see `losses.logit_matching`.
      epsilon: see there.
      num_iters: see there.
      plan: see there.
      evaluations: evenly spaced evaluations; the last is the final accuracy.
      augment: the augmentation of the views; DSA's has no replay, and so hard labels.
    """

    labels: str
    steps: int
    batch_size: int
    optimiser: str
    learning_rate: float
    weight_decay: float
    zeta: float
    decays: tuple[tuple[float, float], ...]
    ema: float
    ce_weight: float
    mse_weight: float
    ot_weight: float
    kl_weight: float
    kl_temperature: float
    temperature: float
    epsilon: float
    num_iters: int
    plan: str
    evaluations: int
    augment: data.AugmentConfig | data.DSA


class Curve(NamedTuple):
    """Accuracy along a student's training.

    Attributes:
      accuracy: share of evaluation images classified right `[evaluations]`.
      loss: mean training loss before each evaluation `[evaluations]`.
      transport: the same of the transport distance between logits and soft labels,
        whether it is part of the loss or not; zero with hard labels.
    """

    accuracy: jax.Array
    loss: jax.Array
    transport: jax.Array


class Progress(NamedTuple):
    """A student in training: its state, and its curve as far as it has come."""

    state: TrainState
    curve: Curve


class Saved(Protocol):
    """Where students in training are kept, so that what is ended goes on."""

    def restore(self, example: Progress) -> Progress | None:
        """Returns what was saved last, shaped like the example, or None.

        JAX arrays are donated: they do not outlive the training.
        """

    def save(self, progress: Progress) -> None:
        """Takes what there is after an evaluation; its arrays do not outlive the call."""


def train_student(
    module: nn.Module,
    recipe: Recipe,
    views: int,
    images: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    soft: Any,
    view_key: jax.Array,
    key: jax.Array,
    evaluation: tuple[jax.Array, jax.Array],
    *,
    mesh: jax.sharding.Mesh | None = None,
    strategy: str = "replicate",
    saved: Saved | None = None,
) -> Curve:
    """Trains one student from scratch and evaluates it.

    Args:
      module: the network.
      recipe: how to train.
      views: passes that soft labels exist for (1 with hard labels).
      images: the small set, uint8 `[n, h, w, c]`.
      labels: its classes `[n]`.
      weights: what each image counts in the loss `[n]`, 1 on average.
      soft: stored logits `[views, batches, size, classes]`, a tuple of teachers to
        label each view as it is made, or None with hard labels.
      view_key: what the views are made from.
      key: the student's key: initialisation and, with hard labels, its views.
      evaluation: images uint8 `[parts, b, h, w, c]` and labels `[parts, b]`; a label of
        -1 is padding. A mesh's devices divide b.
      mesh: devices that hold a part of all images each, and that every batch is divided
        among; losses, transport included, are of the whole batch.
      strategy: "replicate", or "fsdp": parameters and optimiser state are split over
        the mesh as well.
      saved: gets the student after each evaluation but the last, and is asked for one
        at first.

    Returns:
      The student's curve.

    Raises:
      ValueError: for a recipe that cannot be, or soft labels of another shape.
    """
    _check(recipe, views, images, soft)
    _check_arrays(images, labels, weights, evaluation)
    static = module, recipe, views, strategy
    arrays = (images, labels, weights, soft, view_key, key, evaluation)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        arrays = _placed(mesh, *arrays)
        if mesh is None:  # Once, and held there, as what each call returns is.
            with jax.ensure_compile_time_eval():
                device = jnp.zeros(()).device  # `jax.default_device`, where it is set.
            arrays = jax.device_put(arrays, device)
        done, progress = 0, None
        if saved is not None:
            progress = saved.restore(jax.eval_shape(partial(_begin, static), *arrays))
        if progress is None:
            progress = _begin(static, *arrays)
        else:
            done = int(_evaluations_at(progress.state.step, recipe))
            if mesh is None:
                progress = jax.device_put(progress, device)
            progress = place(progress, mesh, strategy=strategy)
        while done < recipe.evaluations:
            # One at a time: a CPU's devices that meet in two programs may wait for ever.
            progress = jax.block_until_ready(_go_on(static, progress, *arrays))
            done += 1
            if saved is not None and done < recipe.evaluations:
                saved.save(progress)
    return progress.curve


def _check(recipe, views, images, soft):
    for field, known in (("labels", ("hard", "soft")), ("optimiser", OPTIMISERS)):
        if getattr(recipe, field) not in known:
            raise ValueError(
                f"recipe.{field} is {getattr(recipe, field)!r}: must be one of {known}"
            )
    if not 1 <= recipe.evaluations <= recipe.steps:
        raise ValueError(
            f"recipe.evaluations is {recipe.evaluations}: must be from 1 to the "
            f"{recipe.steps} steps"
        )
    if recipe.labels == "hard":
        return
    # JAX would take the nearest row for one that is not there.
    wanted = (views, *batches_per_epoch(images.shape[0], recipe.batch_size))
    found = soft if isinstance(soft, tuple) else getattr(soft, "shape", ())[:3]
    if not isinstance(soft, tuple) and found != wanted:
        raise ValueError(
            f"soft must be logits [views, batches, size, classes] = {[*wanted]} + "
            f"[classes], or a tuple of teachers, found {list(found)}"
        )


def _check_arrays(images, labels, weights, evaluation):
    for name, array in (("images", images), ("evaluation images", evaluation[0])):
        if array.dtype != jnp.uint8:
            raise ValueError(f"{name} must be uint8, found {array.dtype}")
    count = images.shape[0]
    for name, array in (("labels", labels), ("weights", weights)):
        if array.shape != (count,):
            raise ValueError(
                f"{name} must be [{count}], one of each image, found {list(array.shape)}"
            )


def trace_student(
    module: nn.Module, recipe: Recipe, views: int, *arrays, mesh=None,
    strategy="replicate",
):  # fmt: skip
    """Returns the program that `train_student` runs `recipe.evaluations` times, traced.

    Its arguments may be shapes.
    """
    static = module, recipe, views, strategy
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        arrays = _placed(mesh, *arrays)
        progress = jax.eval_shape(partial(_begin, static), *arrays)
        progress = place(progress, mesh, strategy=strategy)
        return _go_on.trace(static, progress, *arrays)


def _placed(mesh, images, labels, weights, soft, view_key, key, evaluation):
    """Puts the arguments on a mesh: images by rows, labels and teachers as fsdp does."""
    if mesh is None:
        return images, labels, weights, soft, view_key, key, evaluation
    rows = "data" if images.shape[0] % mesh.size == 0 else None
    return (
        place(images, mesh, rows),
        *place((labels, weights), mesh),
        place(soft, mesh, strategy="fsdp"),
        *place((view_key, key), mesh),
        place(evaluation, mesh, None, "data"),
    )


@partial(jax.jit, static_argnums=0)
def _begin(static, *arrays):
    """Returns a fresh student, after the steps that evaluations do not divide."""
    module, recipe, _, strategy = static
    images, key = arrays[0], arrays[5]
    variables = module.init(key, data.to_float(images[:2]), train=True)
    model_state = {name: v for name, v in variables.items() if name != "params"}
    state = make_state(variables["params"], _optimiser(recipe), model_state)
    rest = recipe.steps % recipe.evaluations
    if rest:
        state, _ = _steps(static, state, rest, *arrays[:-1])
    curve = Curve(*[jnp.zeros(recipe.evaluations) for _ in Curve._fields])
    return keep(Progress(state, curve), strategy)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _go_on(static, progress, *arrays):
    """Trains a student up to its next evaluation, and evaluates it."""
    module, recipe, _, strategy = static
    length = recipe.steps // recipe.evaluations
    done = _evaluations_at(progress.state.step, recipe)
    state, values = _steps(static, progress.state, length, *arrays[:-1])
    point = Curve(
        _accuracy(module, state, arrays[-1]),
        values["loss"].mean(),
        values["transport"].mean(),
    )
    curve = jax.tree.map(lambda c, v: c.at[done].set(v), progress.curve, point)
    return keep(Progress(state, curve), strategy)


def _evaluations_at(step, recipe):
    """Returns how many evaluations a student has behind it at a step that follows one."""
    length, rest = divmod(recipe.steps, recipe.evaluations)
    return (step - rest) // length


def _accuracy(module, state, evaluation):
    """Returns the share of evaluation images that the averaged network has right."""
    variables = {"params": state.ema, **state.model_state}

    def right(part):
        images = split(data.to_float(part[0]))
        logits = module.apply(variables, images, train=False)
        return jnp.sum(logits.argmax(-1) == part[1])

    total = jnp.sum(evaluation[1] >= 0)
    return jnp.sum(jax.lax.map(right, evaluation)) / total


def _steps(static, state, length, images, labels, weights, soft, view_key, key):
    """Returns the state after so many steps, and what each of them measured."""
    module, recipe, views, strategy = static
    batches, size = batches_per_epoch(images.shape[0], recipe.batch_size)
    if recipe.labels == "hard":
        view_key = jax.random.fold_in(key, 1)
    dropout_key = jax.random.fold_in(key, 2)

    def loss_fn(params, model_state, step, _):
        epoch, batch = step // batches, step % batches
        if soft is not None:
            epoch = epoch % views
        view, rows, mix = view_batch(
            images, jnp.arange(len(images)), view_key, epoch, batch, size,
            recipe.augment,
        )  # fmt: skip
        view = split(view)
        own, weight = labels[rows], weights[rows]
        logits, updated = module.apply(
            {"params": params, **model_state}, view, train=True,
            mutable=list(model_state),
            rngs={"dropout": jax.random.fold_in(dropout_key, step)},
        )  # fmt: skip
        if recipe.labels == "hard":
            cross_entropy = optax.softmax_cross_entropy_with_integer_labels
            loss = weight * cross_entropy(logits, own)
            if mix is not None:
                other = mix.mix_index
                mixed = weight[other] * cross_entropy(logits, own[other])
                loss = mix.mix_ratio * loss + (1 - mix.mix_ratio) * mixed
            distance = jnp.zeros(())
        else:
            target = (
                mean_logits(soft, view)
                if isinstance(soft, tuple)
                else soft[epoch, batch]
            )
            # fp16 either way: replayed labels then equal the stored ones.
            target = target.astype(jnp.float16).astype(jnp.float32)
            transport = {
                "temperature": recipe.temperature, "epsilon": recipe.epsilon,
                "num_iters": recipe.num_iters,
            }  # fmt: skip
            distance = losses.logit_matching(
                jax.lax.stop_gradient(logits), target, **transport
            )
            loss = weight * losses.student_loss(
                logits,
                target,
                own,
                ce_weight=recipe.ce_weight,
                mse_weight=recipe.mse_weight,
                ot_weight=recipe.ot_weight,
                kl_weight=recipe.kl_weight,
                kl_temperature=recipe.kl_temperature,
                plan=recipe.plan,
                reduction="none",
                **transport,
            )
        return loss.mean(), (updated, {"transport": distance})

    step_fn = make_step(loss_fn, _optimiser(recipe), ema_decay=recipe.ema)

    def body(state, _):
        state, values = step_fn(state, state.step, None)
        return keep(state, strategy), values

    return jax.lax.scan(body, state, length=length)


@lru_cache(maxsize=256)
def training_flops(
    module: nn.Module, recipe: Recipe, shape: tuple[int, ...], classes: int
) -> float:
    """Returns the operations of a student's training, evaluations by one image each.

    Labels count as stored: teachers that label as they go are not in it.

    Args:
      module: the network.
      recipe: how it is trained.
      shape: of the small set, `(n, h, w, c)`.
      classes: number of classes.
    """

    def like(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    soft = None
    if recipe.labels == "soft":
        soft = like(1, *batches_per_epoch(shape[0], recipe.batch_size), classes)
    count = like(shape[0], dtype=jnp.int32)
    evaluation = like(1, 1, *shape[1:], dtype=jnp.uint8), like(1, 1, dtype=jnp.int32)
    key = jax.random.key(0)
    return flops(
        partial(train_student, module, recipe, 1),
        like(*shape, dtype=jnp.uint8), count, like(shape[0]), soft, key, key, evaluation,
    )  # fmt: skip


def _optimiser(recipe: Recipe) -> optax.GradientTransformation:
    if recipe.decays:
        rate = step_decay(recipe.learning_rate, recipe.steps, recipe.decays)
    else:
        rate = smoothing_cosine(recipe.learning_rate, recipe.steps, recipe.zeta)
    if recipe.optimiser == "sgd":  # As PyTorch's: the decay is part of the gradient.
        decay = optax.add_decayed_weights(recipe.weight_decay)
        return optax.chain(decay, optax.sgd(rate, momentum=0.9))
    if recipe.optimiser == "adam":
        return optax.adam(rate)
    return optax.adamw(
        rate,
        weight_decay=recipe.weight_decay,
        mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
    )
