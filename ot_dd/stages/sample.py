"""Stage 1b: the guided sampler makes `ipc` latents of every class (OTG)."""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ot_dd import diffusion, platform
from ot_dd.config import fingerprint, options
from ot_dd.diffusion import SAMPLERS, Term, Transport, flow_process, sample_classes
from ot_dd.diffusion.guidance import influence
from ot_dd.flops import traced_flops
from ot_dd.parallel import place, to_host
from ot_dd.stages.artifacts import ImageSet, Prepared
from ot_dd.stages.batched import decode_set, in_batches
from ot_dd.stages.networks import surrogate_loss
from ot_dd.stages.prepare import class_gradients, class_rows
from ot_dd.stages.vocabulary import TERMS
from ot_dd.workdir import WorkDir


def sample(
    config,
    workdir: WorkDir,
    prepared: Prepared,
    *,
    name: str,
    seed: int,
    terms,
    mesh=None,
) -> ImageSet:
    """Generates one set of images, steered by the named guidance terms.

    Args:
      config: the whole config; `sampler` and `guidance` matter.
      workdir: where the set is kept.
      prepared: networks and real latents.
      name: the set's name in records.
      seed: the set's seed: noise and the choice of real latents.
      terms: which guidance terms act, a subset of `vocabulary.TERMS`.
      mesh: devices with an axis "data" over which classes are split.

    Returns:
      The set, with its latents and, where the config's terms include transport, the
      transport distance along sampling, whether the term acts or only measures.
    """
    active = make_terms(config, terms)
    strengths = [term.name for term in active if term.strength]
    measured = {"transport"} & set(config.guidance.terms)
    group = config.sampler.group or config.ipc
    active_config = {term: config.guidance[term] for term in strengths}
    of_features = config.guidance.transport.space == "features"
    inputs = [prepared.denoiser_key]
    if "influence" in strengths or (of_features and "transport" in strengths):
        inputs.append(prepared.surrogate_key)
    key = fingerprint(
        inputs, sampler_recipe(config), config.ipc, config.seed, seed, active_config
    )

    # The measure is no part of the set's recipe, and so not of its key.
    measure = options(config.guidance.transport)
    if of_features:
        measure["surrogate"] = prepared.surrogate_key
    if "transport" not in strengths:
        measure = {
            k: v for k, v in measure.items() if k not in ("strength", "normalise")
        }
    file_key = fingerprint(key, measure) if measured else key
    file = f"sample-{name}-{seed}-{file_key}"

    def make():
        workdir.metrics.say(
            f"  sampling {name}, seed {seed}: "
            + (", ".join(strengths) or "no guidance")
        )
        latents, distances, left_out, operations = generate(
            config, prepared, seed, active, group, mesh, partial(workdir.piece, file)
        )
        workdir.count_flops(file, operations)
        return {
            "latents": latents,
            "images": decode_set(prepared.autoencoder, latents),
            "distances": np.asarray(distances).mean(-1),
            "left_out": left_out,
        }

    made = workdir.arrays(file, make)
    left_out = made["left_out"]
    _check_finite(config, active, left_out, f"{name}, seed {seed}")
    left_out = left_out.sum((0, 1, 3))
    if left_out.any():
        counts = ", ".join(f"{term.name} {n}" for term, n in zip(active, left_out) if n)
        workdir.metrics.say(f"  {name}, seed {seed}: gradients left out: {counts}")
    return ImageSet(
        name, seed, made["images"], made["latents"], key, made["distances"],
        left_out=int(left_out.sum()),
    )  # fmt: skip


def _check_finite(config, terms, left_out, name):
    """Stops, unless the config says to go on, where a term's gradient is not finite.

    A term that only measures moves nothing.
    """
    moves = np.array([bool(term.strength) for term in terms], bool)
    left_out = left_out * moves[:, None]
    if not left_out.any() or config.guidance.not_finite == "skip":
        return
    group, step, term, label = (int(axis[0]) for axis in np.nonzero(left_out))
    index = config.sampler.num_steps - 1 - step
    raise FloatingPointError(
        f"sampling {name}: the gradient of {terms[term].name} guidance is not finite at "
        f"step {index}, class {label}, group {group}. Lower "
        f"config.guidance.{terms[term].name}.strength, or leave such gradients out with "
        "config.guidance.not_finite='skip'"
    )


