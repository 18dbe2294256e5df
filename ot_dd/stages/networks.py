"""What each network of the pipeline learns from: its module, fresh state and step.

Nothing here holds data or trains: `prepare` runs the steps, and `ot_dd.plan` compiles
the same ones for machines that are not there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ot_dd import data, diffusion, losses, models
from ot_dd.config import ConfigError, options
from ot_dd.data import Batch, to_float
from ot_dd.parallel import split
from ot_dd.stages import pretrained
from ot_dd.stages.artifacts import (
    Autoencoder,
    Classifier,
    Denoiser,
    Surrogate,
    apply_in,
)
from ot_dd.training import make_state, make_step
from ot_dd.training.loop import TrainState


class Network(NamedTuple):
    """How one network is trained.

    Attributes:
      module: the network.
      init: key -> fresh `TrainState`.
      step_fn: `(state, key, data) -> (state, metrics)`, see `training.make_step`; the
        data are columns `[n, ...]` or a `Batch` of them.
      artifact: state -> what later stages use.
    """

    module: nn.Module
    init: Callable[[jax.Array], TrainState]
    step_fn: Callable
    artifact: Callable[[TrainState], Any]


def classifier(config, name: str, shape: tuple[int, ...], num_classes: int) -> Network:
    """Returns a teacher's training on `(images, labels)`.

    Args:
      config: the whole config; `teachers` and `data.augment` matter.
      name: the registered name.
      shape: of an image.
      num_classes: number of classes.
    """
    settings = config.teachers
    extra = options(settings.options[name]) if name in settings.options else {}
    module = models.create(name, num_classes=num_classes, **extra)
    tx = _optimiser(settings)
    augmentation = augment_config(config.data.augment)._replace(cutmix=0.0)

    def loss_fn(params, model_state, key, data_):
        pick, view = jax.random.split(key)
        images, labels = draw(pick, data_, settings.batch_size)
        images, _ = data.augment(view, images, augmentation)
        logits, updated = module.apply(
            {"params": params, **model_state}, images, train=True,
            mutable=list(model_state), rngs={"dropout": jax.random.fold_in(key, 2)},
        )  # fmt: skip
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, (updated, {"accuracy": (logits.argmax(-1) == labels).mean()})

    def init(key):
        variables = module.init(key, jnp.zeros((2, *shape)), train=True)
        rest = {k: v for k, v in variables.items() if k != "params"}
        return make_state(variables["params"], tx, rest)

    def artifact(state):
        return Classifier({"params": state.ema, **state.model_state}, module, name)

    step_fn = make_step(loss_fn, tx, ema_decay=settings.ema)
    return Network(module, init, step_fn, artifact)


def autoencoder(config, shape: tuple[int, ...]) -> Network:
    """Returns the autoencoder's training on `((images,), critics)`.

    Critics are classifiers whose features should survive. The artifact's latents are
    not standardised yet.

    Args:
      config: the whole config; `autoencoder` matters.
      shape: of an image.
    """
    settings = config.autoencoder
    module, padding = autoencoder_module(config, shape)
    one = jnp.ones(())
    empty = Autoencoder({}, one, one, module, shape, padding)
    tx = _optimiser(settings)

    def perceptual(teacher, x, y):
        fx, fy = teacher.features(x), jax.lax.stop_gradient(teacher.features(y))
        return jnp.mean((fx - fy) ** 2) / (jnp.mean(fy**2) + 1e-6)

    def loss_fn(params, model_state, key, data_):
        images, critics = data_
        pick, noise = jax.random.split(key)
        (images,) = draw(pick, images, settings.batch_size)
        autoencoder = empty.replace(variables={"params": params})
        mean, log_variance = autoencoder.moments(images)
        std = jnp.exp(0.5 * log_variance)
        raw = mean + std * jax.random.normal(noise, mean.shape)
        decoded = autoencoder.decode_raw(raw)
        loss = losses.autoencoder_loss(
            decoded, images, mean, log_variance,
            l1_weight=settings.l1_weight, mse_weight=settings.mse_weight,
            kl_weight=settings.kl_weight,
        ).mean()  # fmt: skip
        feature = sum(perceptual(critic, decoded, images) for critic in critics)
        feature = feature / max(1, len(critics))
        parts = {"mse": jnp.mean((decoded - images) ** 2), "feature": feature}
        return loss + settings.feature_weight * feature, (model_state, parts)

    def init(key):
        images = empty.pad(jnp.zeros((2, *shape)))
        return make_state(module.init(key, images)["params"], tx)

    def artifact(state):
        return empty.replace(variables={"params": state.ema})

    step_fn = make_step(loss_fn, tx, ema_decay=settings.ema)
    return Network(module, init, step_fn, artifact)


def denoiser(config, shape: tuple[int, ...], num_classes: int) -> Network:
    """Returns the denoiser's training on `(latents, labels)`.

    Args:
      config: the whole config; `denoiser` matters.
      shape: of a latent.
      num_classes: number of classes.
    """
    settings = config.denoiser
    module = models.create(
        settings.model, num_classes=num_classes,
        learn_sigma=settings.parametrization == "epsilon_sigma",
        **options(settings.options),
    )  # fmt: skip
    tx = _optimiser(settings)
    denoise = denoising_loss(settings, module, num_classes)

    def loss_fn(params, model_state, key, data_):
        pick, *keys = jax.random.split(key, 4)
        x0, classes = draw(pick, data_, settings.batch_size)
        return denoise(params, keys, x0, classes)[0].mean(), (model_state, {})

    def init(key):
        zero = jnp.zeros((2,))
        latents = jnp.zeros((2, *shape))
        variables = module.init(key, latents, zero, zero.astype(jnp.int32))
        return make_state(variables["params"], tx)

    def artifact(state):
        return Denoiser(
            state.ema, module, settings.parametrization, num_classes,
            settings.guidance_scale, settings.cfg_channels, settings.dtype,
        )  # fmt: skip

    step_fn = make_step(loss_fn, tx, ema_decay=settings.ema)
    return Network(module, init, step_fn, artifact)


def surrogate(config, shape: tuple[int, ...], num_classes: int) -> Network:
    """Returns the training on `(images, labels)` of influence guidance's surrogate.

    The trajectory rides in the model state: slot e holds the parameters after e/E of
    the steps, so that one resumable run gives them all. The artifact has all slots.

    Args:
      config: the whole config; `surrogate` and `data.augment` matter.
      shape: of an image.
      num_classes: number of classes.
    """
    settings = config.surrogate
    module = models.create(
        settings.model, num_classes=num_classes, **options(settings.options)
    )
    tx = optax.chain(
        optax.add_decayed_weights(5e-4), optax.sgd(settings.learning_rate, momentum=0.9)
    )
    augmentation = augment_config(config.data.augment)._replace(cutmix=0.0)
    loss_of = surrogate_loss(module)

    def step_loss(params, model_state, key, data_):
        pick, view = jax.random.split(key)
        images, labels = draw(pick, data_, settings.batch_size)
        images, _ = data.augment(view, images, augmentation)
        return loss_of(params, images, labels), (model_state, {})

    slots, steps = settings.epochs, settings.steps
    base_step = make_step(step_loss, tx)

    def step_fn(state, key, data_):
        trajectory = state.model_state
        state, values = base_step(state.replace(model_state={}), key, data_)
        row = state.step * slots // steps
        keep = row > (state.step - 1) * slots // steps
        trajectory = jax.tree.map(
            lambda t, p: t.at[row].set(jnp.where(keep, p, t[row])),
            trajectory,
            state.params,
        )
        return state.replace(model_state=trajectory), values

    def init(key):
        params = module.init(key, jnp.zeros((2, *shape)))["params"]
        trajectory = jax.tree.map(
            lambda p: jnp.zeros((slots + 1, *p.shape)).at[0].set(p), params
        )
        return make_state(params, tx, trajectory, average=False)

    def artifact(state):
        return Surrogate(state.model_state, module)

    return Network(module, init, step_fn, artifact)


def fresh_network(settings, model: str, num_classes: int) -> nn.Module:
    """Returns a network that refinement takes features of, `settings` its own."""
    sizes = {"width": settings.width, "depth": settings.depth}
    sizes = {name: value for name, value in sizes.items() if value}
    return models.create(model, num_classes=num_classes, **sizes)


def surrogate_loss(module):
    """Returns the surrogate's loss `(params, images, labels) -> scalar`."""

    def loss_fn(params, images, labels):
        logits = module.apply({"params": params}, images, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return loss_fn


def denoising_loss(settings, module, num_classes: int, class_ids=()):
    """Returns the diffusion loss of a denoiser.

    Args:
      settings: `config.denoiser`.
      module: the network.
      num_classes: number of classes; this number is the null class.
      class_ids: as in `artifacts.Denoiser`.

    Returns:
      `(params, keys, x0 [b, ...], classes [b]) -> (loss [b], predicted x0 [b, ...])`,
      with three keys: of times, noise and dropped labels.
    """
    learned_sigma = settings.parametrization == "epsilon_sigma"
    process = diffusion.ddpm_process(1000)

    def loss_fn(params, keys, x0, classes):
        times, noise, drop = keys
        size = x0.shape[0]
        eps = jax.random.normal(noise, x0.shape)
        dropped = jax.random.bernoulli(drop, settings.label_dropout, (size,))
        classes = jnp.where(dropped, num_classes, classes)
        if class_ids:
            classes = jnp.asarray(class_ids)[classes]

        def apply(z, time):
            return apply_in(settings.dtype, module, params, z, time, classes)

        if settings.parametrization == "velocity":
            # Logit-normal times (Esser et al., ICML 2024): most steps in the middle.
            t = jax.nn.sigmoid(jax.random.normal(times, (size,)))
            wide = t.reshape(-1, *(1,) * (x0.ndim - 1))
            z = (1 - wide) * x0 + wide * eps
            output = apply(z, 1000.0 * t)
            return losses.flow_loss(output, x0, eps), z - wide * output
        i = jax.random.randint(times, (size,), 0, 1000)
        z = diffusion.process.add_noise(process, i, x0, eps)
        output = apply(z, process.timestep[i])
        loss = losses.epsilon_loss(
            output, x0, eps, i, process, learned_sigma=learned_sigma
        )
        kind = settings.parametrization
        return loss, diffusion.predict(process, i, z, output, parametrization=kind).x0

    return loss_fn


def autoencoder_module(config, shape: tuple[int, ...]):
    """Returns the autoencoder and the padding at each end that the images get."""
    settings = config.autoencoder
    module = pretrained.autoencoder_module(settings) or models.create(
        settings.model, image_channels=shape[-1], **options(settings.options)
    )
    size = settings.padded_size or shape[0] + -shape[0] % module.factor
    if size < shape[0] or (size - shape[0]) % 2 or size % module.factor:
        raise ConfigError(
            f"config.autoencoder.padded_size is {settings.padded_size}: images of "
            f"{shape[0]} pixels need an even number of extra pixels and a size that "
            f"the autoencoder's factor {module.factor} divides"
        )
    return module, (size - shape[0]) // 2


def augment_config(config) -> data.AugmentConfig:
    """Returns the config's augmentation as the static tuple `data.augment` takes."""
    return data.AugmentConfig(**options(config))


def draw(key, data, size: int):
    """Draws a batch with replacement: no epoch state to keep for an exact resume.

    Args:
      key: says which rows.
      data: columns `[n, ...]`, or a `Batch` that has been drawn by a `Stream`.
      size: rows to draw.

    Returns:
      The columns' rows, with images as floats, divided among the devices.
    """
    if isinstance(data, Batch):
        return tuple(map(as_floats, split(data.columns)))
    rows = jax.random.randint(key, (size,), 0, data[0].shape[0])
    return tuple(map(as_floats, split(tuple(part[rows] for part in data))))


def as_floats(rows) -> jax.Array:
    """Puts rows on the device; uint8 images become floats, anything else stays."""
    rows = jnp.asarray(rows)
    return to_float(rows) if rows.dtype == jnp.uint8 else rows


def _optimiser(config):
    """AdamW under a cosine schedule with a short warm-up, gradients clipped at 1."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        config.learning_rate,
        max(1, min(100, config.steps // 10)),
        config.steps,
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, weight_decay=config.weight_decay),
    )
