"""Labelled image sets as uint8 arrays, split once and for all by a seed.

Every source yields a *pool*: pixels or encoded files, and labels. Splitting and
`max_per_class` work on the pool's indices, so only images that are kept get decoded.
"""

import collections
import contextlib
import functools
import gzip
import io
import logging
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ot_dd.config import nearest
from ot_dd.data.stored import Stored
from ot_dd.parallel import gather_rows

IMAGE_SUFFIXES = (
    ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff",
    ".webp",
)  # fmt: skip
_COMPRESSED = (".gif", ".jfif", ".jpeg", ".jpg", ".png", ".webp")
FASHION_MNIST_DIR = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# One random stream for each decision, so that changing one leaves the others alone.
_TEST_STREAM, _LIMIT_STREAM, _VALIDATION_STREAM = range(3)


class Images(NamedTuple):
    """Images uint8 `[n, h, w, c]`, in memory or `Stored`, and labels int32 `[n]`."""

    images: np.ndarray | Stored
    labels: np.ndarray


@dataclass(frozen=True)
class Dataset:
    """A data set: three disjoint splits, class names and where it is from.

    `provenance` goes out with a distilled set: it has no path of a machine.
    """

    name: str
    train: Images
    validation: Images
    test: Images
    class_names: tuple[str, ...]
    provenance: str

    def facts(self) -> dict:
        """Returns how much there is of what, for people to read."""
        height, width, channels = self.train.images.shape[1:]
        return {
            "source": self.provenance,
            "classes": len(self.class_names),
            "train": len(self.train.labels),
            "validation": len(self.validation.labels),
            "test": len(self.test.labels),
            "image": [height, width, channels],
        }


class _Encoded(NamedTuple):
    """An image not decoded yet: a file, or a record whose checksum is known.

    `name` is what an error message calls it.
    """

    name: str
    data: Path | Callable[[], bytes]
    checksum: int = 0


class Pool(NamedTuple):
    """Items: pixels uint8 `[n, h, w, c]`, or an object array `[n]` of `_Encoded`.

    Labels are integers `[n]` from 0.
    """

    items: np.ndarray
    labels: np.ndarray

    def take(self, indices: np.ndarray) -> "Pool":
        return Pool(self.items[indices], self.labels[indices])


class Source(NamedTuple):
    """What a reader returns; a split that is None is cut from `train`.

    `name` and `provenance` go out with a distilled set: no path of a machine in them.
    """

    name: str
    train: Pool
    validation: Pool | None
    test: Pool | None
    class_names: tuple[str, ...]
    provenance: str


