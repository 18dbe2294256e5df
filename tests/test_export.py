"""Exports, read back by those who will: torchvision, TFDS and Hugging Face's datasets."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ot_dd import export as exporting
from ot_dd.checkpoint import write_json
from ot_dd.stages.distilled import class_folders, load_distilled

NAMES = ["T-shirt/top", "Ankle boot"]
FOLDERS = ["0_T_shirt_top", "1_Ankle_boot"]


@pytest.fixture
def distilled(tmp_path):
    """A set of 2 x 3 grey images of 4 x 5 pixels, with labels of 2 views."""
    root, rng = tmp_path / "run" / "distilled", np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 3, 4, 5), np.uint8)
    for folder, own in zip(FOLDERS, images):
        (root / "images" / folder).mkdir(parents=True)
        for i, pixels in enumerate(own):
            Image.fromarray(pixels).save(root / "images" / folder / f"{i:04d}.png")
    logits = rng.normal(size=(2, 1, 6, 2)).astype(np.float16)
    (root / "soft_labels").mkdir()
    rows = np.tile(np.arange(6), (2, 1, 1))
    np.savez(root / "soft_labels" / "views.npz", rows=rows, logits=logits)
    about = {
        "name": "shoes & shirts", "class_names": NAMES, "folders": FOLDERS, "ipc": 3,
        "image_shape": [4, 5, 1], "set_seed": 0,
        "soft_labels": {"teachers": ["convnet3"], "what": "mean logits"},
        "provenance": {"data": "somewhere", "networks": "trained", "weights": [],
                       "recipe": "abc", "labels": "def"},
    }  # fmt: skip
    write_json(root / "dataset.json", about)
    record = {
        "set": "ot_dd",
        "student": "mlp",
        "labels": "hard",
        "variant": "",
        "ipc": 3,
    }
    records = [
        record | {"accuracy": accuracy, "set_seed": seed, "student_seed": 0}
        for seed, accuracy in enumerate((0.5, 0.7))
    ]
    product = {"recipe": "abc", "labels": "def"}
    write_json(root.parent / "results.json", {"product": product, "records": records})
    return root, images.reshape(6, 4, 5), logits


def test_torchvision_reads_the_image_folder(distilled, tmp_path):
    import peers  # noqa: F401 - lets torchvision be imported
    import torchvision

    root, images, _ = distilled
    made = exporting.export(root, tmp_path / "out", "image_folder")
    folder = torchvision.datasets.ImageFolder(made / "train")
    assert [label for _, label in folder] == [0, 0, 0, 1, 1, 1]
    grey = [np.asarray(image)[..., 0] for image, _ in folder]
    np.testing.assert_array_equal(grey, images)


def test_tfds_reads_its_directory(distilled, tmp_path):
    import tensorflow_datasets as tfds

    root, images, _ = distilled
    made = exporting.export(root, tmp_path / "first", "tfds")
    made = exporting.export(root, tmp_path / "out", "tfds")  # And once more.
    builder = tfds.builder_from_directory(str(made))
    assert builder.info.features["label"].names == NAMES
    found = list(builder.as_data_source(split="train"))
    # In the order that the rows of the soft labels count.
    assert [int(e["label"]) for e in found] == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal([e["image"][..., 0] for e in found], images)


def test_datasets_reads_parquet(distilled, tmp_path):
    import datasets

    root, images, _ = distilled
    made = exporting.export(root, tmp_path / "out", "parquet")
    found = datasets.load_dataset(
        str(made), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert found.features["label"].names == NAMES
    assert list(found["label"]) == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal([np.asarray(e["image"]) for e in found], images)


@pytest.mark.parametrize(
    ("kept", "names"),
    [
        ("all", {"rows", "logits"}),
        ("top-1", {"rows", "top_classes", "top_logits"}),
        ("seeds", {"rows"}),
        ("none", None),
    ],
)
def test_soft_labels_travel_along(distilled, tmp_path, kept, names):
    root, _, logits = distilled
    made = exporting.export(root, tmp_path / "out", "image_folder", soft_labels=kept)
    path = made / "soft_labels" / "views.npz"
    assert path.exists() == (names is not None)
    if names is None:
        return
    views = dict(np.load(path))
    assert set(views) == names
    if kept == "top-1":
        np.testing.assert_array_equal(views["top_classes"][..., 0], logits.argmax(-1))
        np.testing.assert_array_equal(views["top_logits"][..., 0], logits.max(-1))


def test_the_card_says_what_and_how_well(distilled, tmp_path):
    root, _, _ = distilled
    made = exporting.export(root, tmp_path / "out", "image_folder")
    card = (made / "README.md").read_text()
    assert "3 synthetic images of each of 2 classes, 4x5x1" in card
    assert "| ot_dd | mlp | hard | 2 | 60.0 ± 14.1 / – |" in card
    assert "somewhere" in card and "2512.00308" in card
    assert json.loads((made / "dataset.json").read_text())["ipc"] == 3
    results = json.loads((root.parent / "results.json").read_text())
    for key in ("recipe", "labels"):
        product = results["product"] | {key: "of another set"}
        write_json(root.parent / "results.json", results | {"product": product})
        made = exporting.export(root, tmp_path / key, "image_folder")
        assert "60.0" not in (made / "README.md").read_text()


def test_the_card_of_labels_made_online(distilled, tmp_path):
    root, _, _ = distilled
    about = json.loads((root / "dataset.json").read_text())
    about["soft_labels"]["mode"] = "online"
    write_json(root / "dataset.json", about)
    made = exporting.export(root, tmp_path / "out", "image_folder")
    card = (made / "README.md").read_text()
    assert "the views alone, which are to be labelled by convnet3." in card


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ("all", "Soft labels: mean logits, by convnet3."),
        ("top-1", "Soft labels: mean logits, the top-1 of each, by convnet3."),
        ("seeds", "the views alone, which are to be labelled by convnet3."),
        ("none", "none came along; there were some by convnet3."),
    ],
)
def test_the_card_says_which_labels_came_along(distilled, tmp_path, kept, said):
    made = exporting.export(
        distilled[0], tmp_path / "out", "image_folder", soft_labels=kept
    )
    card = (made / "README.md").read_text()
    assert said in card and ("`mix_box`" in card) == (kept != "none")
    # A set in a form that is not read here.
    (made / "train").rename(made / "data")
    with pytest.raises(ValueError, match="has no images/"):
        load_distilled(made)


def test_an_exported_image_folder_is_a_distilled_set(distilled, tmp_path):
    root, images, _ = distilled
    made = exporting.export(root, tmp_path / "out", "image_folder")
    found, labels, about = load_distilled(made)
    np.testing.assert_array_equal(found[..., 0], images)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1] and about["ipc"] == 3
    (made / "train" / FOLDERS[0] / "._0000.png").write_bytes(b"macOS")
    again = exporting.export(made, tmp_path / "again", "image_folder")
    file = next((again / "train").rglob("*.png"))
    with Image.open(file) as image:
        colours = image.convert("RGB")
    colours.quantize(256).save(file)  # As tools do that make files smaller.
    np.testing.assert_array_equal(load_distilled(again)[0], found)
    assert len(list((again / "train").rglob("*.png"))) == 6


def test_folders_keep_letters_of_every_script():
    names = ["狐", "été/automne", "++", "ж" * 99]
    assert class_folders(names) == ["0_狐", "1_été_automne", "2_class", f"3_{'ж' * 60}"]


def test_the_command(distilled, tmp_path):
    command = [
        sys.executable, "-m", "ot_dd.export", f"--distilled={distilled[0]}",
        f"--output={tmp_path / 'out'}", "--format=parquet",
    ]  # fmt: skip
    assert subprocess.run(command).returncode == 0
    assert list((tmp_path / "out").rglob("*.parquet"))


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (None, ["--format=csv"], "--format is 'csv'"),
        (None, ["--soft-labels=top-x"], "must be all, top-K"),
        ("output", [], "exists"),
        ("image", [], "holds 2 images, dataset.json says 3"),
        ("labels", [], "views.npz is missing"),
        ("damaged", [], "views.npz is damaged"),
        ("json", [], "not a distilled set"),
        ("provenance", [], "has no provenance"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    distilled, tmp_path, capsys, change, arguments, message
):
    root, _, _ = distilled
    if change == "output":
        (tmp_path / "out").mkdir()
    elif change == "image":
        (root / "images" / FOLDERS[0] / "0001.png").unlink()
    elif change == "labels":
        (root / "soft_labels" / "views.npz").unlink()
    elif change == "damaged":
        (root / "soft_labels" / "views.npz").write_bytes(b"PK")
    elif change == "provenance":
        about = json.loads((root / "dataset.json").read_text())
        write_json(root / "dataset.json", about | {"provenance": None})
    elif change == "json":
        (root / "dataset.json").unlink()
    given = [f"--distilled={root}", f"--output={tmp_path / 'out'}", *arguments]
    assert exporting.main(given) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.strip().splitlines()) == 1
    left = {p.name for p in tmp_path.iterdir()} - {"run"}
    assert left == ({"out"} if change == "output" else set())
