"""Stage 1a: data, autoencoder, denoiser, teachers and surrogate: trained or restored.

Every network's folder under `checkpoints/` ends in a fingerprint of its config, its
data and the networks it depends on: one that is there is restored, and nothing else.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.errors import FlaxError

from ot_dd import data, diffusion, losses, models
from ot_dd.config import ConfigError, fingerprint, options, to_dict
from ot_dd.data import Batch, Stored, Stream, to_float, to_uint8
from ot_dd.losses.influence import ravel_gradient
from ot_dd.parallel import gather_rows, local_mesh, place, side_by_side, split
from ot_dd.stages import pretrained
from ot_dd.stages.artifacts import (
    Autoencoder,
    Classifier,
    Denoiser,
    Prepared,
    Surrogate,
    apply_in,
)
from ot_dd.training import fit, make_state, make_step, restore, run_flops
from ot_dd.workdir import WorkDir


def prepare(config, workdir: WorkDir, loaded=None) -> Prepared:
    """Loads the data and trains, or restores, every network of the pipeline.

    Args:
      config: the whole config.
      workdir: where networks are kept.
      loaded: what `load_data` returned, if it has been called.

    Returns:
      The `Prepared` inputs of the later stages.
    """
    dataset, train, data_key = loaded or load_data(config)
    check_shapes(config, dataset.train.images.shape[1:], len(dataset.class_names))

    def classifier(name):
        return _classifier(config, workdir, dataset, train, name, data_key)

    # The autoencoder's critics come first; what it does not need is trained beside it.
    critics = config.teachers.models[: config.autoencoder.feature_teachers]
    with side_by_side(workdir.metrics.stop, main_works=True) as submit:
        others = [
            submit(classifier, name) for name in config.teachers.models[len(critics) :]
        ]
        surrogate = submit(_surrogate, config, workdir, train, data_key)
        trained = [classifier(name) for name in critics]
        autoencoder, ae_note, ae_key = _autoencoder(
            config, workdir, dataset, train, trained, data_key
        )
        latents = _latents(workdir, autoencoder, train[0], f"latents-{ae_key}")
        denoiser, dn_note, dn_key = _denoiser(
            config, workdir, latents, train[1], ae_key
        )
        surrogate, su_note, su_key = surrogate.result()
        trained += [other.result() for other in others]
    teachers, teacher_facts, teacher_key = zip(*trained)
    if autoencoder.module is not None:
        ae_note["teacher_accuracy_on_reconstructions"] = workdir.json(
            f"reconstructions-{fingerprint(ae_key, teacher_key)}",
            partial(_on_reconstructions, autoencoder, teachers, dataset.validation),
        )
    return Prepared(
        dataset=dataset,
        autoencoder=autoencoder,
        latents=latents,
        denoiser=denoiser,
        teachers=teachers,
        surrogate=surrogate,
        key=fingerprint(data_key, ae_key, dn_key, list(teacher_key), su_key),
        data_key=data_key,
        teacher_keys=teacher_key,
        facts={
            "teachers": list(teacher_facts),
            "autoencoder": {k: v for k, v in ae_note.items() if k != "curve"},
            "surrogate": {k: v for k, v in su_note.items() if k != "curve"},
            # Networks that were loaded, with their files' hashes and licences.
            "weights": [
                {k: v for k, v in note.items() if k != "curve"}
                for note in (ae_note, dn_note, *teacher_facts)
                if "sha256" in note
            ],
            "curves": {
                "autoencoder": ae_note.get("curve"),
                "denoiser": dn_note["curve"],
                "surrogate": su_note["curve"],
                **{f"teacher {n['name']}": n["curve"] for n in teacher_facts},
            },
        },
    )


def prepare_teachers(config, workdir: WorkDir, count: int, loaded=None) -> Prepared:
    """Loads the data and trains, or restores, the first teachers and nothing else.

    Args:
      config: the whole config.
      workdir: where networks are kept.
      count: how many teachers.
      loaded: what `load_data` returned, if it has been called.

    Returns:
      A `Prepared` without autoencoder, latents, denoiser and surrogate.
    """
    dataset, train, data_key = loaded or load_data(config)
    with side_by_side(workdir.metrics.stop) as submit:
        jobs = [
            submit(_classifier, config, workdir, dataset, train, name, data_key)
            for name in config.teachers.models[:count]
        ]
        trained = [job.result() for job in jobs]
    return Prepared(
        dataset=dataset, autoencoder=None, latents=None, denoiser=None,
        teachers=tuple(teacher for teacher, _, _ in trained), surrogate=None,
        key=fingerprint(data_key, [key for _, _, key in trained]), data_key=data_key,
        teacher_keys=tuple(key for _, _, key in trained),
        facts={"teachers": [note for _, note, _ in trained]},
    )  # fmt: skip


def load_data(config):
    """Returns the data set, its training images with labels, and its key.

    The images are floats on the device, or `Stored` bytes where they are too many.
    """
    dataset = data.load(
        config.data.source, **_without(config.data, "source", "augment")
    )
    _check_sizes(config, dataset)
    images, labels = dataset.train
    is_stored = isinstance(images, Stored)
    key = fingerprint(
        _without(config.data, "in_memory_gb"), config.seed, images.shape,
        *(["stored"] if is_stored else []),
    )  # fmt: skip
    if not is_stored:
        images = to_float(jnp.asarray(images))
    return dataset, (images, jnp.asarray(labels)), key


_PART = 4096  # Images whose latents one process computes and writes at a time.


def _latents(workdir, autoencoder, images, name):
    """Returns the latents of the training images, on the device or `Stored`.

    Those of stored images go into ArrayRecord files, each written by one process; a run
    that was interrupted goes on with the parts that are missing.
    """
    if not isinstance(images, Stored):
        stored = workdir.arrays(
            name, lambda: {"latents": in_batches(_encode, (autoencoder,), images)}
        )
        return jnp.asarray(stored["latents"])
    one = jax.eval_shape(_encode, autoencoder, _first(images)).shape[1:]
    shape = (len(images), *one)
    return workdir.records(
        name, shape, np.float32, _PART, lambda rows: _encoded(autoencoder, images, rows)
    )


def _encoded(autoencoder, images, rows):
    """Returns the latents of a range of images, by all devices of this process."""
    mesh = local_mesh()
    autoencoder = place(autoencoder, mesh)
    size, parts = 32 * jax.local_device_count(), []
    for start in range(rows.start, rows.stop, size):
        part = images[start : min(start + size, rows.stop)]
        count = len(part)
        part = place(to_float(jnp.asarray(np.resize(part, (size, *part.shape[1:])))),
                     mesh, "data")  # fmt: skip
        parts.append(np.asarray(_apply(_encode, (autoencoder,), part))[:count])
    return np.concatenate(parts)


def _without(config, *names):
    return {key: value for key, value in options(config).items() if key not in names}


def _check_sizes(config, dataset):
    smallest = int(np.bincount(dataset.train.labels).min())
    if config.ipc > smallest:
        raise ValueError(
            f"config.ipc is {config.ipc}, but the smallest class of {dataset.name} has "
            f"{smallest} training images: choose at most that many"
        )


def _autoencoder_module(config, shape):
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


def check_shapes(config, shape: tuple[int, ...], num_classes: int) -> None:
    """Traces every network on the data's shape, so that none fails after hours.

    Args:
      config: the whole config.
      shape: of one image, `(h, w, c)`.
      num_classes: number of classes.

    Raises:
      ConfigError: naming the part of the config whose network does not fit.
    """
    if shape[0] != shape[1]:
        raise ConfigError(
            f"images are {shape[0]}x{shape[1]}: set config.data.image_size"
        )
    image = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    latent, key = image, jax.random.key(0)
    parts = {
        f"teachers ({name})": (name, config.teachers.options.get(name, {}))
        for name in config.teachers.models
    }
    parts["student"] = (config.student.model, config.student.options)
    parts["surrogate"] = (config.surrogate.model, config.surrogate.options)
    part = "autoencoder"
    try:
        if config.autoencoder.model != "identity":
            module, padding = _autoencoder_module(config, shape)
            empty = Autoencoder({}, 1.0, 1.0, module, shape, padding)
            variables = jax.eval_shape(lambda x: module.init(key, empty.pad(x)), image)
            latent, _ = jax.eval_shape(
                lambda v, x: empty.replace(variables=v).moments(x), variables, image
            )
        for part, (name, extra) in parts.items():  # noqa: B007 - named in the error
            module = None
            if part.startswith("teachers"):
                module = pretrained.classifier_module(
                    config.teachers, name, num_classes
                )
            if module is None:
                module = models.create(name, num_classes=num_classes, **dict(extra))
            jax.eval_shape(lambda x, m=module: m.init(key, x, train=True), image)
        part = "denoiser"
        settings = config.denoiser
        module = pretrained.denoiser_module(settings, num_classes) or models.create(
            settings.model, num_classes=num_classes, **options(settings.options)
        )
        row = jnp.zeros((2,))
        jax.eval_shape(lambda z: module.init(key, z, row, row.astype(int)), latent)
    except ConfigError:
        raise
    except (ValueError, FlaxError) as error:
        raise ConfigError(
            f"config.{part} does not fit images {shape} with latents "
            f"{latent.shape[1:]}: {error}"
        ) from error


def augment_config(config) -> data.AugmentConfig:
    """Returns the config's augmentation as the static tuple `data.augment` takes."""
    return data.AugmentConfig(**options(config))


