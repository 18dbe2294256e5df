"""The compiled programs of a run, from its config and the sizes of its data alone.

Each is what the pipeline itself runs, traced on shapes in place of arrays: nothing is
read, initialised or computed.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from ot_dd import models
from ot_dd.config import options
from ot_dd.data import Stream
from ot_dd.parallel import place, worth_dividing
from ot_dd.stages import batched, networks, refine, relabel, sample, study, train
from ot_dd.stages.vocabulary import CHANGES, D4M_STRENGTH
from ot_dd.training import trace_steps
from ot_dd.training.loop import CHUNK
from ot_dd.training.students import trace_student


class Sizes(NamedTuple):
    """Sizes of a data set.

    Attributes:
      images: training images.
      test: images to evaluate on.
      classes: number of classes.
      shape: of an image, `(h, w, c)`.
    """

    images: int
    test: int
    classes: int
    shape: tuple[int, int, int]


class Slice(NamedTuple):
    """The devices of a TPU slice.

    Attributes:
      name: such as `v5e:16x16`.
      mesh: all chips.
      host: those of one host.
      hosts: how many hosts.
    """

    name: str
    mesh: Mesh
    host: Mesh
    hosts: int


class Program(NamedTuple):
    """One program of a run.

    Attributes:
      stage: which stage runs it.
      name: what it does.
      trace: () -> what `jax.jit(...).trace` returns.
      runs: how often the whole run has it run, one after another on the same chips.
      chips: how many chips one run is on; the others are at work on other runs.
      product: runs that the distilled set itself needs; the rest is evaluation.
      advice: the config fields that make it smaller.
      note: what is wasteful about it.
    """

    stage: str
    name: str
    trace: Callable[[], Any]
    runs: float
    chips: int
    product: float
    advice: str
    note: str = ""


def programs(config, sizes: Sizes, pod: Slice) -> Iterator[Program]:
    """Yields the programs in the order of a run.

    Networks whose weights the config names are not trained. Memory of other stages'
    arrays is not counted.

    Args:
      config: the whole config, valid.
      sizes: of its data.
      pod: the devices.
    """
    # Weights need not be here: what they are of is what the config says.
    untrained = config.copy_and_resolve_references()
    untrained.autoencoder.weights = ""
    made = _Networks(untrained, sizes)
    yield from _training(config, sizes, pod, made)
    yield from _sampling(config, sizes, pod, made)
    if config.refine.steps:
        yield _refinement(config, sizes, pod, made)
    yield from _students(config, sizes, pod, made)


def label_bytes(config, sizes: Sizes) -> int:
    """Returns the bytes of one set's stored soft labels; 0 when they are made online."""
    if config.lia.mode == "online":
        return 0
    batches, size, views = relabel.views_of(config, config.ipc * sizes.classes)
    return 2 * views * batches * size * sizes.classes


class _Networks:
    """Shapes of every network that `prepare` makes."""

    def __init__(self, config, sizes):
        key = jax.random.key(0)

        def shapes(network):
            return jax.eval_shape(network.init, key)

        self.teachers = {
            name: networks.classifier(config, name, sizes.shape, sizes.classes)
            for name in config.teachers.models
        }
        self.surrogate_training = networks.surrogate(config, sizes.shape, sizes.classes)
        slots = shapes(self.surrogate_training).model_state
        chosen = config.surrogate.checkpoints
        self.surrogate = self.surrogate_training.artifact(
            shapes(self.surrogate_training).replace(
                model_state=jax.tree.map(
                    lambda x: jax.ShapeDtypeStruct((chosen, *x.shape[1:]), x.dtype),
                    slots,
                )
            )
        )
        self.ensemble = tuple(
            network.artifact(shapes(network)) for network in self.teachers.values()
        )
        image = jax.ShapeDtypeStruct((1, *sizes.shape), jnp.float32)
        self.autoencoder_training = None
        if config.autoencoder.model == "identity":
            channels = jax.ShapeDtypeStruct(sizes.shape[-1:], jnp.float32)
            self.autoencoder = networks.Autoencoder(
                {}, channels, channels, None, sizes.shape, 0
            )
        else:
            training = networks.autoencoder(config, sizes.shape)
            self.autoencoder_training = training
            made = training.artifact(shapes(training))
            raw = jax.eval_shape(lambda a, x: a.moments(x)[0], made, image)
            channels = jax.ShapeDtypeStruct(raw.shape[-1:], jnp.float32)
            self.autoencoder = made.replace(mean=channels, std=channels)
        latent = jax.eval_shape(batched.encode, self.autoencoder, image)
        self.latent_shape = latent.shape[1:]
        self.denoiser_training = networks.denoiser(
            config, self.latent_shape, sizes.classes
        )
        self.denoiser = self.denoiser_training.artifact(shapes(self.denoiser_training))