def load(
    source: str,
    *,
    data_dir: str = "",
    image_size: int = 0,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
    max_per_class: int = 0,
    in_memory_gb: float = 8.0,
) -> Dataset:
    """Reads a data set and splits it.

    Sources:
      `digits`: scikit-learn's 1,797 8x8 digits; 719 of them, stratified, are the test
        set whatever `test_fraction` says, so that accuracies stay comparable.
      `fashion_mnist`: the four idx `.gz` files in `data_dir`, or where the Debian
        package dataset-fashion-mnist puts them.
      `tfds:PATH`: a TFDS directory prepared with `file_format="array_record"`.
      `image_folder:PATH`: class folders below `train/` (and `test/`, `val/`), or class
        folders alone. Classes are numbered in sorted order.
      `synthetic:classes=10,size=64,n=20,channels=3,seed=0`: generated gratings, `n` for
        each class before splitting; every option may be left out.

    A source's own test split is used where it has one; a lone validation split is taken
    for the test set (ImageNet's custom). What is missing is cut from the training
    images: stratified, and at least one image of each class that has two.

    Args:
      source: One of the above.
      data_dir: Directory of the Fashion-MNIST files; relative paths in `source` start
        here.
      image_size: Side in pixels: the shorter side is resized to it (bicubic) and the
        centre kept. 0 leaves images as they are; they must then agree in size.
      validation_fraction: Share of the training images held out, in `[0, 1)`.
      test_fraction: Share of all images for testing where the source has no test split,
        in `(0, 1)`.
      seed: Seed of the splits and of `max_per_class`.
      max_per_class: Training and validation images kept for each class together; 0
        keeps all. The test set stays whole.
      in_memory_gb: A split whose images take more as float32 stays encoded on disk, and
        each image is decoded whenever it is used (`Stored`); such a set needs an
        `image_size` and has three channels.

    Returns:
      The data set. All images are grey (`c = 1`) only if every one of them is.

    Raises:
      ValueError: A field or a file has a value that makes no sense.
      FileNotFoundError: A directory or file is missing.
    """
    kind, _, rest = source.partition(":")
    if kind not in READERS:
        hint = nearest(kind, READERS)
        if Path(source).is_dir():
            hint = f" (did you mean 'image_folder:{source}'?)"
        raise ValueError(
            f"data.source = {source!r}: unknown source {kind!r}{hint}; "
            f"known: {', '.join(READERS)}"
        )
    _check_number("data.image_size", image_size, image_size >= 0, "0 or more")
    _check_number("data.max_per_class", max_per_class, max_per_class >= 0, "0 or more")
    _check_number("data.in_memory_gb", in_memory_gb, in_memory_gb >= 0, "0 or more")
    _check_number("data.seed", seed, seed >= 0, "0 or more")
    _check_number(
        "data.validation_fraction",
        validation_fraction,
        0 <= validation_fraction < 1,
        "at least 0 and below 1",
    )
    _check_number(
        "data.test_fraction",
        test_fraction,
        0 < test_fraction < 1,
        "above 0 and below 1",
    )
    if kind in ("digits", "fashion_mnist") and rest:
        raise ValueError(f"data.source = {source!r}: {kind} takes nothing after ':'")
    if kind in ("image_folder", "tfds") and not rest:
        raise ValueError(
            f"data.source = {source!r} has no path; write {kind}:/path/to/directory"
        )

    found = READERS[kind](rest, data_dir)
    test_fraction = 0.4 if kind == "digits" else test_fraction
    train, validation, test = found.train, found.validation, found.test
    num_classes = len(found.class_names)
    for split, pool in (("train", train), ("validation", validation), ("test", test)):
        if pool is not None:
            _check_labels(pool.labels, found, split)
    empty = np.flatnonzero(np.bincount(train.labels, minlength=num_classes) == 0)
    if empty.size:
        names = ", ".join(found.class_names[k] for k in empty[:5])
        raise ValueError(
            f"data.source = {source!r}: {empty.size} of {num_classes} classes have no "
            f"training image ({names}{', ...' if empty.size > 5 else ''})"
        )
    splits = []
    if test is None:
        train, test = _split(train, test_fraction, [seed, _TEST_STREAM])
        splits.append(f"test {test_fraction:g} of all")
    if not len(test.labels):
        raise ValueError(
            f"data.source = {source!r}: the test split is empty; classes need at least "
            "2 images each to cut one"
        )
    if max_per_class:
        train = _limit(train, max_per_class, [seed, _LIMIT_STREAM])
        splits.append(f"at most {max_per_class} training images a class")
    if validation is None:
        train, validation = _split(
            train, validation_fraction, [seed, _VALIDATION_STREAM]
        )
        splits.append(f"validation {validation_fraction:g} of training")
    parts = [
        Images(images, pool.labels.astype(np.int32))
        for images, pool in _decoded(
            (train, validation, test), image_size, in_memory_gb
        )
    ]
    how = f"; stratified splits, seed {seed}: {', '.join(splits)}" if splits else ""
    return Dataset(found.name, *parts, found.class_names, found.provenance + how)


def _check_number(field: str, value: float, valid: bool, wanted: str) -> None:
    if not valid:
        raise ValueError(f"{field} = {value!r}: must be {wanted}")


def _check_labels(labels: np.ndarray, found: Source, split: str) -> None:
    num_classes = len(found.class_names)
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if bad.size:
        raise ValueError(
            f"{found.name}, {split} split: image {bad[0]} has label {labels[bad[0]]}, "
            f"but there are {num_classes} classes (labels 0..{num_classes - 1})"
        )


# --- Splits ---------------------------------------------------------------------------