@partial(jax.jit, static_argnums=0)
def _apply(fn, inputs, batch):
    return fn(*inputs, batch)


def _as_floats(rows) -> jax.Array:
    """Puts rows on the device; uint8 images become floats, anything else stays."""
    rows = jnp.asarray(rows)
    return to_float(rows) if rows.dtype == jnp.uint8 else rows


def in_batches(fn, inputs: tuple, batch, size: int = 500) -> np.ndarray:
    """Applies `fn(*inputs, part)` to parts of `batch`; a module-level fn compiles once.

    Of several processes each takes its share, and all get the whole.

    Args:
      fn: a function defined at module level.
      inputs: pytrees passed before the part.
      batch: `[n, ...]`, an array or `Stored`; uint8 images reach `fn` as floats.
      size: rows in a part.

    Returns:
      The concatenated results `[n, ...]`, on the host.
    """
    total = batch.shape[0]
    size = min(size, total)

    def of_rows(rows):
        out = []
        for start in range(rows.start, rows.stop, size):
            part = _as_floats(batch[start : min(start + size, rows.stop)])
            short = size - part.shape[0]
            if short:
                part = jnp.concatenate([part, jnp.repeat(part[-1:], short, axis=0)])
            out.append(np.asarray(_apply(fn, inputs, part))[: size - short])
        return np.concatenate(out)

    return gather_rows(total, of_rows)