def _training(config, sizes, pod, made) -> Iterator[Program]:
    """Yields the training of every network, and the latents of the images."""
    labels = _column((sizes.images,), np.int32)
    images = _column((sizes.images, *sizes.shape), np.uint8)
    latents = _column((sizes.images, *made.latent_shape), np.float32)
    stored = images.size * 4 > config.data.in_memory_gb * 1e9
    critics = made.ensemble[: config.autoencoder.feature_teachers]

    def columns(settings, *parts):
        """Returns what a step reads: a stream, or what lies on the device."""
        if stored:
            return Stream(parts, settings.batch_size, 0)
        return tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in parts)

    def training(name, network, settings, data, field):
        def traced():
            state = jax.eval_shape(network.init, jax.random.key(0))
            return trace_steps(
                network.step_fn, state, data, _key(), settings.steps,
                mesh=pod.mesh, strategy=config.parallel.strategy,
            )[0]  # fmt: skip

        runs = settings.steps / min(_length(data), settings.steps)
        advice = f"parallel.strategy='fsdp', {field}.batch_size"
        if field != "surrogate":
            advice += f", or {field}.weights of a trained network"
        note = ""
        if settings.batch_size % pod.mesh.size:
            note = (
                f"config.{field}.batch_size {settings.batch_size} is no multiple of "
                f"{pod.mesh.size} chips, and so each of them computes all of it"
            )
        return Program(
            "prepare", f"train {name}", traced, runs, pod.mesh.size, runs, advice, note
        )

    for name, network in made.teachers.items():
        if not config.teachers.weights.get(name, ""):
            data = columns(config.teachers, images, labels)
            yield training(
                f"teacher {name}", network, config.teachers, data, "teachers"
            )
    data = columns(config.surrogate, images, labels)
    yield training(
        "surrogate", made.surrogate_training, config.surrogate, data, "surrogate"
    )
    if made.autoencoder_training and not config.autoencoder.weights:
        data = columns(config.autoencoder, images), critics
        yield training(
            "autoencoder", made.autoencoder_training, config.autoencoder, data,
            "autoencoder",
        )  # fmt: skip
    yield _parts(
        "prepare", "encode images", batched.encode, made.autoencoder, images, pod, 1, 1,
        "autoencoder.options.slices",
    )  # fmt: skip
    if not config.denoiser.weights:
        data = columns(config.denoiser, latents, labels)
        yield training(
            "denoiser", made.denoiser_training, config.denoiser, data, "denoiser"
        )


