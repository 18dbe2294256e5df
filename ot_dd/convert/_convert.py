"""Conversion of one file: recognise the layout, read the sizes, fill, store."""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ot_dd import models
from ot_dd.convert._engine import ConversionError, fill, match, place
from ot_dd.convert._files import TensorFile, open_tensors
from ot_dd.convert._layouts import Layout, layouts_of
from ot_dd.models.dit import sincos_positions

_DIT_SIZES = ("s", "b", "l", "xl")
Progress = Callable[[str, int, int], None]


def convert(
    model: str,
    source: Path,
    output: Path,
    *,
    progress: Progress = lambda what, done, total: None,
) -> dict:
    """Converts a file of PyTorch weights into a directory that `models.load` reads.

    Args:
      model: a name of `models.names()` that has public weights.
      source: what `open_tensors` reads; never executed.
      output: the directory to write; must not exist.
      progress: called with what is being done, how much is done and how much there is.

    Returns:
      The note that the directory keeps: layout, hash, tensors, parameters, licence.

    Raises:
      ConversionError: when the file does not hold the model; names every missing,
        unused and mis-shaped tensor, and nothing is written.
      ValueError: for an unknown model or file type, or an output that exists.
    """
    source, output = Path(source), Path(output)
    if model not in models.names():
        models.create(model)  # Raises, with the nearest name.
    layouts = layouts_of(model)
    if not layouts:
        have = ", ".join(n for n in models.names() if layouts_of(n))
        raise ValueError(
            f"--model={model}: no public weights are known for it; there are for {have}"
        )
    if output.exists() or output.is_symlink():
        raise ValueError(f"--output={output} exists: choose a new directory")
    file = open_tensors(source)
    layout = recognise(layouts, file)
    try:
        options, inputs = _sizes(model, layout, file)
        module = models.create(model, **options)
        wanted = models.shapes(module, inputs)
        places = match(file, layout.rules, wanted)
        _check_positions(module, file)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        text = error if isinstance(error, ConversionError) else f"its shapes: {error}"
        raise ConversionError(
            f"--input={source} is no {model} in the layout of {layout.name}:\n{text}"
        ) from error
    preprocess = layout.preprocess
    if preprocess and preprocess.crop and preprocess.crop != inputs[1]:
        # A ViT for larger images: the same share of the shorter side.
        resize = round(preprocess.resize * inputs[1] / preprocess.crop)
        preprocess = preprocess._replace(resize=resize, crop=inputs[1])
    size = 4 * sum(int(np.prod(shape)) for shape in wanted.values())
    output.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(output.parent).free
    if free < 3 * size:
        raise ValueError(
            f"--output={output}: {free / 2**20:.0f} MiB are free there, "
            f"{3 * size / 2**20:.0f} are needed while converting"
        )
    note = {
        "model": model,
        "options": options,
        "inputs": list(inputs),
        "preprocess": preprocess and preprocess._asdict(),
        "layout": layout.name,
        "file": source.name,
        "sha256": _hash(source, progress),
        "tensors": len(file.shapes),
        "parameters": sum(
            int(np.prod(shape)) for path, shape in wanted.items() if path[0] == "params"
        ),
        "licence": layout.licence,
    }
    # The arrays lie in files until they are stored: memory holds what Orbax is writing
    # and one tensor.
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".convert.") as scratch:

        def empty(path, shape):
            return np.memmap(Path(scratch, ".".join(path)), "f4", "w+", shape=shape)

        variables = fill(
            file, places, wanted, empty=empty,
            progress=lambda done, total: progress("reading", done, total),
        )  # fmt: skip
        models.save(output, variables, note)
    return note


def recognise(layouts: tuple[Layout, ...], file: TensorFile) -> Layout:
    """Returns the layout whose rules know most of a file's keys."""

    def known(layout):
        return sum(place(layout.rules, key) is not False for key in file.shapes)

    return max(layouts, key=known)


def _sizes(model, layout, file):
    """Returns the options that the keys and shapes tell, and the shape of an input."""
    found, entries = {}, {}
    for key, shape in file.shapes.items():
        there = place(layout.rules, key)
        if there:
            try:
                array = there.transform(np.broadcast_to(np.uint8(0), shape))
            except ValueError:
                continue  # Of the wrong rank: `fill` says so.
            found["/".join(there.path[1:])] = array.shape
            if there.entry is not None:
                entries[there.path[1]] = max(
                    entries.get(there.path[1], 0), there.entry + 1
                )
    return _READERS.get(model.split("_")[0], _classifier)(model, found, entries)