def _split(pool: Pool, fraction: float, seed: Sequence[int]) -> tuple[Pool, Pool]:
    """Cuts a stratified `fraction` off a pool; returns (kept, cut), both in order."""
    counts = np.bincount(pool.labels)
    cut = np.zeros(len(pool.labels), bool)
    if fraction > 0:
        rng = np.random.default_rng(seed)
        for label, size in enumerate(_quotas(counts, fraction)):
            members = np.flatnonzero(pool.labels == label)
            cut[rng.permutation(members)[:size]] = True
    return pool.take(np.flatnonzero(~cut)), pool.take(np.flatnonzero(cut))


def _quotas(counts: np.ndarray, fraction: float) -> np.ndarray:
    """Images to cut per class: largest remainders, so the total is the rounded share.

    A class of two or more gives at least one and keeps at least one, even if that
    moves the total: a class missing from a split would silently drop out of every
    per-class number.
    """
    share = counts * fraction
    quotas = np.floor(share).astype(int)
    missing = int(round(share.sum())) - quotas.sum()
    # Stable sort: ties go to the lower class, on every platform.
    quotas[np.argsort(quotas - share, kind="stable")[:missing]] += 1
    return np.clip(quotas, np.minimum(1, np.maximum(counts - 1, 0)), counts - 1).clip(0)


def _limit(pool: Pool, size: int, seed: Sequence[int]) -> Pool:
    """Keeps at most `size` random images of each class, in their order."""
    rng = np.random.default_rng(seed)
    kept = [
        rng.permutation(np.flatnonzero(pool.labels == label))[:size]
        for label in range(pool.labels.max() + 1)
    ]
    return pool.take(np.sort(np.concatenate(kept)))


# --- Pixels ---------------------------------------------------------------------------


def _decoded(pools: Sequence[Pool], image_size: int, in_memory_gb: float):
    """Returns `(images, pool)` of each split, decoded now or when they are used."""
    sizes = [4 * 3 * image_size**2 * len(pool.labels) for pool in pools]
    stored = [
        pool.items.dtype == object and size > 1e9 * in_memory_gb
        for pool, size in zip(pools, sizes)
    ]
    if not any(stored):
        # One call for all splits: they must agree in size and in channels.
        pixels = _pixels(np.concatenate([pool.items for pool in pools]), image_size)
        ends = np.cumsum([len(pool.labels) for pool in pools])
        return list(zip(np.split(pixels, ends[:-1]), pools, strict=True))
    return [
        (
            _stored(pool.items, image_size)
            if late
            else _in_colour(_pixels(pool.items, image_size)),
            pool,
        )
        for pool, late in zip(pools, stored)
    ]


def _stored(items: np.ndarray, image_size: int) -> Stored:
    def read(rows):
        return _in_colour(_pixels(items[rows], image_size))

    def marks():
        def of(rows):
            return np.array(list(_threads().map(_mark, items[rows])), np.int64)

        return gather_rows(len(items), of).astype(np.int64)

    return Stored((len(items), image_size, image_size, 3), np.uint8, read, marks)


_INT32 = 0x7FFFFFFF  # What processes exchange as it is, without x64.


def _mark(encoded: _Encoded) -> int:
    """Returns a record's checksum, or one of a file: if compressed, of size and end.

    To read millions of files whole would take as long as an epoch of training; images of
    one size in bytes whose compressed pixels end alike are hardly two.
    """
    if not isinstance(encoded.data, Path):
        return encoded.checksum
    if encoded.data.suffix.lower() not in _COMPRESSED:
        return zlib.crc32(encoded.data.read_bytes()) & _INT32
    with encoded.data.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(size - 64, 0))
        return zlib.crc32(file.read(), size & 0xFFFFFFFF) & _INT32


def _in_colour(pixels: np.ndarray) -> np.ndarray:
    return np.broadcast_to(pixels, (*pixels.shape[:-1], 3))