def _encode(autoencoder, images):
    return autoencoder.encode(images)


def _decode(autoencoder, latents):
    return autoencoder.decode(latents)


def _logits(classifier, images):
    return classifier(images)


def decode_images(autoencoder: Autoencoder, latents: jax.Array) -> np.ndarray:
    """Decodes `[n, ...]` latents to float images `[n, h, w, c]` on the host."""
    return in_batches(_decode, (autoencoder,), latents)


def accuracy(classifier: Classifier, images: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of uint8 images `[n, h, w, c]` classified right."""
    logits = in_batches(_logits, (classifier,), images)
    return float((logits.argmax(-1) == labels).mean())


def _optimiser(config, num_steps):
    """AdamW under a cosine schedule with a short warm-up, gradients clipped at 1."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, max(1, min(100, num_steps // 10)), num_steps
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, weight_decay=config.weight_decay),
    )


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
        return tuple(map(_as_floats, split(data.columns)))
    rows = jax.random.randint(key, (size,), 0, data[0].shape[0])
    return split(tuple(part[rows] for part in data))


def streamed(columns: tuple, size: int, seed: int):
    """Returns columns as `fit` takes them: a `Stream` if any of them is `Stored`."""
    if not any(isinstance(column, Stored) for column in columns):
        return columns
    # On the host: the threads that read must not queue behind the device's work.
    kept = [c if isinstance(c, Stored) else np.asarray(c) for c in columns]
    return Stream(tuple(kept), size, seed)


def train_network(
    name, recipe_key, config, workdir, state, step_fn, data, seed, note, strategy
):  # fmt: skip
    """Trains under `checkpoints/<name>-<key>`, or restores; returns state and note."""
    full_name = f"{name}-{recipe_key}"
    checkpoints = workdir.checkpoints(full_name)
    try:
        finished = checkpoints.finished()
        if finished is not None:
            return restore(checkpoints, state, config.steps), finished
        seed = jax.random.key(seed)
        operations = run_flops(step_fn, state, data, seed, config.steps)
        workdir.count_flops(full_name, operations)
        with workdir.timed(full_name):
            state, curve = fit(
                name,
                state,
                step_fn,
                data,
                seed,
                num_steps=config.steps,
                checkpoints=checkpoints,
                metrics=workdir.metrics,
                save_every=config.save_every,
                strategy=strategy,
            )
            finished = {"curve": curve, **note(state)}
        checkpoints.finish(finished)
        return state, finished
    finally:
        checkpoints.close()


