"""Everything about a config that can be known to be wrong before any work is done."""

import math

from ml_collections import ConfigDict

from ot_dd import diffusion, models
from ot_dd.config import ConfigError, by_ipc, nearest
from ot_dd.data.augment import AugmentConfig, check
from ot_dd.losses.students import PLANS
from ot_dd.losses.transport import EPSILON_UNITS
from ot_dd.ot import COST_NAMES
from ot_dd.parallel import STRATEGIES
from ot_dd.stages import vocabulary
from ot_dd.training.students import OPTIMISERS

_GUIDANCE = tuple(f"guidance.{term}" for term in vocabulary.TERMS)
_TRAINED = ("autoencoder", "denoiser", "teachers")
_CHOICES = {
    "autoencoder.model": (*models.names("autoencoder"), "identity"),
    "denoiser.model": models.names("denoiser"),
    "denoiser.parametrization": ("epsilon", "epsilon_sigma", "velocity"),
    "denoiser.dtype": ("float32", "bfloat16"),
    "sampler.name": tuple(diffusion.SAMPLERS),
    "guidance.not_finite": ("stop", "skip"),
    "guidance.transport.cost_fn": COST_NAMES,
    "guidance.transport.epsilon_unit": EPSILON_UNITS,
    "guidance.transport.space": diffusion.SPACES,
    **{f"{term}.normalise": diffusion.NORMALISATIONS for term in _GUIDANCE},
    "refine.optimise": vocabulary.REFINE_TARGETS,
    "refine.start": vocabulary.STARTS,
    "refine.divergence": vocabulary.DIVERGENCES,
    "refine.cost_fn": COST_NAMES,
    "parallel.strategy": STRATEGIES,
    "lia.mode": vocabulary.LABEL_MODES,
    "student.optimiser": OPTIMISERS,
    "student.plan": PLANS,
}
_LEAST = {
    **{
        f"{part}.{field}": 1
        for part in (*_TRAINED, "surrogate")
        for field in ("steps", "batch_size", "save_every")
    },
    "ipc": 1,
    "seed": 0,
    "surrogate.epochs": 1,
    "surrogate.checkpoints": 1,
    "surrogate.gradient_images": 1,
    "autoencoder.padded_size": 0,
    "autoencoder.feature_teachers": 0,
    "denoiser.plain_guidance_scale": 0.0,
    "sampler.num_steps": 1,
    "sampler.group": 0,
    "sampler.class_batch": 0,
    **{f"{term}.strength": 0.0 for term in _GUIDANCE},
    "guidance.transport.num_real": 1,
    "guidance.transport.num_iters": 1,
    "refine.steps": 0,
    "refine.real_batch": 1,
    "refine.views": 1,
    "refine.pool": 0,
    "refine.rank": 0,
    "refine.num_iters": 1,
    "refine.save_every": 1,
    "refine.epsilon_end": 0.0,
    "refine.anchor_weight": 0.0,
    "refine.clip": 0.0,
    "lia.views": 0,
    "student.steps": 1,
    "student.batch_size": 1,
    "student.evaluations": 1,
    "student.num_iters": 1,
    "student.weight_decay": 0.0,
    **{f"student.{loss}_weight": 0.0 for loss in ("ce", "mse", "kl", "ot")},
    "study.num_sets": 1,
    "study.num_students": 1,
    "study.transport_points": 1,
}
_ABOVE_ZERO = (
    "data.validation_fraction",
    *(f"{part}.learning_rate" for part in (*_TRAINED, "surrogate", "refine", "student")),
    "guidance.transport.epsilon", "refine.epsilon", "student.epsilon",
    "student.temperature", "student.kl_temperature", "student.zeta",
)  # fmt: skip
_LISTS_OF_NAMES = (
    "teachers.models", "refine.features", "guidance.terms", "study.baselines",
    "study.ablations", "study.labels",
)  # fmt: skip
_BELOW_ONE = (
    *(f"{part}.ema" for part in (*_TRAINED, "student")),
    "denoiser.label_dropout",
)


def validate(config) -> None:
    """Checks a config's fields, and those that depend on one another.

    Args:
      config: the whole config of a run.

    Raises:
      ConfigError: naming the first field that cannot be, what was found and what can be.
    """
    try:
        _validate(config)
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"a field of the config is missing, or of another type ({error}): "
            "configs/common.py has them all"
        ) from error


