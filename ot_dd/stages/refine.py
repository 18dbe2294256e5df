"""Stage 1c: optax moves the latents to lower transport distances of features.

The real and the synthetic images of a class are augmented alike and pass through a
network; the Sinkhorn divergence between the two clouds of features is the loss, and the
cross-entropy of the networks that are trained can be added. What moves is the latents,
the pixels, or the weights of the decoder or the denoiser.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import FrozenConfigDict

from ot_dd import data, ot
from ot_dd.config import by_ipc, fingerprint
from ot_dd.data import Stored, to_float, to_uint8
from ot_dd.diffusion import SAMPLERS, Process
from ot_dd.parallel import split
from ot_dd.stages.artifacts import (
    Autoencoder,
    Classifier,
    Denoiser,
    ImageSet,
    Prepared,
    Surrogate,
)
from ot_dd.stages.networks import augment_config, fresh_network
from ot_dd.stages.sample import make_process
from ot_dd.training import fit, make_state, make_step, run_flops, trace_steps
from ot_dd.workdir import WorkDir


def refine(
    config, workdir: WorkDir, prepared: Prepared, start: ImageSet, *, name=""
) -> ImageSet:
    """Optimises a set's images against transport in feature space.

    Args:
      config: the whole config; `refine` matters. `refine.steps = 0` returns `start`.
      workdir: where the run is kept; an interrupted one goes on.
      prepared: networks and real images.
      start: the set to start from.
      name: the refined set's name, default that of `start`.

    Returns:
      The refined set.
    """
    settings = _settings_of(config)
    name = name or start.name
    if not settings.steps:
        return start._replace(name=name)
    fields = {name: settings[name] for name in settings if name != "save_every"}
    inputs = _inputs(prepared, settings)
    key = fingerprint(start.key, inputs, fields, config.data.augment, config.seed)
    full_name = f"refine-{name}-{start.seed}-{key}"

    def make():
        workdir.metrics.say(f"  refining {name}, seed {start.seed}")
        view_config = _view_config(config)
        step_fn, tx, render, sources = _program_of(
            config, start.images.shape[:2], prepared.surrogate
        )
        seed = jax.random.fold_in(jax.random.key(config.seed), 2000 + start.seed)
        data_ = Data(*_real_images(prepared), _fixed(config, prepared, start), ())
        if settings.pool:
            recipe = fingerprint(
                inputs, settings.features, settings.width, settings.depth,
                settings.pool, view_config,
            )  # fmt: skip
            with workdir.turn("real features"):
                if recipe not in _KEPT:
                    workdir.metrics.say("  features of all real images")
                    _KEPT.clear()
                    _KEPT[recipe] = _real_features(
                        sources, view_config, data_.pool, data_.fixed
                    )
                data_ = data_._replace(features=_KEPT[recipe])
        flat = jnp.asarray(start.images).reshape(-1, *start.images.shape[2:])
        params = _start_params(config, data_.fixed, flat)
        state = make_state(params, tx, jnp.zeros((), jnp.int32), average=False)
        operations = run_flops(
            step_fn, state, data_, seed, settings.steps,
            strategy=config.parallel.strategy,
        )  # fmt: skip
        workdir.count_flops(full_name, operations)
        checkpoints = workdir.checkpoints(full_name)
        try:
            state, _ = fit(
                f"refine {name} {start.seed}",
                state,
                step_fn,
                data_,
                seed,
                num_steps=settings.steps,
                checkpoints=checkpoints,
                metrics=workdir.metrics,
                save_every=settings.save_every,
                strategy=config.parallel.strategy,
            )
        finally:
            checkpoints.close()
        images, latents = jax.jit(render)(state.params, data_.fixed)
        shape = start.images.shape
        return {
            "images": np.asarray(to_uint8(images)).reshape(shape),
            "latents": np.asarray(latents).reshape(*shape[:2], *latents.shape[1:]),
        }

    made = workdir.arrays(full_name, make)
    return ImageSet(
        name, start.seed, made["images"], made["latents"], key, start.distances,
        left_out=start.left_out,
    )  # fmt: skip


def trace_refinement(config, num_classes: int, pool: tuple, fixed: "Fixed", mesh):
    """Returns the program of some steps, traced for a mesh.

    Args:
      config: the whole config.
      num_classes: number of classes.
      pool: the shape of all real images, `(n, h, w, c)`.
      fixed: shapes in place of arrays.
      mesh: the devices.
    """
    settings = config.refine
    step_fn, tx, _, sources = _program_of(
        config, (num_classes, config.ipc), fixed.surrogate
    )
    most = int(_POOL_BYTES // np.prod(pool[1:], dtype=float))
    images = jax.ShapeDtypeStruct((min(pool[0], most), *pool[1:]), jnp.uint8)
    rows = jax.ShapeDtypeStruct((num_classes,), jnp.int32)
    features = ()
    if settings.pool:
        key = jax.eval_shape(lambda: jax.random.key(0))
        features = tuple(
            jax.ShapeDtypeStruct((source.count, *one.shape), one.dtype)
            for source in sources
            for one in [
                jax.eval_shape(
                    partial(_features_of, source.run, _view_config(config)),
                    jax.ShapeDtypeStruct((), jnp.int32), fixed, key, images,
                )
            ]
        )  # fmt: skip

    def start(fixed, images):
        params = _start_params(config, fixed, images)
        return make_state(params, tx, jnp.zeros((), jnp.int32), average=False)

    own = jax.ShapeDtypeStruct((fixed.classes.shape[0], *pool[1:]), jnp.uint8)
    state = jax.eval_shape(start, fixed, own)
    return trace_steps(
        step_fn, state, Data(images, rows, rows, fixed, features),
        jax.eval_shape(lambda: jax.random.key(0)), settings.steps, mesh=mesh,
        strategy=config.parallel.strategy,
    )[0]  # fmt: skip


def _inputs(prepared, settings) -> dict[str, str | tuple[str, ...]]:
    """Returns the keys of the networks that a refinement uses."""
    used = {"autoencoder": prepared.autoencoder_key}
    if settings.optimise == "denoiser":
        used["denoiser"] = prepared.denoiser_key
    if "surrogate" in settings.features:
        used["surrogate"] = prepared.surrogate_key
    if "teachers" in settings.features:
        used["teachers"] = prepared.teacher_keys
    return used


def _settings_of(config):
    """Returns the settings as they hold for the config's images per class.

    What holds at other numbers is no part of a set's name.
    """
    settings = config.refine.to_dict()
    weights = settings.pop("class_weight_by_ipc")
    settings["class_weight"] = float(by_ipc(weights, config.ipc))
    return FrozenConfigDict(settings)


def _view_config(config):
    return augment_config(config.data.augment)._replace(cutmix=0.0)


def _program_of(config, shape, surrogate):
    """Returns `_program` for a config and `(classes, ipc)`."""
    checkpoints = jax.tree.leaves(surrogate.params)[0].shape[0]
    return _program(
        _settings_of(config), _view_config(config), config.sampler.name, shape,
        checkpoints,
    )  # fmt: skip


class Fixed(NamedTuple):
    """What rendering and features need and optimisation does not change.

    Attributes:
      latents: the start's latents `[n, ...]`.
      autoencoder: latents to images.
      denoiser: for `optimise = "denoiser"`.
      process: the sampler's process.
      noise_key: the key of that sampler's noise.
      classes: classes `[n]`.
      surrogate: features of its checkpoints.
      teachers: features of the teachers.
    """

    latents: jax.Array
    autoencoder: Autoencoder
    denoiser: Denoiser
    process: Process
    noise_key: jax.Array
    classes: jax.Array
    surrogate: Surrogate
    teachers: tuple[Classifier, ...]


class Data(NamedTuple):
    """What a step reads.

    Attributes:
      pool: real images uint8 `[n, h, w, c]`, sorted by class.
      first: each class's first row `[classes]`.
      counts: each class's rows `[classes]`.
      fixed: see `Fixed`.
      features: with `refine.pool`, what `_real_features` returns.
    """

    pool: jax.Array
    first: jax.Array
    counts: jax.Array
    fixed: Fixed
    features: tuple[jax.Array, ...]


def _fixed(config, prepared, start):
    latents = jnp.asarray(start.latents)
    return Fixed(
        latents=latents.reshape(-1, *latents.shape[2:]),
        autoencoder=prepared.autoencoder,
        denoiser=prepared.denoiser,
        process=make_process(config),
        noise_key=jax.random.fold_in(jax.random.key(config.seed), 3000 + start.seed),
        classes=start.flat()[1],
        surrogate=prepared.surrogate,
        teachers=prepared.teachers,
    )


def _start_params(config, fixed: Fixed, images):
    """Returns what is optimised, before its first step; images are `[n, h, w, c]`."""
    settings = config.refine
    if settings.optimise == "latents":
        return fixed.latents
    if settings.optimise == "pixels":
        return to_float(images)
    weights = (
        fixed.autoencoder.variables["params"]
        if settings.optimise == "decoder"
        else fixed.denoiser.params
    )
    if settings.rank:
        return _low_rank(weights, settings.rank, jax.random.key(config.seed))
    return jax.tree.map(jnp.zeros_like, weights)


def _real_images(prepared):
    """Real images on the device, sorted by class, with each class's first row."""
    images, labels = prepared.dataset.train
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=len(prepared.dataset.class_names))
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    if isinstance(images, Stored):  # As many of each class as a device has room for.
        most = max(1, _POOL_BYTES * len(images) // images.nbytes // len(counts))
        order = np.concatenate(
            [order[f : f + min(n, most)] for f, n in zip(first, counts)]
        )
        counts = np.minimum(counts, most)
        first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return jnp.asarray(images[order]), jnp.asarray(first), jnp.asarray(counts)


_POOL_BYTES = 4 * 10**9


def _low_rank(params, rank, key):
    """Returns a zero update of low rank: `{"a", "b"}` in place of every matrix."""
    leaves, structure = jax.tree.flatten(params)
    updates = []
    for number, leaf in enumerate(leaves):
        if leaf.ndim < 2:
            updates.append(jnp.zeros_like(leaf))
            continue
        rows, columns = int(np.prod(leaf.shape[:-1])), leaf.shape[-1]
        own, r = jax.random.fold_in(key, number), min(rank, rows, columns)
        a = jax.random.normal(own, (rows, r)) / np.sqrt(rows)
        updates.append({"a": a, "b": jnp.zeros((r, columns))})
    return jax.tree.unflatten(structure, updates)


def _add_update(params, update):
    """Adds a full or low-rank update to a tree of parameters."""

    def add(leaf, change):
        if isinstance(change, dict):
            change = (change["a"] @ change["b"]).reshape(leaf.shape)
        return leaf + change

    return jax.tree.map(add, params, update, is_leaf=lambda x: isinstance(x, jax.Array))


def _renderer(optimise: str, sampler: str):
    """Returns `render(params, fixed) -> (images [n, h, w, c], latents [n, ...])`."""

    def latents(z, fixed):
        return fixed.autoencoder.decode(z), z

    def pixels(x, fixed):
        return x, fixed.autoencoder.encode(x)

    def decoder(update, fixed):
        weights = fixed.autoencoder.variables["params"]
        changed = {"params": _add_update(weights, update)}
        images = fixed.autoencoder.replace(variables=changed).decode(fixed.latents)
        return images, fixed.autoencoder.encode(images)

    def denoiser(update, fixed):
        # The start's latents have no known noise, so the sampler runs anew from the
        # set's own noise, and what is learnt is the update of the weights.
        network, process = fixed.denoiser, fixed.process
        network = network.replace(params=_add_update(network.params, update))
        shape = fixed.latents.shape

        @jax.checkpoint
        def body(z, i):
            noise = jax.random.normal(jax.random.fold_in(fixed.noise_key, i), shape)
            prediction = network(process, z, i, fixed.classes)
            return SAMPLERS[sampler](process, i, z, prediction, noise), None

        steps = jnp.arange(process.alpha.shape[0] - 1, -1, -1)
        z, _ = jax.lax.scan(body, jax.random.normal(fixed.noise_key, shape), steps)
        return fixed.autoencoder.decode(z), z

    targets = (latents, pixels, decoder, denoiser)
    return {target.__name__: target for target in targets}[optimise]


class Source(NamedTuple):
    """Networks whose features are compared.

    Attributes:
      count: how many there are; 0 is a new one in every step.
      run: `(key or number, images, fixed) -> (logits [n, c], features [n, d])`; logits
        of networks that are not trained say nothing and are None.
    """

    count: int
    run: Callable


def _feature_sources(settings, num_classes: int, checkpoints: int) -> list[Source]:
    """Returns the sources of `settings.features`."""

    def fresh(model):
        module = fresh_network(settings, model, num_classes)

        def run(key, images, fixed):
            if settings.pool:
                key = jax.random.fold_in(jax.random.key(0), key)
            variables = module.init(key, images[:1])
            return None, module.apply(variables, images, features=True)[1]

        return Source(settings.pool, run)

    def surrogate(number, images, fixed):
        chosen = jax.tree.map(lambda p: p[number], fixed.surrogate.params)
        module = fixed.surrogate.module
        return module.apply({"params": chosen}, images, features=True)

    def teachers(number, images, fixed):
        # Clouds of all teachers side by side, each scaled to unit mean square.
        found = [teacher.logits_and_features(images) for teacher in fixed.teachers]
        scaled = [x * jax.lax.rsqrt(jnp.mean(x**2) + 1e-12) for _, x in found]
        logits = sum(logits for logits, _ in found) / len(found)
        return logits, jnp.concatenate(scaled, axis=1)

    named = {
        "surrogate": Source(checkpoints, surrogate),
        "teachers": Source(1, teachers),
    }
    return [
        fresh(name.removeprefix("fresh:")) if name.startswith("fresh:") else named[name]
        for name in settings.features
    ]


# Real features by their recipe: a process keeps one pool's, for all of its sets.
_KEPT: dict[str, tuple[jax.Array, ...]] = {}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _features_of(run, view_config, number, fixed, key, images):
    views, _ = data.augment(key, to_float(images), view_config)
    return run(number, views, fixed)[1]


def _real_features(sources, view_config, pool, fixed, size: int = 500):
    """Returns each source's features of a view of every real image, `[count, n, d]`."""
    kept = []
    for source in sources:
        networks = []
        for number in range(source.count):
            parts = [
                _features_of(
                    source.run, view_config, jnp.int32(number), fixed,
                    jax.random.fold_in(jax.random.key(number), start),
                    pool[start : start + size],
                )
                for start in range(0, len(pool), size)
            ]  # fmt: skip
            networks.append(jnp.concatenate(parts))
        kept.append(jnp.stack(networks))
    return tuple(kept)


def feature_distance(
    synthetic: jax.Array, real: jax.Array, settings, progress: float | jax.Array = 0.0
) -> jax.Array:
    """Returns the transport distance between two feature clouds of one class.

    The Sinkhorn divergence is returned without the real cloud's own term, which is
    large for a large cloud and has no gradient in `synthetic`.

    Args:
      synthetic: `[n, d]`, differentiated.
      real: `[m, d]`.
      settings: `config.refine`: `divergence` ("sinkhorn", "distance" without
        debiasing, or "mean": the squared distance of the means, the limit of a large
        epsilon), `epsilon` in units of the mean cost, `epsilon_end`, to which it goes
        geometrically over the run (0: it stays), `tau`, `cost_fn`, `num_iters`.
      progress: share of the run that is done.
    """
    if settings.divergence == "mean":
        return jnp.sum((synthetic.mean(0) - real.mean(0)) ** 2)
    cost = ot.cost_matrix(synthetic, real, settings.cost_fn)
    epsilon = settings.epsilon
    if settings.epsilon_end:
        epsilon *= (settings.epsilon_end / settings.epsilon) ** progress
    tiny = jnp.finfo(cost.dtype).tiny ** 0.5  # Identical points have no scale.
    epsilon *= jnp.maximum(jax.lax.stop_gradient(cost.mean()), tiny)
    solver = {
        "epsilon": epsilon, "num_iters": settings.num_iters,
        "tau_a": settings.tau, "tau_b": settings.tau,
    }  # fmt: skip
    if settings.divergence == "distance":
        return ot.solve(cost, **solver).value_linear
    own = ot.cost_matrix(synthetic, synthetic, settings.cost_fn)
    return ot.solve(cost, **solver).value - 0.5 * ot.solve(own, **solver).value


@functools.lru_cache(maxsize=8)
def _program(
    settings, view_config, sampler: str, shape: tuple[int, int], checkpoints: int
):
    """Returns `(step_fn, tx, render, sources)`, the same objects for equal arguments.

    Sets of one run differ in `Data` alone, so they share one compiled program.
    """
    num_classes, ipc = shape
    sources = _feature_sources(settings, num_classes, checkpoints)
    render = _renderer(settings.optimise, sampler)
    tx = optax.chain(
        optax.clip_by_global_norm(settings.clip) if settings.clip else optax.identity(),
        optax.adam(
            optax.cosine_decay_schedule(settings.learning_rate, settings.steps, 0.1)
        ),
    )

    def loss_fn(params, step, key, data_: Data):
        pick, view, network, turn = jax.random.split(key, 4)
        rows = jax.random.uniform(pick, (num_classes, settings.real_batch))
        rows = jnp.floor(rows * data_.counts[:, None]).astype(jnp.int32)
        rows = data_.first[:, None] + rows
        synthetic, latents = render(params, data_.fixed)
        real_view, synthetic_view = jax.random.split(view)
        synthetic = jnp.repeat(synthetic, settings.views, axis=0)
        synthetic, _ = data.augment(synthetic_view, synthetic, view_config)
        real = None
        if not settings.pool:
            real = to_float(data_.pool[rows.ravel()])
            real, _ = data.augment(real_view, real, view_config)
            # Among devices: the real side's forward pass is the large one.
            real = split(real)

        def distance_by(number, source):
            def run(network, real, synthetic, data_):
                if source.count:
                    network = jax.random.randint(network, (), 0, source.count)
                logits, features = source.run(network, synthetic, data_.fixed)
                if settings.pool:
                    target = data_.features[number][network, rows]
                else:
                    target = source.run(network, real, data_.fixed)[1]
                    target = target.reshape(num_classes, settings.real_batch, -1)
                target = jax.lax.stop_gradient(target)
                features = features.reshape(num_classes, ipc * settings.views, -1)
                progress = step / settings.steps
                each = jax.vmap(lambda s, r: feature_distance(s, r, settings, progress))
                distance = each(features, target).mean()
                if logits is None or not settings.class_weight:
                    return distance, jnp.zeros(())
                cross_entropy = optax.softmax_cross_entropy_with_integer_labels
                labels = jnp.repeat(data_.fixed.classes, settings.views)
                return distance, cross_entropy(logits, labels).mean()

            return run

        which = jax.random.randint(turn, (), 0, len(sources))
        branches = [distance_by(i, source) for i, source in enumerate(sources)]
        distance, cross_entropy = jax.lax.switch(
            which, branches, network, real, synthetic, data_
        )
        loss = distance + settings.class_weight * cross_entropy
        if settings.anchor_weight:
            anchor = data_.fixed.latents
            loss += settings.anchor_weight * jnp.mean((latents - anchor) ** 2)
        return loss, (step + 1, {"distance": distance})

    return make_step(loss_fn, tx), tx, render, sources
