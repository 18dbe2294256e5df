"""Stage 1a: data, autoencoder, denoiser, teachers and surrogate: trained or restored.

Every network's folder under `checkpoints/` ends in a fingerprint of its config, its
data and the networks it depends on: one that is there is restored, and nothing else.
"""

import hashlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError

from ot_dd import data, models
from ot_dd.config import ConfigError, fingerprint, options
from ot_dd.data import Stored, Stream, to_float, to_uint8
from ot_dd.losses.influence import ravel_gradient
from ot_dd.parallel import data_mesh, place, side_by_side, to_host
from ot_dd.stages import networks, pretrained
from ot_dd.stages.artifacts import Autoencoder, Classifier, Prepared
from ot_dd.stages.batched import (
    HELD_VALUES,
    decode,
    encode,
    in_batches,
    of_rows,
)
from ot_dd.stages.networks import as_floats
from ot_dd.training import fit, restore, run_flops
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
        surrogate, trajectory, su_note, su_key = surrogate.result()
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
        trajectory=to_host(trajectory),
        data_key=data_key,
        autoencoder_key=ae_key,
        denoiser_key=dn_key,
        surrogate_key=su_key,
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
      A `Prepared` without autoencoder, latents, denoiser, surrogate and its
      trajectory.
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
        trajectory=None, data_key=data_key, autoencoder_key="", denoiser_key="",
        surrogate_key="", teacher_keys=tuple(key for _, _, key in trained),
        facts={"teachers": [note for _, note, _ in trained]},
    )  # fmt: skip


def load_data(config):
    """Returns the data set, its training images with labels, and its key.

    The images are bytes on the device, or `Stored` ones where they are too many.
    """
    dataset = data.load(
        config.data.source, **_without(config.data, "source", "augment")
    )
    check_ipc(config.ipc, dataset)
    _check_splits(config, dataset)
    images, labels = dataset.train
    is_stored = isinstance(images, Stored)
    key = fingerprint(
        _without(config.data, "source", "data_dir", "in_memory_gb"), config.seed,
        images.shape, "stored" if is_stored else "in memory", _content(dataset),
    )  # fmt: skip
    if not is_stored:
        images = jnp.asarray(images)
    return dataset, (images, jnp.asarray(labels)), key


def _content(dataset) -> str:
    """Returns a digest of labels and images, wherever their files lie."""
    digest = hashlib.blake2b(digest_size=16)
    for images, labels in (dataset.train, dataset.validation, dataset.test):
        digest.update(np.ascontiguousarray(labels))
        pixels = images.marks() if isinstance(images, Stored) else images
        digest.update(np.ascontiguousarray(pixels))
    return digest.hexdigest()


_PART = 4096  # Images whose latents one process computes and writes at a time.


def _latents(workdir, autoencoder, images, name):
    """Returns the latents of the training images, on the device or `Stored`.

    Those of stored images go into ArrayRecord files, each written by one process; a run
    that was interrupted goes on with the parts that are missing.
    """
    if not isinstance(images, Stored):
        stored = workdir.arrays(
            name, lambda: {"latents": in_batches(encode, (autoencoder,), images)}
        )
        return jnp.asarray(stored["latents"])
    one = jax.eval_shape(encode, autoencoder, _first(images)).shape[1:]
    shape = (len(images), *one)
    return workdir.records(
        name, shape, np.float32, _PART,
        lambda rows: of_rows(encode, (autoencoder,), images, rows),
    )  # fmt: skip


def _without(config, *names):
    """Returns fields as a dictionary; options that change no result are never in it."""
    kept = {key: value for key, value in options(config).items() if key not in names}
    if "options" in kept:
        kept["options"] = {
            key: value
            for key, value in options(kept["options"]).items()
            if key not in ("remat", "slices")
        }
    return kept


def check_ipc(ipc: int, dataset, field: str = "config.ipc") -> None:
    """Refuses more images per class than the smallest class has.

    Raises:
      ValueError: which begins with `field`.
    """
    smallest = int(np.bincount(dataset.train.labels).min())
    if ipc > smallest:
        raise ValueError(
            f"{field} is {ipc}, but the smallest class of {dataset.name} has "
            f"{smallest} training images: choose at most that many"
        )