def _validate(config):
    for field, choices in _CHOICES.items():
        value = _get(config, field)
        want = f"must be one of {', '.join(choices)}{nearest(str(value), choices)}"
        _need(value in choices, field, value, want)
    for field, least in _LEAST.items():
        value = _get(config, field)
        _need(value >= least, field, value, f"must be at least {least}")
    for field in _ABOVE_ZERO:
        value = _get(config, field)
        _need(value > 0, field, value, "must be above 0")
    for field in _BELOW_ONE:
        value = _get(config, field)
        _need(0 <= value < 1, field, value, "must be from 0 to below 1")
    for field in _LISTS_OF_NAMES:
        names = _get(config, field)
        listed = isinstance(names, tuple | list)
        fits = listed and all(isinstance(one, str) and "," not in one for one in names)
        want = f"must be a tuple of names, as in --config.{field}=\"('a', 'b')\""
        _need(fits, field, names, want)
    _check_finite(config)
    want = "must be below 2**32"
    _need(config.seed < 2**32, "seed", config.seed, want)
    _check_names(config)
    _check_views(config)
    _check_sampling(config)
    _check_refine(config)
    _check_labels(config)
    _check_lengths(config)


def _check_finite(config, path=()):
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            _check_finite(value, (*path, name))
        elif isinstance(value, float):
            field = ".".join((*path, name))
            _need(math.isfinite(value), field, value, "must be a finite number")


def _check_names(config):
    fresh = [name.removeprefix("fresh:") for name in config.refine.features
             if name.startswith("fresh:")]  # fmt: skip
    wanted = {
        "surrogate.model": (config.surrogate.model,),
        "teachers.models": config.teachers.models,
        "student.model": (config.student.model,),
        "refine.features": fresh,
    }
    names = models.names("classifier")
    for field, values in wanted.items():
        for name in values:
            if name not in names:
                raise ConfigError(
                    f"config.{field} names {name!r}, which is no registered classifier"
                    f"{nearest(name, names)}; the registry has {', '.join(names)}"
                )
    teachers = tuple(config.teachers.models)
    _need(teachers, "teachers.models", teachers, "needs at least one network")
    _need(len(set(teachers)) == len(teachers), "teachers.models", teachers,
          "names a network twice")  # fmt: skip
    for name in config.teachers.weights:
        want = f"must be one of config.teachers.models{nearest(name, teachers)}"
        _need(name in teachers, "teachers.weights", name, want)
    for name in config.teachers.options:  # Others' options wait for their model.
        want = f"must be a registered classifier{nearest(name, names)}"
        _need(name in names, "teachers.options", name, want)
    studied = {"baselines": vocabulary.BASELINES, "ablations": vocabulary.ABLATIONS}
    for field, known in studied.items():
        for name in config.study[field]:
            _need(name in known, f"study.{field}", name,
                  f"known are {', '.join(known)}{nearest(name, known)}")  # fmt: skip
    _need(config.study.labels, "study.labels", (), "needs hard, soft or both")
    for kind in config.study.labels:
        _need(kind in ("hard", "soft"), "study.labels", kind, "must be hard or soft")
    _need(
        not (config.autoencoder.weights and config.autoencoder.model == "identity"),
        "autoencoder.model",
        config.autoencoder.model,
        "works on pixels, which leaves no use for config.autoencoder.weights",
    )