def _sampling(config, sizes, pod, made) -> Iterator[Program]:
    """Yields class gradients, guided and plain sampling, and the decoding of latents."""
    names = study.sets_of(config)
    sets = config.study.num_sets
    guided = sum(name in ("ot_dd", "igd") or _is_resampled(name) for name in names)
    # D4M goes through a share of the steps; DDOQ's images are D4M's.
    shares = {"diffusion": 1.0, "minimax": 1.0, "d4m": D4M_STRENGTH}
    sampled = {"d4m" if name == "quantised" else name for name in names}
    plain = [shares[name] for name in sampled if name in shares]
    batch = sample.class_batch(config, sizes.classes, pod.mesh)
    batches = -(-sizes.classes // batch)
    latents = _column((sizes.classes * config.ipc, *made.latent_shape), np.float32)

    def chain(terms):
        return lambda: _sampler(config, pod, made, terms, batch)

    active = sample.make_terms(config, tuple(config.guidance.terms))
    if any(term.name == "influence" for term in active):
        yield Program(
            "sample", "class gradients",
            lambda: _class_gradients(config, sizes, pod, made, batch),
            batches * guided * sets, pod.mesh.size, batches,
            "surrogate.gradient_images",
        )  # fmt: skip
    yield Program(
        "sample", "guided sampling", chain(active), batches * guided * sets,
        pod.mesh.size, batches,
        "sampler.class_batch, or denoiser.options.remat=True",
    )  # fmt: skip
    if plain:
        yield Program(
            "sample", "plain sampling", chain(sample.make_terms(config, ())),
            batches * sum(plain) * sets, pod.mesh.size, 0, "sampler.class_batch",
        )  # fmt: skip
    yield _parts(
        "sample", "decode latents", batched.decode_bytes, made.autoencoder, latents, pod,
        (guided + len(plain)) * sets, 1, "autoencoder.options.slices",
    )  # fmt: skip


def _is_resampled(name: str) -> bool:
    """Returns whether an ablation changes more than what refinement does to a set."""
    fields = CHANGES.get(name, {})
    return any(not field.startswith("refine.") for field in fields)


def _sampler(config, pod, made, terms, batch):
    def shapes(fn):
        return place(jax.eval_shape(fn), pod.mesh)

    def split(*shape, dtype=jnp.float32, before=()):
        one = jax.ShapeDtypeStruct((*before, *shape), dtype)
        return place(one, pod.mesh, *(None for _ in before), "data")

    names = {term.name for term in terms}
    real = targets = None
    if "transport" in names:
        count = config.guidance.transport.num_real
        points = math.prod(made.latent_shape)
        if config.guidance.transport.space == "features":
            one = jax.ShapeDtypeStruct((1, *made.latent_shape), jnp.float32)
            networks_ = made.surrogate, made.autoencoder
            points = jax.eval_shape(sample.features, *networks_, one).shape[1]
        real = split(batch, count, points), split(batch, count)
    if "influence" in names:
        size = sum(math.prod(x.shape[1:]) for x in jax.tree.leaves(made.surrogate))
        targets = split(batch, size, before=(config.surrogate.checkpoints,))
    group = config.sampler.group or config.ipc
    return sample.sampler().trace(
        sample.static_options(config, terms, group, pod.mesh),
        shapes(lambda: sample.make_process(config)),
        place(_key(), pod.mesh),
        split(batch, dtype=jnp.int32),
        *place((made.denoiser, made.autoencoder, made.surrogate), pod.mesh),
        real,
        targets,
        place(tuple(jax.ShapeDtypeStruct((), jnp.float32) for _ in terms), pod.mesh),
    )


def _class_gradients(config, sizes, pod, made, batch):
    count = config.surrogate.gradient_images
    images = jax.ShapeDtypeStruct((batch, count, *sizes.shape), jnp.uint8)
    classes = jax.ShapeDtypeStruct((batch,), jnp.int32)
    return sample.real_gradients.trace(
        pod.mesh,
        place(made.surrogate, pod.mesh),
        *place((classes, images), pod.mesh, "data"),
    )


def _refinement(config, sizes, pod, made) -> Program:
    """Returns the refinement of one set."""
    settings = config.refine
    count = config.ipc * sizes.classes

    def traced():
        fixed = refine.Fixed(
            latents=jax.ShapeDtypeStruct((count, *made.latent_shape), jnp.float32),
            autoencoder=made.autoencoder,
            denoiser=made.denoiser,
            process=jax.eval_shape(lambda: sample.make_process(config)),
            noise_key=_key(),
            classes=jax.ShapeDtypeStruct((count,), jnp.int32),
            surrogate=made.surrogate,
            teachers=made.ensemble,
        )
        return refine.trace_refinement(
            config, sizes.classes, (sizes.images, *sizes.shape), fixed, pod.mesh
        )

    names = study.sets_of(config)
    own = [name for name in names if name in CHANGES or name == "ot_dd"]
    refined = sum(CHANGES.get(name, {}).get("refine.steps") != 0 for name in own)
    runs = settings.steps / min(CHUNK, settings.steps)
    return Program(
        "refine", f"refine {settings.optimise}", traced,
        runs * refined * config.study.num_sets, pod.mesh.size, runs,
        "refine.real_batch, refine.views or refine.pool",
    )  # fmt: skip


def _students(config, sizes, pod, made) -> Iterator[Program]:
    """Yields the writing of soft labels and the training of each kind of student."""
    teachers = relabel.teachers_for(config, config.ipc)
    sets, students = config.study.num_sets, config.study.num_students
    studied = study.students_of(config, teachers)
    kinds = Counter((labels, many) for _, labels, _, many, _ in studied)
    # A set's labels by so many teachers are written once, whoever learns from them.
    labelled = {
        (name, many) for name, labels, _, many, _ in studied if labels == "soft"
    }
    module = models.create(
        config.student.model,
        num_classes=sizes.classes,
        **options(config.student.options),
    )
    count = config.ipc * sizes.classes
    images = jax.ShapeDtypeStruct((count, *sizes.shape), jnp.uint8)
    numbers = jax.ShapeDtypeStruct((count,), jnp.int32)
    batches, size, views = relabel.views_of(config, count)
    stored = config.lia.mode != "online"
    mesh = pod.host if worth_dividing(size, pod.host.size) else _one(pod)
    parts = train.part_shape(sizes.test, pod.host.size)
    evaluation = (
        jax.ShapeDtypeStruct((*parts, *sizes.shape), jnp.uint8),
        jax.ShapeDtypeStruct(parts, jnp.int32),
    )
    written_by = Counter(many for _, many in labelled) if stored else {}
    share = -(-views // pod.hosts)
    for many, number in sorted(written_by.items()):

        def written(many=many):
            augment = networks.augment_config(config.data.augment)
            inputs = images, numbers, _key(), made.ensemble[:many]
            with jax.set_mesh(mesh):
                return relabel.write_labels.trace(
                    (batches, size, share, augment), 0,
                    *place(inputs, mesh, strategy="fsdp"),
                )  # fmt: skip

        yield Program(
            "relabel", f"soft labels of {many} teachers", written, number * sets,
            mesh.size, 1, "student.batch_size or lia.mode='online'",
        )  # fmt: skip
    for (labels, many), number in kinds.items():
        recipe = train.recipe_of(config, labels)

        def trained(labels=labels, many=many, recipe=recipe):
            soft = None
            if labels == "soft":
                soft = made.ensemble[:many]
                if stored:
                    shape = views, batches, size, sizes.classes
                    soft = jax.ShapeDtypeStruct(shape, jnp.float16)
            return trace_student(
                module, recipe, views if labels == "soft" else 1,
                images, numbers, jax.ShapeDtypeStruct((count,), jnp.float32), soft,
                _key(), _key(), evaluation, mesh=mesh,
                strategy=config.parallel.strategy,
            )  # fmt: skip

        by = f" by {many} teachers" if labels == "soft" else ""
        runs = math.ceil(number * sets * students / pod.hosts) * recipe.evaluations
        yield Program(
            "train", f"student, {labels} labels{by}", trained, runs, mesh.size, 0,
            "student.batch_size, student.options or lia.mode",
        )  # fmt: skip


def _parts(stage, name, fn, autoencoder, rows, pod, runs, product, advice):
    """Returns a program of `batched.in_batches`."""
    size = min(
        batched.rows_at_once(fn, (autoencoder,), rows), -(-len(rows) // pod.mesh.size)
    )
    kind = jnp.float32
    part = jax.ShapeDtypeStruct((size * pod.host.size, *rows.shape[1:]), kind)

    def traced():
        return batched.apply_to_part.trace(
            fn, pod.host, place((autoencoder,), pod.host), place(part, pod.host, "data")
        )

    calls = -(-len(rows) // (size * pod.mesh.size))
    return Program(
        stage, name, traced, calls * runs, pod.host.size, calls * product, advice
    )


def _one(pod):
    """Returns a mesh of one chip, for programs that one chip runs."""
    return Mesh(pod.host.devices.ravel()[:1], ("data",), axis_types=(AxisType.Auto,))


def _key():
    return jax.eval_shape(lambda: jax.random.key(0))


def _length(data) -> int:
    """Returns the steps in one call of the program that trains on `data`."""
    parts = jax.tree.leaves(data, is_leaf=lambda part: isinstance(part, Stream))
    streams = [part for part in parts if isinstance(part, Stream)]
    return streams[0].chunk(CHUNK) if streams else CHUNK


def _column(shape, dtype) -> np.ndarray:
    """Returns an array of that shape and size in bytes that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)
