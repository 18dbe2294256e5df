"""Networks that `python -m ot_dd.convert` made of public weights, as artifacts.

A config names a directory (`autoencoder.weights`, `denoiser.weights`,
`teachers.weights.<name>`) and the network is loaded instead of trained.
"""

from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp

from ot_dd import models
from ot_dd.config import ConfigError, fingerprint
from ot_dd.stages.artifacts import Autoencoder, Classifier, Denoiser


def module_of(field: str, directory: str, kind=nn.Module):
    """Returns the module of a converted network, or None when none is named.

    Args:
      field: the config field that names it, for errors.
      directory: what `python -m ot_dd.convert` wrote; empty for none.
      kind: the class that it must be of.

    Raises:
      ConfigError: when the directory holds no network, or one of another kind.
    """
    if not directory:
        return None
    try:
        module = models.module_of(Path(directory))
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"config.{field} is {directory!r}: {error}") from error
    if not isinstance(module, kind):
        raise ConfigError(
            f"config.{field} is {directory!r}, a {type(module).__name__}: a "
            f"{kind.__name__} is needed"
        )
    return module


def autoencoder_module(settings):
    """Returns the converted autoencoder's module, or None.

    How many images it takes at once is no matter of its weights: `options.slices`.

    Args:
      settings: `config.autoencoder`.
    """
    module = module_of("autoencoder.weights", settings.weights, models.AutoencoderKL)
    return module and module.clone(slices=settings.options.get("slices", 0))


def denoiser_module(settings, num_classes: int):
    """Returns the converted diffusion network's module, or None.

    Args:
      settings: `config.denoiser`.
      num_classes: the data's number of classes.

    Raises:
      ConfigError: when its classes are not the data's and `class_ids` does not map them.
    """
    module = module_of("denoiser.weights", settings.weights, models.DiT)
    if module is None:
        return None
    known, ids = module.num_classes, _class_ids(settings, num_classes)
    fits = len(ids) == num_classes and 0 <= min(ids) and max(ids) < known
    if not fits or (not settings.class_ids and known != num_classes):
        raise ConfigError(
            f"config.denoiser.class_ids is {tuple(settings.class_ids)}: the network "
            f"knows {known} classes and the data has {num_classes}; name the network's "
            "class of each of the data's, in order"
        )
    return module.clone(remat=settings.options.get("remat", False))


def _class_ids(settings, num_classes):
    return tuple(settings.class_ids) or tuple(range(num_classes))


def classifier_module(settings, name: str, num_classes: int):
    """Returns the converted teacher's module, or None.

    Args:
      settings: `config.teachers`.
      name: one of `settings.models`.
      num_classes: the data's number of classes.

    Raises:
      ConfigError: when it is another network, or has another number of classes.
    """
    field = f"teachers.weights.{name}"
    module = module_of(field, settings.weights.get(name, ""))
    if module is None:
        return None
    kind = type(models.create(name, num_classes=num_classes))
    known = getattr(module, "num_classes", None)
    if type(module) is not kind or known != num_classes:
        raise ConfigError(
            f"config.{field} is a {type(module).__name__} of {known} classes: a "
            f"{kind.__name__} of {num_classes} is needed"
        )
    return module


def _load(directory):
    """Returns a converted network, what the report says of it, and its fingerprint."""
    loaded = models.load(Path(directory))
    kept = ("model", "layout", "file", "sha256", "parameters", "licence")
    note = {key: loaded.note.get(key) for key in kept}
    # What people may edit, beside what the weights are.
    edited = loaded.note.get("options"), loaded.note.get("preprocess")
    return loaded, note, fingerprint(note, *edited)


def autoencoder(settings, module) -> tuple[Autoencoder, dict, str]:
    """Loads the weights of `autoencoder_module`; images are not padded.

    Args:
      settings: `config.autoencoder`.
      module: the module.

    Returns:
      The autoencoder for images of the module's factor, a note, and a fingerprint.
    """
    loaded, note, key = _load(settings.weights)
    channels, scale = module.latent_channels, settings.latent_scale
    made = Autoencoder(
        loaded.variables, jnp.zeros(channels), jnp.full(channels, 1.0 / scale), module,
        (), 0,
    )  # fmt: skip
    return made, note, fingerprint(key, scale)


def denoiser(settings, num_classes: int) -> tuple[Denoiser, dict, str]:
    """Loads the weights of `denoiser_module`; arguments are its."""
    module = denoiser_module(settings, num_classes)
    loaded, note, key = _load(settings.weights)
    class_ids = (*_class_ids(settings, num_classes), module.null_class)
    made = Denoiser(
        loaded.variables["params"], module, settings.parametrization, num_classes,
        settings.guidance_scale, settings.cfg_channels, settings.dtype,
        class_ids=class_ids,
    )  # fmt: skip
    return made, {"curve": None, **note}, fingerprint(key, class_ids, settings.dtype)


def classifier(settings, name: str, num_classes: int) -> tuple[Classifier, dict, str]:
    """Loads the weights of `classifier_module`; arguments are its."""
    module = classifier_module(settings, name, num_classes)
    loaded, note, key = _load(settings.weights[name])
    made = Classifier(loaded.variables, module, name, loaded.preprocess)
    return made, {"curve": None, "name": name, **note}, key