def _check_splits(config, dataset):
    if len(dataset.class_names) < 2:
        raise ValueError(
            f"config.data.source is {config.data.source!r}: it has one class, "
            f"{dataset.class_names[0]!r}, and nothing to tell it from; class folders lie "
            "side by side, alone or below train/"
        )
    if not len(dataset.validation.labels):
        raise ValueError(
            f"{dataset.name} has no validation image, which teachers are judged on: "
            "classes need two training images at least to give one away "
            f"(config.data.validation_fraction is {config.data.validation_fraction})"
        )
    names = dataset.class_names
    tested = np.bincount(dataset.test.labels, minlength=len(names))
    if not tested.all():
        raise ValueError(
            f"{dataset.name} has no test image of {np.array(names)[tested == 0].tolist()}, "
            "to compare distilled images with: add some, or leave these classes out"
        )


# What networks raise that cannot be built on an image.
MISFITS = (ValueError, TypeError, IndexError, ZeroDivisionError, FlaxError)


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
            module, padding = networks.autoencoder_module(config, shape)
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
        part = "refine.features"
        for name in config.refine.features if config.refine.steps else ():
            if name.startswith("fresh:"):
                model = name.removeprefix("fresh:")
                module = networks.fresh_network(config.refine, model, num_classes)
                jax.eval_shape(lambda x, m=module: m.init(key, x), image)
        part = "denoiser"
        settings = config.denoiser
        module = pretrained.denoiser_module(settings, num_classes) or models.create(
            settings.model, num_classes=num_classes, **options(settings.options)
        )
        row = jnp.zeros((2,))
        jax.eval_shape(lambda z: module.init(key, z, row, row.astype(int)), latent)
    except ConfigError:
        raise
    except MISFITS as error:
        raise ConfigError(
            f"config.{part} does not fit images {shape} with latents "
            f"{latent.shape[1:]}: {error}"
        ) from error


def _logits(classifier, images):
    return classifier(images)


