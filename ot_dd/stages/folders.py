"""Sets of images made by anybody, read from folders of classes."""

import hashlib
import itertools
import re
import unicodedata
from pathlib import Path

import numpy as np

from ot_dd.config import fingerprint
from ot_dd.data import Dataset
from ot_dd.data.sources import image_paths, read_image
from ot_dd.stages.artifacts import ImageSet
from ot_dd.stages.distilled import load_distilled


def read_image_set(
    directory: Path, dataset: Dataset, *, name: str, seed: int = 0
) -> tuple[ImageSet, str]:
    """Reads a distilled set or an image folder, in the order of the data's classes.

    Folders are matched with classes by name where every name is found, with or without
    a leading number; otherwise they are taken in sorted order, which the note says: a
    set whose classes are in another order scores at chance.

    Args:
      directory: a `distilled/` folder, or one folder of images for each class.
      dataset: the data that the set is judged on.
      name: what the set is called in records.
      seed: what the set is numbered in records.

    Returns:
      The set and a note on how it was read.

    Raises:
      FileNotFoundError: when there is no such directory.
      ValueError: when it does not fit the data, naming the folder or file.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is no directory of images")
    if (directory / "dataset.json").exists():
        images, labels, about = load_distilled(directory)
        names = about["class_names"]
        if list(names) != list(dataset.class_names):
            raise ValueError(
                f"{directory} holds the classes {names}, the config's data "
                f"{list(dataset.class_names)}: give the --config that the set is of"
            )
        stacked = images.reshape(len(names), -1, *images.shape[1:])
        note = f"distilled set {about['name']}, {stacked.shape[1]} images per class"
    else:
        stacked, note = _read_folders(directory, dataset)
    wanted = dataset.train.images.shape[1:]
    if stacked.shape[2:] != wanted:
        raise ValueError(
            f"{directory} has images of {stacked.shape[2:]}, the config's data of "
            f"{wanted}: set config.data.image_size, or save the set at that size"
        )
    digest = hashlib.sha256(np.ascontiguousarray(stacked).tobytes()).hexdigest()
    key = fingerprint(stacked.shape, digest)
    return ImageSet(name, seed, stacked, None, key), note


def _read_folders(directory, dataset):
    folders = sorted(
        (
            path
            for path in directory.iterdir()
            if path.is_dir() and not path.name.startswith(".")
        ),
        key=_natural,
    )
    plain = _plain
    if len(set(map(plain, dataset.class_names))) < len(dataset.class_names):
        plain = str  # Names that differ in case or signs alone are taken as they are.
    classes = dataset.class_names
    if len(folders) != len(classes):
        inner = directory / "distilled"
        raise ValueError(
            f"{directory} has {len(folders)} class folders, the config's data "
            f"{len(classes)} classes" + (f": is it {inner}?" if inner.is_dir() else "")
        )
    note = "folders in sorted order, none of them named like the classes"
    for theirs, ours in itertools.product((str, _without_number), repeat=2):
        names = [plain(theirs(name)) for name in classes]
        table = {plain(ours(folder.name)): folder for folder in folders}
        if len(set(names)) < len(names):
            continue  # The number is what tells the classes apart.
        missing = [n for n, p in zip(classes, names) if p not in table]
        if not missing:
            folders = [table[name] for name in names]
            note = "folders matched with classes by name"
            break
        some = len(missing) < len(classes)
        if some and (ours is not str or len(missing) < (len(classes) + 1) // 2):
            raise ValueError(
                f"{directory} has folders named like some of the classes, but none for "
                f"{missing[:5]}: name all of them like the classes, or none"
            )
    channels = dataset.train.images.shape[-1]
    per_class = [_read_images(folder, channels) for folder in folders]
    for folder, images in zip(folders, per_class):
        if images.shape[1:] != per_class[0].shape[1:]:
            raise ValueError(
                f"the images of {folder} are {images.shape[1:3]} pixels, those of "
                f"{folders[0].name} {per_class[0].shape[1:3]}: the images of a set agree "
                "in size"
            )
    counts = {len(images) for images in per_class}
    if len(counts) > 1:
        smallest = min(range(len(folders)), key=lambda i: len(per_class[i]))
        raise ValueError(
            f"{folders[smallest]} has {len(per_class[smallest])} images, another class "
            f"{max(counts)}: a set has the same number of images in each class"
        )
    return np.stack(per_class), f"{note}, {counts.pop()} images per class"


def _read_images(folder, channels) -> np.ndarray:
    paths = image_paths(folder)
    if not paths:
        raise ValueError(f"{folder} has no image: every class needs as many")
    images = []
    for path in paths:
        images.append(read_image(path, channels))
        if images[-1].shape != images[0].shape:
            raise ValueError(
                f"{path} is {images[-1].shape[:2]} pixels, {paths[0].name} "
                f"{images[0].shape[:2]}: the images of a set agree in size"
            )
    return np.stack(images)


def _plain(name: str) -> str:
    name = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"[\W_]+", "", name) or name


def _without_number(name: str) -> str:
    return re.sub(r"^\d+[\W_]+(?=.)", "", name)


def _natural(path: Path) -> list:
    """Sorts 2 before 10."""
    return [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", path.name)]
