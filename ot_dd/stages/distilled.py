"""The product on disk: images by class, soft labels, and what they came from.

`images/<class>/<index>.png` is an ImageFolder as it is; `dataset.json` describes it.
"""

import io
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from ot_dd.checkpoint import read_json, write_atomic, write_json
from ot_dd.config import to_dict
from ot_dd.data.sources import read_image
from ot_dd.parallel import barrier, is_leader
from ot_dd.stages.artifacts import ImageSet, Prepared
from ot_dd.stages.relabel import SoftLabels, relabel, view_parameters
from ot_dd.stages.study import choose_teachers
from ot_dd.workdir import WorkDir


def write_distilled(
    config, workdir: WorkDir, prepared: Prepared, product: ImageSet
) -> SoftLabels:
    """Relabels the product and writes `distilled/`, whole, in place of what was there.

    Args:
      config: the whole config.
      workdir: `distilled/` is written below it.
      prepared: teachers and provenance.
      product: the full method's set.

    Returns:
      The soft labels.
    """
    teachers = choose_teachers(config, workdir, prepared)
    soft = relabel(config, workdir, prepared, product, teachers=teachers)
    final = (workdir.path / "distilled").resolve()
    root, before = (
        final.with_name(f".{final.name}.{name}") for name in ("part", "old")
    )
    if is_leader():
        shutil.rmtree(root, ignore_errors=True)
    names = class_folders(prepared.dataset.class_names)
    image_bytes = _write_images(root / "images", names, product) if is_leader() else 0
    views = view_parameters(config, product, soft)
    if soft.logits is not None:
        views["logits"] = soft.logits
    write_atomic(
        root / "soft_labels" / "views.npz", lambda file: np.savez(file, **views)
    )
    description = {
        "name": config.name,
        "class_names": list(prepared.dataset.class_names),
        "folders": names,
        "ipc": int(product.images.shape[1]),
        "image_shape": list(product.images.shape[2:]),
        "set_seed": product.seed,
        "config_seed": config.seed,
        "soft_labels": {
            "mode": config.lia.mode,
            "views": soft.views,
            "seed": soft.seed,
            "teachers": [t.name for t in prepared.teachers[: soft.teachers]],
            "what": "mean of the teachers' logits, float16, one row a view",
            "augment": to_dict(config.data.augment),
        },
        "provenance": {
            "data": prepared.dataset.provenance,
            "networks": "trained on the training split, but for those under weights",
            "weights": prepared.facts["weights"],
            "recipe": product.key,
            "labels": soft.key,
        },
        "bytes": {
            "images": image_bytes,
            "soft_labels": soft.bytes(),
            "view_parameters": int(
                sum(v.nbytes for k, v in views.items() if k != "logits")
            ),
        },
    }
    write_json(root / "dataset.json", description)
    if is_leader():
        shutil.rmtree(before, ignore_errors=True)
        if final.exists():
            final.rename(before)
        root.rename(final)
        shutil.rmtree(before, ignore_errors=True)
    barrier("distilled")
    return soft


def _write_images(root: Path, names: list[str], product: ImageSet) -> int:
    """Writes `<class>/<index>.png`; returns their bytes."""

    def write(path, image):
        encoded = _png(image)
        write_atomic(path, lambda file: file.write(encoded))
        return len(encoded)

    paths = [
        root / name / f"{index:04d}.png"
        for name in names
        for index in range(product.images.shape[1])
    ]
    images, _ = product.flat()
    with ThreadPoolExecutor() as pool:
        return sum(pool.map(write, paths, images))


def load_distilled(directory: Path) -> tuple[np.ndarray, np.ndarray, dict]:
    """Reads a distilled set.

    Args:
      directory: a `distilled/` folder, or one that `ot_dd.export` made an image folder.

    Returns:
      Images uint8 `[n, h, w, c]`, labels `[n]`, and `dataset.json`.

    Raises:
      FileNotFoundError: when the folder has no `dataset.json`.
      ValueError: when its files disagree with `dataset.json`.
    """
    directory = Path(directory)
    description = read_json(directory / "dataset.json", remedy="distil again")
    if description is None:
        raise FileNotFoundError(f"{directory} has no dataset.json: not a distilled set")
    if not _is_description(description):
        raise ValueError(
            f"{directory / 'dataset.json'} is damaged or not of a distilled set: distil "
            "again; without that file the folder is read as folders of classes"
        )
    for folder in description["folders"]:
        if Path(folder).name != folder or folder in ("", ".", "..") or "\0" in folder:
            raise ValueError(
                f"{directory / 'dataset.json'} names {folder!r}, which is no folder of "
                "the set: distil again"
            )
    if not _images_of(directory).is_dir():
        raise ValueError(
            f"{directory} has no images/: give the distilled set itself, or its export "
            "as image_folder"
        )
    shape = tuple(description["image_shape"])
    images, labels = [], []
    for label, folder in enumerate(description["folders"]):
        files = image_files(directory, folder)
        if len(files) != description["ipc"]:
            raise ValueError(
                f"{_images_of(directory) / folder} holds {len(files)} images, "
                f"dataset.json says {description['ipc']}"
            )
        for file in files:
            images.append(read_image(file, shape[-1]))
            if images[-1].shape != images[0].shape:
                raise ValueError(
                    f"{file} has shape {images[-1].shape}, others {images[0].shape}"
                )
        labels += [label] * len(files)
    stacked = np.stack(images)
    if stacked.shape[1:] != shape:
        raise ValueError(
            f"{directory} holds images of shape {stacked.shape[1:]}, dataset.json says "
            f"{shape}"
        )
    return stacked, np.asarray(labels, np.int32), description


def image_files(directory: Path, folder: str) -> list[Path]:
    """Returns the images of a class."""
    return sorted((_images_of(directory) / folder).glob("[!.]*.png"))


def _images_of(directory):
    """Returns where the classes are: an exported image folder has them in `train/`."""
    exported = not (directory / "images").exists() and (directory / "train").exists()
    return directory / ("train" if exported else "images")


def _is_description(found) -> bool:
    """Whether a JSON value has the fields of `dataset.json`, each of its type."""

    def is_list(value, kind):
        return isinstance(value, list) and value and all(type(v) is kind for v in value)

    return (
        isinstance(found, dict)
        and isinstance(found.get("name"), str)
        and is_list(found.get("class_names"), str)
        and is_list(found.get("folders"), str)
        and is_list(found.get("image_shape"), int)
        and len(found["image_shape"]) == 3
        and found["image_shape"][-1] in (1, 3)
        and type(found.get("ipc")) is int
        and found["ipc"] > 0
        and len(found["class_names"]) == len(found["folders"])
    )


def class_folders(names) -> list[str]:
    """Returns folder names in class order: ImageFolder sorts them, so they count."""
    digits = len(str(max(len(names) - 1, 1)))
    words = (re.sub(r"[\W_]+", "_", name)[:60].strip("_") for name in names)
    return [f"{i:0{digits}d}_{word or 'class'}" for i, word in enumerate(words)]


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    grey = image.shape[-1] == 1
    Image.fromarray(image[..., 0] if grey else image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