def accuracy(classifier: Classifier, images: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of uint8 images `[n, h, w, c]` classified right."""
    logits = in_batches(_logits, (classifier,), images)
    return float((logits.argmax(-1) == labels).mean())


def streamed(columns: tuple, size: int, seed: int):
    """Returns columns as `fit` takes them: a `Stream` if any of them is `Stored`."""
    if not any(isinstance(column, Stored) for column in columns):
        return columns
    # On the host: the threads that read must not queue behind the device's work.
    kept = [c if isinstance(c, Stored) else np.asarray(c) for c in columns]
    return Stream(tuple(kept), size, seed)


def train_network(
    name, recipe_key, config, workdir, init, step_fn, data, seed, note, strategy
):  # fmt: skip
    """Trains under `checkpoints/<name>-<key>`, or restores; returns state and note.

    `init` returns the fresh state; it takes time that a restored network need not.
    """
    full_name = f"{name}-{recipe_key}"
    checkpoints = workdir.checkpoints(full_name)
    try:
        finished = checkpoints.finished()
        if finished is not None:
            return restore(checkpoints, init, strategy=strategy), finished
        seed, fresh = jax.random.key(seed), [init()]
        operations = run_flops(
            step_fn, fresh[0], data, seed, config.steps, strategy=strategy
        )
        workdir.count_flops(full_name, operations)
        with workdir.timed(full_name):
            state, curve = fit(
                name,
                fresh.pop(),  # On several devices nothing else holds it then.
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
    key = fingerprint(
        data_key, name, extra,
        _without(settings, "models", "options", "weights", "save_every"),
    )  # fmt: skip
    network = networks.classifier(config, name, train[0].shape[1:], num_classes)

    def note(state):
        return {
            "name": name,
            **scores(network.artifact(state)),
            "parameters": int(sum(x.size for x in jax.tree.leaves(state.params))),
        }

    state, finished = train_network(
        f"teacher_{name}", key, settings, workdir, _fresh(network, config),
        network.step_fn, streamed(train, settings.batch_size, config.seed + 1),
        config.seed + 1, note, config.parallel.strategy,
    )  # fmt: skip
    return network.artifact(state), finished, key


def _fresh(network, config):
    """Returns a function that returns a network's state before its first step.

    As one program: operation by operation, each shape of each layer is compiled alone.
    On a mesh, where the state lies as in training: no device need hold all of it.
    """
    init = partial(network.init, jax.random.key(config.seed))
    mesh = data_mesh()
    if mesh is None:
        return jax.jit(init)
    placed = place(jax.eval_shape(init), mesh, strategy=config.parallel.strategy)
    return jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, placed))


def _autoencoder(config, workdir, dataset, train, critics, data_key):
    settings = config.autoencoder
    shape = train[0].shape[1:]
    if settings.model == "identity":
        some = as_floats(train[0][_some(train[0])])
        mean, std = some.mean((0, 1, 2)), some.std((0, 1, 2))
        key = fingerprint(data_key, "identity")
        return Autoencoder({}, mean, std, None, shape, 0), {"model": "identity"}, key
    if settings.weights:
        module, padding = networks.autoencoder_module(config, shape)
        made, note, key = pretrained.autoencoder(settings, module)
        made = made.replace(image_shape=shape, padding=padding)
        return made, note, fingerprint(key, data_key)
    recipe = _without(settings, "weights", "latent_scale", "save_every")
    key = fingerprint(data_key, [key for _, _, key in critics], recipe)
    critics = tuple(critic for critic, _, _ in critics)
    network = networks.autoencoder(config, shape)

    def autoencoder_of(state):
        autoencoder = network.artifact(state)

        def moments():
            some = train[0][_some(train[0])]
            raw = in_batches(encode, (autoencoder,), some)
            return {"mean": raw.mean((0, 1, 2)), "std": raw.std((0, 1, 2))}

        stored = workdir.arrays(f"latent-moments-{key}", moments)
        return autoencoder.replace(**jax.tree.map(jnp.asarray, stored))

    def note(state):
        autoencoder = autoencoder_of(state)
        decoded, images = _reconstruct(autoencoder, dataset.validation.images)
        return {
            "model": settings.model,
            "latent_shape": list(jax.eval_shape(encode, autoencoder, images).shape[1:]),
            "validation_mse": float(np.mean((decoded - images) ** 2)),
        }

    state, finished = train_network(
        "autoencoder", key, settings, workdir, _fresh(network, config), network.step_fn,
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
    """Returns two images as floats, to trace with."""
    return as_floats(images[:2])


def _reconstruct(autoencoder, images):
    """Returns the reconstructions of uint8 images and the images, as floats."""
    images = to_float(jnp.asarray(images[_some(images)]))
    latents = in_batches(encode, (autoencoder,), images)
    return in_batches(decode, (autoencoder,), latents), images


def _on_reconstructions(autoencoder, teachers, split) -> dict[str, float]:
    """Returns the accuracy of every teacher on the reconstructions of a split."""
    decoded, _ = _reconstruct(autoencoder, split.images)
    as_bytes = np.asarray(to_uint8(jnp.asarray(decoded)))
    labels = split.labels[_some(split.images)]
    return {t.name: accuracy(t, as_bytes, labels) for t in teachers}


def _denoiser(config, workdir, latents, labels, upstream):
    settings = config.denoiser
    num_classes = int(labels.max()) + 1
    if settings.weights:
        made, note, key = pretrained.denoiser(settings, num_classes)
        scales = settings.guidance_scale, settings.cfg_channels
        return made, note, fingerprint(key, upstream, scales)
    later = (
        "guidance_scale", "plain_guidance_scale", "cfg_channels", "weights", "class_ids",
        "save_every",
    )  # fmt: skip
    key = fingerprint(upstream, _without(settings, *later))
    network = networks.denoiser(config, latents.shape[1:], num_classes)
    state, finished = train_network(
        "denoiser", key, settings, workdir, _fresh(network, config), network.step_fn,
        streamed((latents, labels), settings.batch_size, config.seed + 3),
        config.seed + 3, lambda state: {}, config.parallel.strategy,
    )  # fmt: skip
    key = fingerprint(key, settings.guidance_scale, settings.cfg_channels)
    return network.artifact(state), finished, key


def _surrogate(config, workdir, train, data_key):
    """Trains the surrogate and keeps epochs whose class gradients turned (IGD)."""
    settings = config.surrogate
    num_classes = int(train[1].max()) + 1
    selection = "gradient_images", "checkpoints", "similarity_threshold"
    key = fingerprint(data_key, _without(settings, *selection, "save_every"))
    network = networks.surrogate(config, train[0].shape[1:], num_classes)
    loss_fn = networks.surrogate_loss(network.module)
    state, finished = train_network(
        "surrogate", key, settings, workdir, _fresh(network, config), network.step_fn,
        streamed(train, settings.batch_size, config.seed + 4), config.seed + 4,
        lambda state: {"epochs": settings.epochs}, config.parallel.strategy,
    )  # fmt: skip
    key = fingerprint(key, *(settings[name] for name in selection))

    def selected():
        return _select(loss_fn, state.model_state, train, num_classes, settings)

    finished |= {"kept": workdir.json(f"surrogate-epochs-{key}", selected)}
    every = network.artifact(state)
    chosen = jax.tree.map(lambda t: t[jnp.asarray(finished["kept"])], every.params)
    return every.replace(params=chosen), every, finished, key


def class_rows(labels, classes, size: int) -> np.ndarray:
    """Returns the first `size` rows of each class, `[classes, size]`.

    A class with fewer repeats its own.
    """
    rows = [np.flatnonzero(labels == c)[:size] for c in classes]
    return np.stack([np.resize(own, size) for own in rows])


def class_gradients(loss_fn, params, classes, batches: jax.Array) -> jax.Array:
    """Returns the mean real gradient of each class `[classes, p]` at one checkpoint.

    Args:
      loss_fn: `(params, images, labels) -> scalar`.
      params: the checkpoint.
      classes: class numbers `[classes]`.
      batches: real images of each class, `[classes, size, h, w, c]`: uint8, or floats
        in `[-1, 1]`.
    """
    # A mean over some images at a time, where all of them are more than a device holds.
    most = max(1, HELD_VALUES // max(1, batches[0, 0].size))
    count = batches.shape[1]
    size = max(n for n in range(1, count + 1) if count % n == 0 and n <= most)

    def of_class(pair):
        batch, label = pair
        labels = jnp.full((size,), label, jnp.int32)

        def of_part(images):
            return ravel_gradient(loss_fn, params, as_floats(images), labels)

        if size == count:
            return of_part(batch)
        parts = batch.reshape(-1, size, *batch.shape[1:])
        first = jnp.zeros_like(jax.eval_shape(of_part, parts[0]))
        total, _ = jax.lax.scan(lambda s, x: (s + of_part(x), None), first, parts)
        return total / len(parts)

    return jax.lax.map(of_class, (batches, classes))


def _select(loss_fn, trajectory, train, num_classes, settings):
    """Keeps an epoch when its class gradients differ enough from the last kept's."""
    labels, size = np.asarray(train[1]), settings.gradient_images

    @jax.jit
    def cosines(trajectory, label, batch):
        """Between the mean gradients of a class at all epochs, `[e + 1, e + 1]`."""

        def at(params):
            return class_gradients(loss_fn, params, label[None], batch)[0]

        gradients = jax.lax.map(at, trajectory)
        norms = jnp.linalg.norm(gradients, axis=1)
        return gradients @ gradients.T / (norms[:, None] * norms[None] + 1e-12)

    # Class by class: the real images of all of them may be more than memory holds.
    mean = 0.0
    for c in range(num_classes):
        batch = jnp.asarray(train[0][class_rows(labels, [c], size)])
        mean = mean + np.asarray(cosines(trajectory, jnp.int32(c), batch)) / num_classes
    kept = [0]
    for epoch in range(1, settings.epochs + 1):
        if mean[kept[-1], epoch] < settings.similarity_threshold:
            kept.append(epoch)
    # As many as asked for, spread over what was kept.
    places = np.linspace(0, len(kept) - 1, min(settings.checkpoints, len(kept)))
    return [kept[int(round(p))] for p in places]