def _check_views(config):
    for field in ("crop_scale", "crop_ratio"):
        pair = tuple(config.data.augment[field])
        _need(len(pair) == 2, f"data.augment.{field}", pair, "must be (least, largest)")
    settings = config.data.augment
    kept = {k: tuple(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    try:
        check(AugmentConfig(**kept))
    except ValueError as error:
        raise ConfigError(
            str(error).replace("AugmentConfig.", "config.data.augment.", 1)
        ) from error


def _check_sampling(config):
    for term in config.guidance.terms:
        want = (
            f"known are {', '.join(vocabulary.TERMS)}{nearest(term, vocabulary.TERMS)}"
        )
        _need(term in vocabulary.TERMS, "guidance.terms", term, want)
    steps = config.sampler.num_steps
    for term in vocabulary.TERMS:
        window = tuple(config.guidance[term].window)
        _need(len(window) == 2, f"guidance.{term}.window", window,
              "must be (first, last) step")  # fmt: skip
        low, high = window
        want = f"must lie within the {steps} steps of the schedule, 0 .. {steps - 1}"
        inside = 0 <= low <= high < steps
        _need(inside, f"guidance.{term}.window", (low, high), want)
    group = config.sampler.group
    want = f"must be 1 (greedy), 0 (joint) or divide ipc={config.ipc}"
    _need(group in (0, 1) or config.ipc % group == 0, "sampler.group", group, want)
    kind = config.denoiser.parametrization
    allowed = ("flow",) if kind == "velocity" else ("ddpm", "ddim")
    if config.sampler.name != "flow":
        want = "must be from 2 to the 1000 that the denoiser is trained on"
        _need(2 <= steps <= 1000, "sampler.num_steps", steps, want)
    want = f"denoiser.parametrization={kind!r} is sampled by {' or '.join(allowed)}"
    _need(config.sampler.name in allowed, "sampler.name", config.sampler.name, want)


def _check_refine(config):
    settings = config.refine
    for name in settings.features:
        known = name.startswith("fresh:") or name in ("surrogate", "teachers")
        want = "use 'fresh:<model>', 'surrogate' or 'teachers'"
        _need(known, "refine.features", name, want)
    _need(settings.features, "refine.features", (), "needs at least one network")
    want = "needs (ipc, weight) pairs with weights of 0 or above"
    weights = settings.class_weight_by_ipc
    _check_ladder(config, "refine.class_weight_by_ipc", (int, float), 0, math.inf, want)
    trained = any(not name.startswith("fresh:") for name in settings.features)
    want = (
        "needs 'surrogate' or 'teachers' in refine.features: new networks know no class"
    )
    fits = trained or not by_ipc(weights, config.ipc)
    _need(fits, "refine.class_weight_by_ipc", weights, want)
    _need(0 < settings.tau <= 1, "refine.tau", settings.tau,
          "must be above 0 and at most 1 (balanced)")  # fmt: skip
    decoder = config.autoencoder.model != "identity" or settings.optimise != "decoder"
    want = "autoencoder.model 'identity' has no decoder: use 'latents' or 'pixels'"
    _need(decoder, "refine.optimise", settings.optimise, want)
    sampled = settings.start == "sampled" or settings.optimise != "denoiser"
    want = "'denoiser' moves what it sampled: leave refine.start at 'sampled'"
    _need(sampled, "refine.optimise", settings.optimise, want)


def _check_labels(config):
    count = len(config.teachers.models)
    want = (
        f"needs (ipc, teachers) pairs with 1 to {count} teachers each: there are so many "
        "teachers.models"
    )
    _check_ladder(config, "lia.teachers_by_ipc", (int,), 1, count, want)


def _check_ladder(config, field, types, least, most, want):
    """Checks `(least images per class, value)` pairs."""
    ladder = _get(config, field)
    fits = all(
        isinstance(pair, tuple)
        and len(pair) == 2
        and type(pair[0]) is int
        and type(pair[1]) in types
        and least <= pair[1] <= most
        for pair in ladder
    )
    _need(ladder and fits, field, ladder, want)


def _check_lengths(config):
    student, surrogate = config.student, config.surrogate
    fits = student.evaluations <= student.steps
    want = f"must be at most student.steps={student.steps}"
    _need(fits, "student.evaluations", student.evaluations, want)
    fits = surrogate.epochs <= surrogate.steps
    want = f"must be at most surrogate.steps={surrogate.steps}"
    _need(fits, "surrogate.epochs", surrogate.epochs, want)
    decays = tuple(student.decays)
    pairs = all(
        isinstance(pair, tuple) and len(pair) == 2 and 0 < pair[0] < 1
        for pair in decays
    )
    want = "needs (share of the run, factor) pairs with shares between 0 and 1"
    _need(pairs, "student.decays", decays, want)


def _need(condition, field, found, want):
    if not condition:
        raise ConfigError(f"config.{field} is {found!r}: {want}")


def _get(config, dotted):
    for part in dotted.split("."):
        config = config[part]
    return config