def _pixels(items: np.ndarray, image_size: int) -> np.ndarray:
    """Decodes and resizes a pool's items to one uint8 array `[n, h, w, c]`."""
    if items.dtype == np.uint8:
        if image_size == 0 or items.shape[1:3] == (image_size, image_size):
            return items
        from PIL import Image

        def read(pixels: np.ndarray) -> np.ndarray:
            squeezed = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
            return _fit(Image.fromarray(squeezed), image_size)
    else:

        def read(encoded: _Encoded) -> np.ndarray:
            return _decode(encoded, image_size)

    if not len(items):
        return np.empty((0, image_size, image_size, 1), np.uint8)
    # Pillow releases the GIL while it decodes and resizes.
    images = list(_threads().map(read, items))
    for image, item in zip(images, items, strict=True):
        if image.shape[:2] != images[0].shape[:2]:
            raise ValueError(
                f"images differ in size: {items[0].name} is "
                f"{images[0].shape[1]}x{images[0].shape[0]}, {item.name} is "
                f"{image.shape[1]}x{image.shape[0]} (width x height); set "
                "data.image_size to resize and crop them to one"
            )
    channels = max(image.shape[2] for image in images)
    pixels = np.empty((len(images), *images[0].shape[:2], channels), np.uint8)
    for row, image in zip(pixels, images, strict=True):
        row[:] = image  # A grey image broadcasts to three channels.
    return pixels


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="decode")


def _decode(encoded: _Encoded, image_size: int) -> np.ndarray:
    """Decodes one image file to uint8 `[h, w, 1 or 3]`."""
    from PIL import Image

    damage = (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error)
    damage += (RuntimeError, IndexError)  # ArrayRecord's
    try:
        data = encoded.data
        with Image.open(io.BytesIO(data()) if callable(data) else data) as image:
            image.load()
            mode = image.mode
            # "1", "L": grey as it is. Wider modes (I, I;16, F) would be clipped.
            if mode in ("1", "L", "LA"):
                image = image.convert("L")
            elif mode in ("P", "PA"):
                # By way of RGBA, or Pillow warns of a palette with transparency.
                image = image.convert("RGBA").convert("RGB")
            elif mode in ("RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
                image = image.convert("RGB")
            else:
                raise ValueError(f"{mode} pixels are not 8 bits of grey or RGB")
            return _fit(image, image_size)
    except (*damage, Image.DecompressionBombError) as error:
        raise ValueError(
            f"cannot decode image {encoded.name}: {error}; remove or replace it"
        ) from error


def read_image(path: Path, channels: int) -> np.ndarray:
    """Reads an image file as grey (1 channel) or in colour (3), uint8 `[h, w, c]`.

    Raises:
      ValueError: naming the file, when it does not decode or has more than 8 bits.
    """
    from PIL import Image

    pixels = _decode(_Encoded(str(path), path), 0)
    if pixels.shape[-1] == channels:
        return pixels
    if channels == 3:
        return _in_colour(pixels)
    return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]


