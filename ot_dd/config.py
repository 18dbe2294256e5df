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


def by_ipc(pairs: tuple[tuple[int, Any], ...], ipc: int) -> Any:
    """Returns what holds at so many images per class.

    Args:
      pairs: `(least images per class, value)`, at least one; in any order.
      ipc: images per class.

    Returns:
      The value of the last pair whose number is not above `ipc`; below all of them, that
      of the first.
    """
    ladder = sorted(pairs)
    return [ladder[0], *(pair for pair in ladder if pair[0] <= ipc)][-1][1]


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
