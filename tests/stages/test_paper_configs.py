"""The paper's configs at debug size, through the same code.

Images are generated; those of ImageWoof are JPEG files that stay on disk.
"""

import importlib

import numpy as np
import pytest
from PIL import Image

from ot_dd.distill import run


def write_photographs(root):
    rng = np.random.default_rng(0)
    colours = (200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40)
    for label, colour in enumerate(colours):  # As many as the other configs' classes.
        (root / f"n{label}").mkdir(parents=True)
        for i in range(12):
            pixels = np.clip(rng.normal(0, 30, (70, 90, 3)) + colour, 0, 255)
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(root / f"n{label}" / f"{i}.jpg")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet1k", "imagenette", "imagewoof", "cifar100"])
def test_runs_end_to_end(name, tmp_path):
    config = importlib.import_module(f"configs.{name}").get_config("debug")
    if name == "imagewoof":
        write_photographs(tmp_path / "images")
        config.data.source = f"image_folder:{tmp_path / 'images'}"
        config.data.in_memory_gb, config.refine.steps = 0.0, 2
    results = run(config, tmp_path)
    sets = {record["set"] for record in results["records"]}
    assert sets == {"ot_dd", "random", "diffusion"}
    assert (tmp_path / "report.html").exists()
    parts = list((tmp_path / "cache").glob("latents-*/*.array_record"))
    assert len(parts) == (name == "imagewoof")
    # All three terms were on: the guided set differs from the plain one.
    assert (
        results["sets"]["ot_dd"]["transport"]
        != results["sets"]["diffusion"]["transport"]
    )
