"""Reading images that stay on disk, beside PyTorch's loader.

    python -m benchmarks.reading [--json=benchmarks/reading.json] [--folder=DIR]

A generated folder in ImageNet's shape: 1,000 classes of five JPEG files of 500 x 375
pixels, some 100 kB each. Batches of 64, shuffled, each image resized to 256 (bicubic) and
its centre kept: ours by `Stream` (grain's threads), PyTorch's by `DataLoader` with one
worker process a core, in turn, as uint8. The floor is Pillow alone in one thread, times
the cores.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ot_dd import data
from ot_dd.data import Stream
from tests import peers  # noqa: F401 - torchvision cannot be imported before it

CLASSES, EACH, BATCH, STEPS, ROUNDS = 1000, 5, 64, 12, 3


def write_folder(root: Path) -> None:
    """Writes the folder; what is there already is kept."""
    for label in range(CLASSES):
        folder = root / "train" / f"n{label:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(EACH):
            path = folder / f"{number}.JPEG"
            if path.exists():
                continue
            rng = np.random.default_rng((label, number))
            image = None
            for side, weight in ((8, 0.6), (64, 0.25), (375, 0.15)):
                noise = rng.integers(0, 256, (side * 3 // 4, side, 3), np.uint8)
                part = Image.fromarray(noise).resize(
                    (500, 375), Image.Resampling.BICUBIC
                )
                part = np.asarray(part, np.float32) * weight
                image = part if image is None else image + part
            Image.fromarray(image.astype(np.uint8)).save(path, quality=93)


def ours(dataset):
    """Returns a function that reads some batches, and how many images that is."""
    images, labels = dataset.train
    steps = iter(())

    def run():
        nonlocal steps
        stream = Stream((images, labels), BATCH, run.turn)
        run.turn += 1
        steps = stream.feed(None, 0, iter([1] * STEPS))
        for batch in steps:
            batch.columns[0].block_until_ready()

    run.turn = 0
    return run


def pytorch(root: Path, workers: int):
    """Returns the same by torchvision's folder and PyTorch's loader."""
    import torch
    from torchvision import datasets, transforms

    views = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(256),
            transforms.PILToTensor(),
        ]
    )
    folder = datasets.ImageFolder(str(root / "train"), views)

    def run():
        loader = torch.utils.data.DataLoader(
            folder, BATCH, shuffle=True, num_workers=workers, drop_last=True
        )
        for number, _ in enumerate(loader):
            if number + 1 == STEPS:
                break

    return run


def floor(root: Path) -> float:
    """Returns the images a second that Pillow decodes and resizes in one thread."""
    paths = sorted((root / "train").glob("*/0.JPEG"))[:200]
    began = time.perf_counter()
    for path in paths:
        with Image.open(path) as image:
            image.convert("RGB").resize((341, 256), Image.Resampling.BICUBIC)
    return len(paths) / (time.perf_counter() - began)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as made:
        root = arguments.folder or Path(made)
        write_folder(root)
        began = time.perf_counter()
        dataset = data.load(
            f"image_folder:{root}", image_size=256, in_memory_gb=0.0, test_fraction=0.1
        )
        opened = time.perf_counter() - began
        runs = {"ot_dd": ours(dataset), "pytorch": pytorch(root, cores)}
        rates: dict[str, list[float]] = {name: [] for name in runs}
        floors = []
        for _ in range(ROUNDS):
            floors.append(cores * floor(root))
            for name, run in runs.items():
                began = time.perf_counter()
                run()
                rates[name].append(BATCH * STEPS / (time.perf_counter() - began))
        files = list((root / "train").glob("*/*.JPEG"))
        size = sum(path.stat().st_size for path in files) / len(files)
    found = {
        "files": len(files),
        "kilobytes_each": round(size / 1e3, 1),
        "cores": cores,
        "seconds_to_open": round(opened, 2),
        "images_a_second": {
            name: round(statistics.median(values), 1) for name, values in rates.items()
        },
        "floor": round(statistics.median(floors), 1),
    }
    own = found["images_a_second"]["ot_dd"]
    found["ratio_to_ours"] = {
        name: round(value / own, 2) for name, value in found["images_a_second"].items()
    } | {"floor": round(found["floor"] / own, 2)}
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