def _classifier(config, workdir, dataset, train, name, data_key):
    settings = config.teachers

    def scores(classifier):
        return {
            "validation_accuracy": accuracy(classifier, *dataset.validation),
            "test_accuracy": accuracy(classifier, *dataset.test),
        }

    extra = options(settings.options[name]) if name in settings.options else {}
    num_classes = len(dataset.class_names)
    if name in settings.weights:
        classifier, note, key = pretrained.classifier(settings, name, num_classes)
        full_name = f"teacher-{name}-{fingerprint(key, data_key)}"
        return (
            classifier,
            note | workdir.json(full_name, lambda: scores(classifier)),
            key,
        )
    module = models.create(name, num_classes=num_classes, **extra)
    key = fingerprint(
        data_key, name, extra, _without(settings, "models", "options", "weights")
    )
    variables = module.init(jax.random.key(config.seed), _first(train[0]), train=True)
    params = variables["params"]
    model_state = {k: v for k, v in variables.items() if k != "params"}
    tx = _optimiser(settings, settings.steps)
    augmentation = augment_config(config.data.augment)._replace(cutmix=0.0)

    def loss_fn(params, model_state, key, data_):
        pick, view = jax.random.split(key)
        images, labels = draw(pick, data_, settings.batch_size)
        images, _ = data.augment(view, images, augmentation)
        logits, updated = module.apply(
            {"params": params, **model_state}, images, train=True,
            mutable=list(model_state),
        )  # fmt: skip
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, (updated, {"accuracy": (logits.argmax(-1) == labels).mean()})

    def classifier_of(state):
        return Classifier({"params": state.ema, **state.model_state}, module, name)

    def note(state):
        return {
            "name": name,
            **scores(classifier_of(state)),
            "parameters": int(sum(x.size for x in jax.tree.leaves(state.params))),
        }

    step_fn = make_step(loss_fn, tx, ema_decay=settings.ema)
    state = make_state(params, tx, model_state)
    state, finished = train_network(
        f"teacher_{name}", key, settings, workdir, state, step_fn,
        streamed(train, settings.batch_size, config.seed + 1), config.seed + 1, note,
        config.parallel.strategy,
    )  # fmt: skip
    return classifier_of(state), finished, key


def _autoencoder(config, workdir, dataset, train, critics, data_key):
    settings = config.autoencoder
    shape = train[0].shape[1:]
    if settings.model == "identity":
        some = _as_floats(train[0][_some(train[0])])
        mean, std = some.mean((0, 1, 2)), some.std((0, 1, 2))
        key = fingerprint(data_key, "identity")
        return Autoencoder({}, mean, std, None, shape, 0), {"model": "identity"}, key
    module, padding = _autoencoder_module(config, shape)
    if settings.weights:
        made, note, key = pretrained.autoencoder(settings, module)
        made = made.replace(image_shape=shape, padding=padding)
        return made, note, fingerprint(key, data_key)
    one = jnp.ones(())
    empty = Autoencoder({}, one, one, module, shape, padding)
    variables = module.init(jax.random.key(config.seed), empty.pad(_first(train[0])))
    recipe = _without(settings, "weights", "latent_scale")
    key = fingerprint(data_key, [key for _, _, key in critics], recipe)
    critics = tuple(critic for critic, _, _ in critics)
    tx = _optimiser(settings, settings.steps)

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

    def autoencoder_of(state):
        autoencoder = empty.replace(variables={"params": state.ema})

        def moments():
            some = train[0][_some(train[0])]
            raw = in_batches(_encode, (autoencoder,), some)
            return {"mean": raw.mean((0, 1, 2)), "std": raw.std((0, 1, 2))}

        stored = workdir.arrays(f"latent-moments-{key}", moments)
        return autoencoder.replace(**jax.tree.map(jnp.asarray, stored))

    def note(state):
        autoencoder = autoencoder_of(state)
        decoded, images = _reconstruct(autoencoder, dataset.validation.images)
        return {
            "model": settings.model,
            "latent_shape": list(
                jax.eval_shape(_encode, autoencoder, images).shape[1:]
            ),
            "validation_mse": float(np.mean((decoded - images) ** 2)),
        }

    step_fn = make_step(loss_fn, tx, ema_decay=settings.ema)
    state = make_state(variables["params"], tx)
    state, finished = train_network(
        "autoencoder", key, settings, workdir, state, step_fn,
        (streamed(train[:1], settings.batch_size, config.seed + 2), critics),
        config.seed + 2, note, config.parallel.strategy,
    )  # fmt: skip
    return autoencoder_of(state), finished, key