def _fit(image, image_size: int) -> np.ndarray:
    """Scales a PIL image's shorter side to `image_size` and keeps the centre square."""
    from PIL import Image, ImageOps

    if image_size and image.size != (image_size, image_size):
        size = (image_size, image_size)
        image = ImageOps.fit(image, size, method=Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _encoded_pool(images: Sequence[_Encoded], labels: Sequence[int]) -> Pool:
    items = np.empty(len(images), object)
    for i, image in enumerate(images):  # `items[:] = images` would unpack the tuples.
        items[i] = image
    return Pool(items, np.asarray(labels, np.int64))


# --- Readers --------------------------------------------------------------------------


def _read_digits(rest: str, data_dir: str) -> Source:
    import sklearn
    from sklearn.datasets import load_digits

    digits = load_digits()
    # Counts of set pixels in 4x4 blocks, 0..16.
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    provenance = f"scikit-learn {sklearn.__version__} load_digits (UCI optdigits)"
    pool = Pool(pixels, digits.target.astype(np.int64))
    return Source("digits", pool, None, None, tuple("0123456789"), provenance)


def _read_fashion_mnist(rest: str, data_dir: str) -> Source:
    directory = Path(data_dir).expanduser() if data_dir else FASHION_MNIST_DIR
    pools = []
    for stem in ("train", "t10k"):
        paths = [
            directory / f"{stem}-images-idx3-ubyte.gz",
            directory / f"{stem}-labels-idx1-ubyte.gz",
        ]
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(
                    f"no Fashion-MNIST file {path}; install the Debian package "
                    "dataset-fashion-mnist, or set data.data_dir to the directory of "
                    "the four idx .gz files"
                )
        images, labels = _read_idx(paths[0], ndim=3), _read_idx(paths[1], ndim=1)
        if len(images) != len(labels):
            raise ValueError(
                f"{paths[0]} has {len(images)} images, {paths[1]} has {len(labels)} "
                "labels; they are not of one set, get both again"
            )
        pools.append(Pool(images[..., None], labels.astype(np.int64)))
    train, test = pools
    if train.items.shape[1:] != test.items.shape[1:]:
        raise ValueError(
            f"{directory}: training images are {train.items.shape[1:3]}, test images "
            f"{test.items.shape[1:3]} pixels; get the four files again"
        )
    provenance = "Fashion-MNIST (Xiao et al. 2017), its four idx files"
    return Source("fashion_mnist", train, None, test, FASHION_MNIST_CLASSES, provenance)


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    """Reads a gzipped idx file of unsigned bytes with `ndim` axes (LeCun's format)."""
    try:
        with gzip.open(path) as file:
            raw = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} is not a whole gzip file ({error}); get it again"
        ) from error
    header = 4 + 4 * ndim
    # The magic number is 0, 0, the type (8: unsigned byte) and the number of axes.
    magic = bytes([0, 0, 8, ndim])
    if len(raw) < header or raw[:4] != magic:
        raise ValueError(
            f"{path} starts with {raw[:4].hex() or 'nothing'}, an idx file of bytes "
            f"with {ndim} axes starts with {magic.hex()}; is it another file?"
        )
    shape = struct.unpack(f">{ndim}I", raw[4:header])
    size = int(np.prod(shape, dtype=np.int64))
    if len(raw) - header != size:
        raise ValueError(
            f"{path} promises {shape} bytes ({size}) and has {len(raw) - header}; it "
            "is truncated or damaged, get it again"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _read_image_folder(path: str, data_dir: str) -> Source:
    root = Path(data_dir).expanduser() / Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"data.source: no directory {root} for image_folder")
    name = root.resolve().name
    _check_name(root.resolve())
    provenance = f"image folder {name}"
    # A class may be called "train": the split folder is the one that holds folders.
    if not ((root / "train").is_dir() and _subfolders(root / "train")):
        classes, pool = _read_class_folders(root)
        return Source(name, pool, None, None, classes, provenance)
    classes, train = _read_class_folders(root / "train")
    splits = {}
    known = {"validation": ("val", "valid", "validation"), "test": ("test",)}
    for split, names in known.items():
        folder = next((root / n for n in names if (root / n).is_dir()), None)
        splits[split] = None
        if folder is None:
            _check_unread(root, split)
        else:
            others, splits[split] = _read_class_folders(folder)
            if others != classes:
                differ = sorted(set(others) ^ set(classes))
                raise ValueError(
                    f"{folder} and {root / 'train'} have different class folders: "
                    f"{', '.join(differ[:5])} in one only"
                )
    validation, test = splits["validation"], splits["test"]
    if test is None:
        validation, test = None, validation
    return Source(name, train, validation, test, classes, provenance)


# How words begin that people have in the names of their splits.
_CALLED = {"train": "train", "validation": "val|dev", "test": "test|eval"}


def _is_split(folder: Path, *splits: str) -> bool:
    """Whether a folder is called like a split, and has folders as no class does."""
    called = "|".join(_CALLED[split] for split in splits)
    found = re.search(rf"(^|[^a-z])({called})", folder.name.casefold())
    return bool(found and _subfolders(folder))


def _check_unread(root: Path, split: str) -> None:
    """Refuses a split that would be cut from the others while it lies there."""
    unread = next((f for f in _subfolders(root) if _is_split(f, split)), None)
    if unread is not None:
        raise ValueError(
            f"{root} has the folder {unread.name} beside train, which has folders in its "
            "turn and would not be read: splits are called train, val and test; rename "
            "it or move it away"
        )


