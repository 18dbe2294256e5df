"""Networks that `python -m ot_dd.convert` made of public weights, as artifacts.

A config names a directory (`autoencoder.weights`, `denoiser.weights`,
`teachers.weights.<name>`) and the network is loaded instead of trained.
"""

from pathlib import Path

import jax.numpy as jnp

from ot_dd import models
from ot_dd.checkpoint import read_json
from ot_dd.config import ConfigError, fingerprint
from ot_dd.stages.artifacts import Classifier, Denoiser


def network(field: str, directory: str) -> tuple[models.Loaded, dict, str]:
    """Loads a converted network.

    Args:
      field: the config field that names it, for errors.
      directory: what `python -m ot_dd.convert` wrote.

    Returns:
      The network, what the report says of it, and its fingerprint.

    Raises:
      ConfigError: when the directory holds no network.
    """
    try:
        loaded = models.load(Path(directory))
    except FileNotFoundError as error:
        raise ConfigError(f"config.{field} is {directory!r}: {error}") from error
    kept = ("model", "layout", "file", "sha256", "parameters", "licence")
    note = {key: loaded.note.get(key) for key in kept}
    return loaded, note, fingerprint(note)


def module_of(directory: str):
    """Returns the module of a converted network without its weights, or None."""
    note = read_json(Path(directory) / "model.json") if directory else None
    return note and models.create(note["model"], **note["options"])


def denoiser(settings, num_classes: int) -> tuple[Denoiser, dict, str]:
    """Loads the diffusion network.

    Args:
      settings: `config.denoiser`.
      num_classes: the data's number of classes.

    Raises:
      ConfigError: when its classes are not the data's and `class_ids` does not map them.
    """
    loaded, note, key = network("denoiser.weights", settings.weights)
    if not isinstance(loaded.module, models.DiT):
        raise ConfigError(
            f"config.denoiser.weights is {settings.weights!r}, a {note['model']}: "
            "a DiT is needed"
        )
    known = loaded.module.num_classes
    class_ids = tuple(settings.class_ids) or tuple(range(num_classes))
    fits = len(class_ids) == num_classes and max(class_ids) < known
    if not fits or (not settings.class_ids and known != num_classes):
        raise ConfigError(
            f"config.denoiser.class_ids is {tuple(settings.class_ids)}: the network "
            f"knows {known} classes and the data has {num_classes}; name the network's "
            "class of each of the data's, in order"
        )
    made = Denoiser(
        loaded.variables["params"], loaded.module, settings.parametrization, num_classes,
        settings.guidance_scale, settings.cfg_channels, settings.dtype,
        class_ids=(*class_ids, loaded.module.null_class),
    )  # fmt: skip
    return made, {"curve": None, **note}, fingerprint(key, class_ids, settings.dtype)


def classifier(settings, name: str, num_classes: int) -> tuple[Classifier, dict, str]:
    """Loads a teacher.

    Args:
      settings: `config.teachers`.
      name: one of `settings.models`.
      num_classes: the data's number of classes.

    Raises:
      ConfigError: when it has another number of classes.
    """
    field = f"teachers.weights.{name}"
    loaded, note, key = network(field, settings.weights[name])
    known = loaded.note["options"].get("num_classes")
    if loaded.note["model"] != name or known != num_classes:
        raise ConfigError(
            f"config.{field} is a {note['model']} of {known} classes: a {name} of "
            f"{num_classes} is needed"
        )
    made = Classifier(loaded.variables, loaded.module, name, loaded.preprocess)
    return made, {"curve": None, "name": name, **note}, key


def latent_scale(settings, channels: int):
    """Returns mean and deviation of latents that are multiplied by `latent_scale`."""
    return jnp.zeros(channels), jnp.full(channels, 1.0 / settings.latent_scale)
