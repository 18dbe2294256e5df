r"""From a state dict to our variables: tables of rules, and one engine that runs them.

A rule names a module of the file by a regular expression, the kind of layer it is, and
the path of ours: `(r"layer(\d)\.(\d+)\.conv(\d)", "conv", r"layer\1_\2/conv\3")`.
A path may say into which entry of a stacked leaf a tensor goes, `blocks[\1]/attn/proj`,
and which of several equal parts of the last axis it is, `blocks[\1]/attn/qkv#0/3`.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ot_dd.convert._files import TensorFile


class Rule(NamedTuple):
    """One row of a layout's table.

    Attributes:
      pattern: regular expression of the module's name in the file.
      kind: a key of `KINDS`.
      target: path of the module in our parameters, with the pattern's groups; or a
        function of the match that returns it.
    """

    pattern: str
    kind: str
    target: str | Callable[[re.Match], str] = ""


class Place(NamedTuple):
    """Where a tensor of the file goes.

    Attributes:
      path: `(collection, ..., leaf)`.
      entry: index into a stacked leaf, or None.
      part: `(k, n)`: the k-th of n parts of the last axis, or None.
      transform: makes our array of the file's.
    """

    path: tuple[str, ...]
    entry: int | None
    part: tuple[int, int] | None
    transform: Callable[[np.ndarray], np.ndarray]


_FLOATS = ("float16", "float32", "float64", ml_dtypes.bfloat16)


class ConversionError(ValueError):
    """A file that does not hold what a model needs; lists every problem by name."""


def _same(x):
    return x


def _conv(x):
    return x.transpose(2, 3, 1, 0)  # [o, i, kh, kw] -> [kh, kw, i, o].


def _matrix(x):
    return x.reshape(x.shape[:2]).T  # Also of a 1x1 convolution.


def _matrix_6x6(x):
    # The input is c x 6 x 6 in the file and 6 x 6 x c here.
    return x.reshape(len(x), -1, 6, 6).transpose(2, 3, 1, 0).reshape(-1, len(x))


# What a layer's tensors become: ending in the file -> (collection, leaf, transform).
# None is a tensor that we have no use for.
_BIAS = {".bias": ("params", "bias", _same)}
_NORM = {".weight": ("params", "scale", _same), **_BIAS}
KINDS: dict[str, dict[str, tuple | None]] = {
    "conv": {".weight": ("params", "kernel", _conv), **_BIAS},
    "dense": {".weight": ("params", "kernel", _matrix), **_BIAS},
    "dense_6x6": {".weight": ("params", "kernel", _matrix_6x6), **_BIAS},
    "norm": _NORM,
    "batch_norm": {
        **_NORM,
        ".running_mean": ("batch_stats", "mean", _same),
        ".running_var": ("batch_stats", "var", _same),
        ".num_batches_tracked": None,
    },
    "embedding": {".weight": ("params", "embedding", _same)},
    # torch.nn.MultiheadAttention's joint projection of queries, keys and values.
    "in_proj": {
        "_weight": ("params", "kernel", _matrix),
        "_bias": ("params", "bias", _same),
    },
    # A tensor on its own; the target is the whole path.
    "tensor": {"": ("params", "", _same)},
    "vector": {"": ("params", "", lambda x: x.reshape(-1))},
    "unused": {"": None, ".weight": None, ".bias": None},
}


def place(rules: Iterable[Rule], key: str) -> Place | None | bool:
    """Returns where a key goes, None for a tensor to ignore, False when no rule fits."""
    for rule in rules:
        for ending, meaning in KINDS[rule.kind].items():
            if not key.endswith(ending):
                continue
            match = re.fullmatch(rule.pattern, key[: len(key) - len(ending)])
            if match is None:
                continue
            if meaning is None:
                return None
            collection, leaf, transform = meaning
            callable_ = callable(rule.target)
            target = rule.target(match) if callable_ else match.expand(rule.target)
            part = entry = None
            if "#" in target:
                target, _, share = target.partition("#")
                k, _, n = share.partition("/")
                part = int(k), int(n)
            found = re.search(r"\[(\d+)\]", target)
            if found:
                entry = int(found[1])
                target = target.replace(found[0], "")
            path = (collection, *target.split("/"), *([leaf] if leaf else []))
            return Place(path, entry, part, transform)
    return False


def match(
    file: TensorFile,
    rules: Iterable[Rule],
    wanted: dict[tuple[str, ...], tuple[int, ...]],
) -> dict[str, Place]:
    """Finds the place of every tensor; looks at keys and shapes alone.

    Args:
      file: the file's tensors.
      rules: the layout's table.
      wanted: the shape of every leaf by `(collection, ..., leaf)`.

    Returns:
      The place of every key that has one.

    Raises:
      ConversionError: naming every missing, unused and mis-shaped tensor.
    """
    rules = tuple(rules)
    places, unused, wrong = {}, [], []
    slots: dict[tuple[str, ...], set] = {}
    for key, shape in sorted(file.shapes.items()):
        found = place(rules, key)
        if found is None:
            continue
        if found is False or found.path not in wanted:
            unused.append(key)
            continue
        expected = _part_shape(wanted[found.path], found)
        try:
            actual = found.transform(np.broadcast_to(np.uint8(0), shape)).shape
        except ValueError:
            actual = None
        if actual != expected:
            wrong.append(
                f"{key} is {list(shape)}, {'/'.join(found.path)} needs {list(expected)}"
                " once transposed"
            )
        slot = (found.entry, found.part and found.part[0])
        if slot in slots.setdefault(found.path, set()):
            wrong.append(f"{key} goes where another went: {'/'.join(found.path)}")
        slots[found.path].add(slot)
        places[key] = found
    missing = [
        f"{'/'.join(path)} {list(shape)}" + (f" ({n} of its parts)" if n else "")
        for path, shape in wanted.items()
        for n in [_missing(slots.get(path, set()), path, shape, places)]
        if n is not None
    ]
    _complain(missing, unused, wrong)
    return places


def _part_shape(shape, found):
    if found.entry is not None:
        shape = shape[1:]
    if found.part is not None:
        shape = (*shape[:-1], shape[-1] // found.part[1])
    return shape


def _missing(filled, path, shape, places):
    """Returns None if a leaf is complete, 0 if all of it is missing, else how many."""
    if not filled:
        return 0
    entry, part = next(iter(filled))
    need = 1 if entry is None else shape[0]
    if part is not None:
        need *= next(p.part[1] for p in places.values() if p.path == path)
    return None if len(filled) == need else need - len(filled)


def _complain(missing, unused, wrong):
    lists = {
        "missing": missing,
        "unused (no place in this model)": unused,
        "of the wrong shape": wrong,
    }
    lines = []
    for what, names in lists.items():
        if names:
            lines.append(f"{len(names)} {what}:")
            # Names come from the file: control characters stay visible.
            lines += [f"  {ascii(name)[1:-1]}" for name in names]
    if lines:
        raise ConversionError("\n".join(lines))


def fill(
    file: TensorFile,
    places: dict[str, Place],
    wanted: dict[tuple[str, ...], tuple[int, ...]],
    *,
    empty: Callable[..., np.ndarray] = lambda path, shape: np.empty(shape, np.float32),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Reads a file's tensors, one at a time, into the arrays that a model wants.

    Args:
      file: the file's tensors.
      places: from `match`.
      wanted: the shape of every leaf by `(collection, ..., leaf)`.
      empty: `(path, shape) -> float32 array` to fill.
      progress: called with the numbers read and the numbers in all.

    Returns:
      The variables, nested dictionaries of float32 arrays.

    Raises:
      ConversionError: naming a tensor that is not of a floating-point type, or not
        finite in float32.
    """
    sizes = {key: int(np.prod(file.shapes[key])) for key in places}
    total, done = sum(sizes.values()), 0
    variables: dict[str, Any] = {}
    for key, found in places.items():
        array = file.read(key)
        if array.dtype.newbyteorder("=") not in _FLOATS:
            raise ConversionError(f"{key!a} is of type {array.dtype}, expected a float")
        array = found.transform(array)
        *folders, leaf = found.path
        node = variables
        for folder in folders:
            node = node.setdefault(folder, {})
        if leaf not in node:
            node[leaf] = empty(found.path, wanted[found.path])
        out = node[leaf] if found.entry is None else node[leaf][found.entry]
        if found.part is not None:
            k, n = found.part
            width = out.shape[-1] // n
            out = out[..., k * width : (k + 1) * width]
        with np.errstate(over="ignore"):
            out[...] = array
        if not np.isfinite(out).all():
            raise ConversionError(f"{key!a} holds values that float32 does not")
        done += sizes[key]
        progress(done, total)
    return variables