def _last(found, path, default):
    return found.get(path, (default,))[-1]


def _classifier(model, found, entries):
    del entries
    head = "fc3/bias" if model == "alexnet" else "fc/bias"
    options = {"num_classes": _last(found, head, 1000)}
    stem = found.get("conv1/kernel")
    if model.startswith(("resnet", "wide")) and stem and stem[0] == 3:
        options["stem"] = "cifar"
    size = {"efficientnet_lite1": 240, "efficientnet_lite2": 260}.get(model, 224)
    return options, (1, size, size, 3)


def _vit(model, found, entries):
    options, inputs = _classifier(model, found, entries)
    patch = found.get("patch_embed/kernel", (16,))[0]
    # Positions are those of one image size: the tokens of its patches and the class's.
    tokens = found.get("positions", (1, 197, 0))[1] - 1
    side = patch * round(tokens**0.5)
    options |= {"patch": patch, "depth": entries.get("blocks", 12)}
    return options, (1, side, side, inputs[-1])


def _dit(model, found, entries):
    patch, _, channels, dim = found.get("patch_embed/kernel", (2, 2, 4, 1152))
    outputs = _last(found, "final/linear/bias", 2 * channels * patch**2)
    heads = _dit_heads(model, dim, patch)
    options = {
        "num_classes": found.get("y_embedder/embedding", (1001,))[0] - 1,
        "patch": patch,
        "dim": dim,
        "heads": heads,
        "depth": entries.get("blocks", 28),
        "learn_sigma": outputs == 2 * channels * patch**2,
    }
    return options, (1, 32, 32, channels)


def _dit_heads(model, dim, patch):
    """Returns the number of heads, which no tensor tells: the size does, or the name."""
    sizes = {s: models.create(f"dit_{s}_2", num_classes=1) for s in _DIT_SIZES}
    known = {module.dim: size for size, module in sizes.items()}
    _, *named = model.split("_")
    size = known.get(dim, named[0] if named else None)
    if size is None:
        raise ConversionError(
            f"its width is {dim}, DiT's are {', '.join(map(str, known))}: how many heads "
            "it has, the file does not tell"
        )
    if named and named != [size, str(patch)]:
        raise ConversionError(f"its sizes are those of dit_{size}_{patch}")
    return sizes[size].heads


def _autoencoder(model, found, entries):
    del model, entries
    channels = [
        _last(found, f"encoder/block{level}_0/conv1/bias", 0) for level in range(4)
    ]
    blocks = {m[1] for k in found for m in [re.match(r"encoder/block0_(\d+)/", k)] if m}
    options = {
        "channels": tuple(channels) if all(channels) else (128, 256, 512, 512),
        "image_channels": _last(found, "decoder/conv_out/bias", 3),
        "latent_channels": _last(found, "post_quant_conv/bias", 4),
        "blocks": len(blocks) or 2,
        "groups": 32,
    }
    return options, (1, 64, 64, options["image_channels"])


_READERS = {"autoencoder": _autoencoder, "deit": _vit, "dit": _dit, "vit": _vit}


def _check_positions(module, file):
    """Compares DiT's fixed positions with ours, where the file has them."""
    shape = file.shapes.get("pos_embed")
    if not isinstance(module, models.DiT) or shape is None:
        return
    side = round(shape[1] ** 0.5) if len(shape) == 3 else 0
    if shape != (1, side * side, module.dim) or side > 1024:
        raise ConversionError(f"pos_embed is {list(shape)}, no square of patches")
    theirs = np.asarray(file.read("pos_embed"), np.float32)[0]
    if np.abs(sincos_positions(side, side, module.dim) - theirs).max() > 1e-4:
        raise ConversionError("pos_embed is not DiT's table of sines and cosines")


def _hash(path, progress):
    digest, total, done = hashlib.sha256(), path.stat().st_size, 0
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
            done += len(part)
            progress("hashing", done, total)
    return digest.hexdigest()