def make_terms(config, names) -> tuple[Term, ...]:
    """Returns the guidance terms of a set, in their order.

    Those named act, where their strength is not 0; transport is measured wherever it is
    among the config's terms.

    Args:
      config: the whole config.
      names: a subset of `vocabulary.TERMS`.
    """
    made = []
    for name in TERMS:
        settings = config.guidance[name]
        strength = float(settings.strength) if name in names else 0.0
        backprop = name == "influence" or (
            name == "transport" and settings.space == "clean_backprop"
        )
        if strength or (name == "transport" and name in config.guidance.terms):
            window = tuple(settings.window)
            made.append(Term(name, strength, window, settings.normalise, backprop))
    return tuple(made)


def sampler_recipe(config) -> dict:
    """Returns the sampler's fields that a sample depends on."""
    fields = options(config.sampler)
    return {name: fields[name] for name in fields if name != "class_batch"}


def make_process(config) -> diffusion.Process:
    """Returns the sampler's process: a flow, or DDPM's respaced."""
    if config.sampler.name == "flow":
        return flow_process(config.sampler.num_steps)
    return diffusion.ddpm_process(config.sampler.num_steps)


def real_points(config, prepared: Prepared, seed: int, size: int):
    """Returns `size` real points of each class and their weights.

    Points are latents, or features of the images that they decode to where
    `guidance.transport.space` says so. Classes with fewer are padded with zero-weight
    points.

    Returns:
      `(points [c, m, d], weights [c, m])`.
    """
    labels = prepared.dataset.train.labels
    rng = np.random.default_rng((config.seed, seed, 7))
    chosen, weights = [], []
    for c in range(len(prepared.dataset.class_names)):
        rows = rng.permutation(np.flatnonzero(labels == c))[:size]
        weights.append((np.arange(size) < len(rows)) / len(rows))
        chosen.append(np.resize(rows, size))
    rows = np.stack(chosen)
    points = jnp.asarray(prepared.latents[rows.ravel()])
    if config.guidance.transport.space == "features":
        networks = prepared.surrogate, prepared.autoencoder
        points = jnp.asarray(in_batches(features, networks, points))
    return points.reshape(*rows.shape, -1), jnp.asarray(np.stack(weights), jnp.float32)


def features(surrogate, autoencoder, latents: jax.Array) -> jax.Array:
    """Returns the surrogate's features `[n, d]`, at its end, of decoded latents."""
    params = jax.tree.map(lambda leaf: leaf[-1], surrogate.params)
    images = autoencoder.decode(latents)
    return surrogate.module.apply({"params": params}, images, features=True)[1]


def generate(
    config, prepared: Prepared, seed: int, terms, group: int, mesh, piece: Callable
):
    """Runs the guided sampler, `sampler.class_batch` classes at a time.

    Over a mesh every device has classes of its own and none waits for another. Of several
    batches each is kept by `piece(name, make)`.

    Returns:
      Latents `[classes, ipc, ...]`, distances `[ipc / group, steps, classes]`, gradients
      left out `[ipc / group, steps, terms, classes]`, and the floating-point operations
      of it all, gradients of real images aside.
    """
    names = {term.name for term in terms}
    num_classes = len(prepared.dataset.class_names)
    real = None
    if "transport" in names:
        real = real_points(config, prepared, seed, config.guidance.transport.num_real)
    batch = class_batch(config, num_classes, mesh)
    # Strengths are traced: every set with the same terms is one compiled program.
    strengths = tuple(jnp.float32(term.strength) for term in terms)
    key = jax.random.fold_in(jax.random.key(config.seed), 1000 + seed)
    networks = prepared.denoiser, prepared.autoencoder, prepared.surrogate
    process, key, networks, strengths = place(
        (make_process(config), key, networks, strengths), mesh
    )
    static = static_options(config, terms, group, mesh)

    def make(start, keep):
        # The last batch repeats its first classes instead of compiling another size.
        classes = np.arange(start, start + batch) % num_classes
        part = None if real is None else (real[0][classes], real[1][classes])
        targets = None
        if "influence" in names:
            targets = _targets(config, prepared, classes, mesh)
        operands = (
            process,
            key,
            place(jnp.asarray(classes, jnp.int32), mesh, "data"),
            *networks,
            place(part, mesh, "data"),
            targets,
            strengths,
        )
        operations = traced_flops(sampler().trace(static, *operands))
        latents, distances, left_out = to_host(sampler()(static, *operands))
        return {
            "latents": latents[:keep],
            "distances": distances[..., :keep],
            "left_out": left_out[..., :keep],
            "operations": np.float64(operations),
        }

    spans = [(s, min(batch, num_classes - s)) for s in range(0, num_classes, batch)]
    if len(spans) == 1:
        parts = [make(*spans[0])]
    else:  # Another number of devices has other batches.
        parts = [piece(f"{s}-{s + n}", partial(make, s, n)) for s, n in spans]
    return (
        np.concatenate([part["latents"] for part in parts]),
        np.concatenate([part["distances"] for part in parts], -1),
        np.concatenate([part["left_out"] for part in parts], -1),
        float(sum(part["operations"] for part in parts)),
    )


