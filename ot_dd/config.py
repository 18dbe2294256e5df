"""Configs: arguments after the colon, validation before any work, fingerprints."""

import difflib
import hashlib
import json
from typing import Any

import ml_collections


class ConfigError(ValueError):
    """A config that cannot run; the message names the field and what to do."""


def to_dict(config: Any) -> Any:
    """Returns a config (or part of one) as plain JSON-ready Python values."""
    if isinstance(config, ml_collections.ConfigDict):
        return {key: to_dict(config[key]) for key in sorted(config.keys())}
    if isinstance(config, dict):
        return {str(key): to_dict(value) for key, value in sorted(config.items())}
    if isinstance(config, tuple | list):
        return [to_dict(value) for value in config]
    return config


def fingerprint(*parts: Any) -> str:
    """Returns 12 hex digits that name a recipe: equal recipes, equal names."""
    text = json.dumps([to_dict(part) for part in parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def options(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns a config section as keyword arguments."""
    return {key: config[key] for key in config.keys()}


def parse_arg(arg: str | None, *allowed: str) -> set[str]:
    """Returns the switches of `--config=file.py:switch,switch`.

    Args:
      arg: the text after the colon, or None.
      *allowed: the switches that the config knows.

    Returns:
      The switches given.

    Raises:
      ConfigError: for an unknown switch.
    """
    given = {part for part in (arg or "").split(",") if part}
    for part in sorted(given - set(allowed)):
        raise ConfigError(
            f"config argument {part!r} is unknown{nearest(part, allowed)}; "
            f"this config knows {sorted(allowed)}"
        )
    return given


def nearest(name: str, known) -> str:
    """Returns " (did you mean ...?)" when a known name is close, else nothing."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks the fields that depend on one another, before any work is done.

    Args:
      config: the whole config of a run.

    Raises:
      ConfigError: naming the first field that cannot be.
    """
    from ot_dd import models  # here, so that reading a config needs no JAX
    from ot_dd.parallel import STRATEGIES
    from ot_dd.stages import plan

    def need(condition, field, found, want):
        if not condition:
            raise ConfigError(f"config.{field} is {found!r}: {want}")

    for field in ("ipc", "study.num_sets", "study.num_students"):
        value = _get(config, field)
        need(value >= 1, field, value, "must be at least 1")
    names = models.names()
    wanted = {
        "surrogate.model": (config.surrogate.model,),
        "teachers.models": config.teachers.models,
        "student.model": (config.student.model,),
        "refine.features": tuple(
            name.removeprefix("fresh:")
            for name in config.refine.features
            if name.startswith("fresh:")
        ),
    }
    for field, values in wanted.items():
        for name in values:
            if name not in names:
                raise ConfigError(
                    f"config.{field} names {name!r}, which is no registered model"
                    f"{nearest(name, names)}; the registry has {', '.join(names)}"
                )
    for name in config.teachers.weights:
        models_ = tuple(config.teachers.models)
        want = f"must be one of config.teachers.models{nearest(name, models_)}"
        need(name in models_, "teachers.weights", name, want)
    need(
        not (config.autoencoder.weights and config.autoencoder.model == "identity"),
        "autoencoder.model",
        config.autoencoder.model,
        "works on pixels, which leaves no use for config.autoencoder.weights",
    )
    for name in config.refine.features:
        known = name.startswith("fresh:") or name in ("surrogate", "teachers")
        want = "use 'fresh:<model>', 'surrogate' or 'teachers'"
        need(known, "refine.features", name, want)
    need(
        config.refine.optimise in plan.REFINE_TARGETS,
        "refine.optimise",
        config.refine.optimise,
        f"must be one of {plan.REFINE_TARGETS}",
    )
    refine = config.refine
    ranges = {
        "epsilon": (refine.epsilon > 0, "must be above 0, in mean costs"),
        "epsilon_end": (refine.epsilon_end >= 0, "must be above 0, or 0 to stay"),
        "tau": (0 < refine.tau <= 1, "must be above 0 and at most 1 (balanced)"),
        "real_batch": (refine.real_batch >= 1, "must be at least 1"),
        "views": (refine.views >= 1, "must be at least 1"),
        "pool": (refine.pool >= 0, "must be 0 (new networks) or more"),
    }
    for field, (possible, want) in ranges.items():
        need(possible, f"refine.{field}", refine[field], want)
    need(
        config.parallel.strategy in STRATEGIES,
        "parallel.strategy",
        config.parallel.strategy,
        f"must be one of {STRATEGIES}",
    )
    for term in config.guidance.terms:
        want = f"known are {plan.TERMS}{nearest(term, plan.TERMS)}"
        need(term in plan.TERMS, "guidance.terms", term, want)
    steps = config.sampler.num_steps
    for term in plan.TERMS:
        low, high = config.guidance[term].window
        need(
            0 <= low <= high < steps,
            f"guidance.{term}.window",
            (low, high),
            f"must lie within the {steps} steps of the schedule, 0 .. {steps - 1}",
        )
    group = config.sampler.group
    need(
        group in (0, 1) or config.ipc % group == 0,
        "sampler.group",
        group,
        f"must be 1 (greedy), 0 (joint) or divide ipc={config.ipc}",
    )
    pairs = {"velocity": ("flow",)}
    allowed = pairs.get(config.denoiser.parametrization, ("ddpm", "ddim"))
    need(
        config.sampler.name in allowed,
        "sampler.name",
        config.sampler.name,
        f"denoiser.parametrization={config.denoiser.parametrization!r} "
        f"is sampled by {' or '.join(allowed)}",
    )
    for name in (*config.study.baselines, *config.study.ablations):
        known = plan.BASELINES + plan.ABLATIONS
        need(name in known, "study", name, f"known are {', '.join(known)}")
    ladder = tuple(config.lia.teachers_by_ipc)
    need(
        all(1 <= k <= len(config.teachers.models) for _, k in ladder) and ladder,
        "lia.teachers_by_ipc",
        ladder,
        f"needs (ipc, teachers) pairs with 1 to {len(config.teachers.models)} "
        "teachers each",
    )
    need(config.lia.mode in plan.LABEL_MODES, "lia.mode", config.lia.mode,
         f"must be one of {plan.LABEL_MODES}")  # fmt: skip


def _get(config, dotted):
    for part in dotted.split("."):
        config = config[part]
    return config