def _check_name(folder: Path) -> None:
    """Refuses a name that no report or data card could be written with."""
    if folder.name.encode(errors="replace").decode() != folder.name:
        raise ValueError(
            f"data.source: the folder's name {folder.name!a} is not UTF-8: rename it"
        )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith((".", "__MACOSX"))
    )


def image_paths(folder: Path) -> list[Path]:
    """Returns the images below a class folder, but those of hidden files and folders."""
    return [path for path in _visible_files(folder) if _is_image(path)]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _visible_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix and not any(p[0] == "." for p in path.relative_to(folder).parts)
    )


def _read_class_folders(root: Path) -> tuple[tuple[str, ...], Pool]:
    """Lists `root/<class>/**/*.png` and so on; the order is the sorted paths'."""
    folders = _subfolders(root)
    if not folders:
        raise ValueError(
            f"{root} has no class folders; image_folder wants {root}/<class>/*.png"
        )
    split = next((f for f in folders if _is_split(f, "train")), None)
    if split and any(_is_split(f, "validation", "test") for f in folders):
        raise ValueError(
            f"{root} has the folder {split.name}, which has folders in its turn: splits "
            "are called train, val and test; rename them"
        )
    if len(folders) == 1 and _subfolders(folders[0]):
        raise ValueError(
            f"{root} has one folder, {folders[0].name}, which has folders in its turn; "
            f"did you mean image_folder:{folders[0]}?"
        )
    images, labels, others = [], [], collections.Counter()
    for label, folder in enumerate(folders):
        _check_name(folder)
        visible = _visible_files(folder)
        files = [path for path in visible if _is_image(path)]
        left_out = (path for path in visible if not _is_image(path) and path.is_file())
        others.update(path.suffix for path in left_out)
        if not files:
            raise ValueError(
                f"class folder {folder} has no image ({', '.join(IMAGE_SUFFIXES)}); "
                "add some or remove the folder"
            )
        images += [_Encoded(str(path), path) for path in files]
        labels += [label] * len(files)
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(5))
        logging.getLogger(__name__).warning(
            "%s: files that are no images known here are left out: %s", root, kinds
        )
    return tuple(folder.name for folder in folders), _encoded_pool(images, labels)


def _read_tfds(path: str, data_dir: str) -> Source:
    """Reads a TFDS directory through its random-access reader, without TensorFlow."""
    import tensorflow_datasets as tfds
    from etils import epath

    # epath and not pathlib: the directory may be in a bucket (gs://).
    root = epath.Path(path).expanduser()
    if data_dir and not root.is_absolute():
        root = epath.Path(data_dir).expanduser() / path
    if not (root / "dataset_info.json").exists():
        # One level above or two: the data set's directory, or that of all data sets.
        levels = ("*/dataset_info.json", "*/*/dataset_info.json")
        inner = [path for level in levels for path in sorted(root.glob(level))]
        hint = f"; did you mean tfds:{inner[0].parent}?" if inner else ""
        raise FileNotFoundError(
            f"data.source: no {root / 'dataset_info.json'}; tfds:PATH wants the "
            f"directory of one version of one prepared data set{hint}"
        )
    with _damage_explained(root):
        builder = tfds.builder_from_directory(root)
        info = builder.info
    if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise ValueError(
            f"{root} is stored as {info.file_format.value}, which only TensorFlow "
            "reads; prepare it again with: tfds build --file_format=array_record"
        )
    for key, kind in (
        ("image", tfds.features.Image),
        ("label", tfds.features.ClassLabel),
    ):
        if not (key in info.features and isinstance(info.features[key], kind)):
            raise ValueError(
                f"{root}: feature {key!r} must be a tfds {kind.__name__}, found "
                f"{sorted(info.features)}"
            )
    if "train" not in info.splits:
        raise ValueError(f"{root} has no split 'train', only {sorted(info.splits)}")

    def read(split: str) -> Pool | None:
        if split not in info.splits:
            return None
        # Encoded bytes: they are decoded later, and only those that are kept.
        examples = builder.as_data_source(
            split=split, decoders={"image": tfds.decode.SkipDecoding()}
        )

        def encoded(i):
            return bytes(examples[i]["image"])

        def facts(i):
            example = examples[i]
            return int(example["label"]), zlib.crc32(example["image"]) & _INT32

        # Every record is read once for these, by one of the processes; images are read
        # again when they are used.
        labels, checksums = gather_rows(
            len(examples),
            lambda rows: np.array(list(_threads().map(facts, rows)), np.int64),
        ).T
        images = [
            _Encoded(
                f"{i} of split {split} in {root}", functools.partial(encoded, i), crc
            )
            for i, crc in enumerate(checksums.tolist())
        ]
        return _encoded_pool(images, labels)

    with _damage_explained(root):
        train, validation, test = map(read, ("train", "validation", "test"))
    # ImageNet's test split has the label -1 throughout: useless here.
    if test is not None and (test.labels < 0).all():
        test = None
    if test is None:
        validation, test = None, validation
    classes = tuple(info.features["label"].names)
    provenance = f"TFDS {info.full_name}"
    return Source(info.name, train, validation, test, classes, provenance)