def static_options(config, terms, group: int, mesh) -> tuple:
    """Returns what a compiled sampler depends on, hashable: the first of its arguments.

    Sampler, options of the transport term, images per class, group, terms and mesh;
    strengths are no part of it.
    """
    settings = options(config.guidance.transport)
    names = ("cost_fn", "epsilon", "epsilon_unit", "num_iters", "space")
    return (
        config.sampler.name, tuple((name, settings[name]) for name in names),
        config.ipc, group, tuple(term._replace(strength=None) for term in terms), mesh,
    )  # fmt: skip


def class_batch(config, num_classes: int, mesh) -> int:
    """Returns how many classes are sampled at once: a multiple of the devices."""
    batch = min(config.sampler.class_batch or num_classes, num_classes)
    return batch + -batch % (1 if mesh is None else mesh.shape["data"])


def _targets(config, prepared, classes, mesh):
    """Returns the classes' mean real gradients at every checkpoint `[e, c, p]`.

    Every device has its own classes' images, which its process alone reads.
    """
    images, labels = prepared.dataset.train
    rows = class_rows(labels, classes, config.surrogate.gradient_images)

    def read(index):
        return images[rows[index[0]]]

    if mesh is None:
        own = jnp.asarray(read((slice(None),)))
    else:
        shape = *rows.shape, *images.shape[1:]
        split = NamedSharding(mesh, P("data"))
        own = jax.make_array_from_callback(shape, split, read)
    return real_gradients(
        mesh,
        place(prepared.surrogate, mesh),
        place(jnp.asarray(classes, jnp.int32), mesh, "data"),
        own,
    )


@partial(jax.jit, static_argnums=0)
def real_gradients(mesh, surrogate, classes, batches):
    """Returns mean gradients `[e, c, p]` of images `[c, n, h, w, 3]`, split by class."""
    loss_fn = surrogate_loss(surrogate.module)

    def own(surrogate, classes, batches):
        return jax.lax.map(
            lambda params: class_gradients(loss_fn, params, classes, batches),
            surrogate.params,
        )

    if mesh is not None:
        split = P("data")
        own = jax.shard_map(
            own, mesh=mesh, in_specs=(P(), split, split), out_specs=P(None, "data"),
            check_vma=False,
        )  # fmt: skip
    return own(surrogate, classes, batches)


@cache
def sampler():
    """Returns the sampler, jitted for the machine that there is: see `_run`."""
    options_ = platform.network_options()
    return jax.jit(_run, static_argnums=0, compiler_options=options_)


def _run(static, *operands):
    """Samples a batch of classes; the classes are split over the mesh, if there is one.

    Args:
      static: see `static_options`.
      *operands: those of `_sample`.
    """
    mesh = static[-1]
    body = partial(_sample, static)
    if mesh is not None:
        same, split = P(), P("data")
        body = jax.shard_map(
            body,
            mesh=mesh,
            in_specs=(*(same,) * 2, split, *(same,) * 3, split, P(None, "data"), same),
            out_specs=(split, P(None, None, "data"), P(None, None, None, "data")),
            check_vma=False,
        )
    return body(*operands)


def _sample(
    static,
    process,
    key,
    classes,
    denoiser,
    autoencoder,
    surrogate,
    real,
    targets,
    strengths,
):
    sampler, transport_options, ipc, group, terms, _ = static
    terms = tuple(t._replace(strength=s) for t, s in zip(terms, strengths))
    transport = None
    if real is not None:
        embed = partial(features, surrogate, autoencoder)
        transport = Transport(*real, **dict(transport_options), embed=embed)

    def influence_term(moment):
        return influence(
            moment, autoencoder.decode, surrogate_loss(surrogate.module),
            surrogate.params, targets,
        )  # fmt: skip

    return sample_classes(
        partial(denoiser, process),
        process,
        SAMPLERS[sampler],
        key,
        classes,
        latent_shape=_latent_shape(autoencoder),
        ipc=ipc,
        group=group,
        terms=terms,
        transport=transport,
        influence=influence_term,
    )


def _latent_shape(autoencoder):
    image = jax.ShapeDtypeStruct((1, *autoencoder.image_shape), jnp.float32)
    return jax.eval_shape(autoencoder.encode, image).shape[1:]