_MANY = 2000


def _some(images):
    """Returns which rows to take for figures that not every stored image is needed for."""
    every = -(-len(images) // _MANY) if isinstance(images, Stored) else 1
    return slice(None, None, every)


def _first(images):
    """Returns two images as floats, to initialise networks with."""
    return _as_floats(images[:2])


def _reconstruct(autoencoder, images):
    """Returns the reconstructions of uint8 images and the images, as floats."""
    images = to_float(jnp.asarray(images[_some(images)]))
    latents = in_batches(_encode, (autoencoder,), images)
    return decode_images(autoencoder, jnp.asarray(latents)), images


def _on_reconstructions(autoencoder, teachers, split) -> dict[str, float]:
    """Returns the accuracy of every teacher on the reconstructions of a split."""
    decoded, _ = _reconstruct(autoencoder, split.images)
    as_bytes = np.asarray(to_uint8(jnp.asarray(decoded)))
    labels = split.labels[_some(split.images)]
    return {t.name: accuracy(t, as_bytes, labels) for t in teachers}


def denoising_loss(settings, module, num_classes: int):
    """Returns the diffusion loss of a denoiser.

    Args:
      settings: `config.denoiser`.
      module: the network.
      num_classes: number of classes; this number is the null class.

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


def _denoiser(config, workdir, latents, labels, upstream):
    settings = config.denoiser
    num_classes = int(labels.max()) + 1
    if settings.weights:
        made, note, key = pretrained.denoiser(settings, num_classes)
        scales = settings.guidance_scale, settings.cfg_channels
        return made, note, fingerprint(key, upstream, scales)
    learned_sigma = settings.parametrization == "epsilon_sigma"
    module = models.create(
        settings.model, num_classes=num_classes, learn_sigma=learned_sigma,
        **options(settings.options),
    )  # fmt: skip
    later = ("guidance_scale", "cfg_channels", "weights", "class_ids")
    key = fingerprint(upstream, _without(settings, *later))
    tx = _optimiser(settings, settings.steps)
    denoise = denoising_loss(settings, module, num_classes)

    def loss_fn(params, model_state, key, data_):
        pick, *keys = jax.random.split(key, 4)
        x0, classes = draw(pick, data_, settings.batch_size)
        return denoise(params, keys, x0, classes)[0].mean(), (model_state, {})

    zero = jnp.zeros((2,))
    variables = module.init(
        jax.random.key(config.seed), _first(latents), zero, zero.astype(jnp.int32)
    )
    step_fn = make_step(loss_fn, tx, ema_decay=settings.ema)
    state = make_state(variables["params"], tx)
    state, finished = train_network(
        "denoiser", key, settings, workdir, state, step_fn,
        streamed((latents, labels), settings.batch_size, config.seed + 3),
        config.seed + 3, lambda state: {}, config.parallel.strategy,
    )  # fmt: skip
    denoiser = Denoiser(
        state.ema, module, settings.parametrization, num_classes,
        settings.guidance_scale, settings.cfg_channels, settings.dtype,
    )  # fmt: skip
    key = fingerprint(key, settings.guidance_scale, settings.cfg_channels)
    return denoiser, finished, key


def _surrogate(config, workdir, train, data_key):
    """Trains the surrogate and keeps epochs whose class gradients turned (IGD)."""
    settings = config.surrogate
    num_classes = int(train[1].max()) + 1
    module = models.create(
        settings.model, num_classes=num_classes, **options(settings.options)
    )
    key = fingerprint(data_key, settings)
    variables = module.init(jax.random.key(config.seed), _first(train[0]))
    tx = optax.chain(
        optax.add_decayed_weights(5e-4), optax.sgd(settings.learning_rate, momentum=0.9)
    )
    augmentation = augment_config(config.data.augment)._replace(cutmix=0.0)

    def loss_fn(params, images, labels):
        logits = module.apply({"params": params}, images, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step_loss(params, model_state, key, data_):
        pick, view = jax.random.split(key)
        images, labels = draw(pick, data_, settings.batch_size)
        images, _ = data.augment(view, images, augmentation)
        return loss_fn(params, images, labels), (model_state, {})

    # The trajectory rides in the model state: slot e holds the parameters after e/E of
    # the steps, so that one resumable run gives them all.
    slots, every = settings.epochs, max(1, settings.steps // settings.epochs)
    base_step = make_step(step_loss, tx)
    params = variables["params"]
    trajectory = jax.tree.map(
        lambda p: jnp.zeros((slots + 1, *p.shape)).at[0].set(p), params
    )

    def step_fn(state, key, data_):
        trajectory = state.model_state
        state, values = base_step(state.replace(model_state={}), key, data_)
        slot = jnp.where(state.step % every == 0, state.step // every, 0)
        keep = (slot > 0) & (slot <= slots)
        row = jnp.where(keep, slot, 0)
        trajectory = jax.tree.map(
            lambda t, p: t.at[row].set(jnp.where(keep, p, t[row])),
            trajectory,
            state.params,
        )
        return state.replace(model_state=trajectory), values

    state = make_state(params, tx, trajectory)

    def note(state):
        kept = _select(loss_fn, state.model_state, train, num_classes, settings)
        return {"epochs": slots, "kept": kept}

    state, finished = train_network(
        "surrogate",
        key,
        settings,
        workdir,
        state,
        step_fn,
        streamed(train, settings.batch_size, config.seed + 4),
        config.seed + 4,
        note,
        config.parallel.strategy,
    )
    kept = jnp.asarray(finished["kept"])
    chosen = jax.tree.map(lambda t: t[kept], state.model_state)
    return Surrogate(chosen, module), finished, key


def class_batches(images, labels, classes, size: int) -> jax.Array:
    """Returns the first `size` images of the classes, floats `[classes, size, h, w, c]`.

    A class with fewer repeats its own.
    """
    rows = [np.flatnonzero(labels == c)[:size] for c in classes]
    return _as_floats(images[np.stack([np.resize(own, size) for own in rows])])


def class_gradients(loss_fn, params, classes, batches: jax.Array) -> jax.Array:
    """Returns the mean real gradient of each class `[classes, p]` at one checkpoint.

    Args:
      loss_fn: `(params, images, labels) -> scalar`.
      params: the checkpoint.
      classes: class numbers `[classes]`.
      batches: real images of each class in `[-1, 1]`, `[classes, size, h, w, c]`.
    """

    def of_class(pair):
        images, label = pair
        labels = jnp.full(images.shape[:1], label, jnp.int32)
        return ravel_gradient(loss_fn, params, images, labels)

    return jax.lax.map(of_class, (batches, classes))


def _select(loss_fn, trajectory, train, num_classes, settings):
    """Keeps an epoch when its class gradients differ enough from the last kept's."""
    labels, size = np.asarray(train[1]), settings.gradient_images

    @jax.jit
    def cosines(label, batch):
        """Between the mean gradients of a class at all epochs, `[e + 1, e + 1]`."""

        def at(params):
            return class_gradients(loss_fn, params, label[None], batch)[0]

        gradients = jax.lax.map(at, trajectory)
        norms = jnp.linalg.norm(gradients, axis=1)
        return gradients @ gradients.T / (norms[:, None] * norms[None] + 1e-12)

    # Class by class: the real images of all of them may be more than memory holds.
    mean = 0.0
    for c in range(num_classes):
        batch = class_batches(train[0], labels, [c], size)
        mean = mean + np.asarray(cosines(jnp.int32(c), batch)) / num_classes
    kept = [0]
    for epoch in range(1, settings.epochs + 1):
        if mean[kept[-1], epoch] < settings.similarity_threshold:
            kept.append(epoch)
    # As many as asked for, spread over what was kept.
    places = np.linspace(0, len(kept) - 1, min(settings.checkpoints, len(kept)))
    return [kept[int(round(p))] for p in places]


def describe(config) -> dict:
    """Returns the config as plain values, for `config.json` and the report."""
    return to_dict(config)