@contextlib.contextmanager
def _damage_explained(root):
    """Turns whatever TFDS and ArrayRecord raise at a damaged file into one message."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{root} is damaged ({reason}): prepare the data set again"
        ) from error


def _make_synthetic(text: str, data_dir: str) -> Source:
    """Gratings: a class has its own direction, frequency and colours; phases vary."""
    options = {"classes": 10, "size": 64, "n": 20, "channels": 3, "seed": 0}
    least = {"classes": 1, "size": 2, "n": 2, "channels": 1, "seed": 0}
    for item in filter(None, text.split(",")):
        key, _, value = (part.strip() for part in item.partition("="))
        if key not in options:
            raise ValueError(
                f"data.source = 'synthetic:{text}': unknown option {key!r}; known: "
                f"{', '.join(options)}"
            )
        if not (value.isdecimal() and int(value) >= least[key]):
            raise ValueError(
                f"data.source = 'synthetic:{text}': {key}={value!r} must be an integer "
                f"of at least {least[key]}"
            )
        options[key] = int(value)
    if options["channels"] not in (1, 3):
        raise ValueError(f"data.source = 'synthetic:{text}': channels must be 1 or 3")
    classes, size, n, channels, seed = options.values()

    grid = np.mgrid[:size, :size] / size  # [2, size, size]
    pixels = np.empty((classes, n, size, size, channels), np.uint8)
    for label in range(classes):
        rng = np.random.default_rng([seed, label])
        # The golden angle keeps the directions of any number of classes apart.
        angle = label * np.pi * 0.618 + rng.normal(0, 0.05, [n, 1, 1])
        frequency = 2 + label % 3
        phase = rng.uniform(0, 2 * np.pi, [n, 1, 1])
        travel = np.sin(angle) * grid[0] + np.cos(angle) * grid[1]
        wave = 0.5 + 0.5 * np.sin(2 * np.pi * frequency * travel + phase)
        dark, light = rng.uniform(0, 0.4, channels), rng.uniform(0.6, 1, channels)
        image = dark + (light - dark) * wave[..., None]
        image = image + rng.normal(0, 0.05, image.shape)
        pixels[label] = np.round(255 * image.clip(0, 1))
    labels = np.repeat(np.arange(classes), n)
    pool = Pool(pixels.reshape(-1, size, size, channels), labels)
    digits = len(str(classes - 1))
    names = tuple(f"grating_{label:0{digits}d}" for label in range(classes))
    provenance = f"generated gratings, {options}"
    return Source("synthetic", pool, None, None, names, provenance)


# What a source's name stands for: `(what follows the colon, data.data_dir) -> Source`.
READERS: dict[str, Callable[[str, str], Source]] = {
    "digits": _read_digits,
    "fashion_mnist": _read_fashion_mnist,
    "image_folder": _read_image_folder,
    "synthetic": _make_synthetic,
    "tfds": _read_tfds,
}
