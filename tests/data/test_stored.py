"""Images and latents that stay on disk: the same rows, in an order that resumes."""

import shutil
import zlib

import jax
import numpy as np
import pytest
from blobs import png, prepare_tfds
from PIL import Image

from configs.digits import get_config
from ot_dd import data
from ot_dd.data import Stored, Stream
from ot_dd.data.stored import read_records, write_records
from ot_dd.stages.prepare import load_data
from ot_dd.workdir import WorkDir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Class folders of JPEG files, wider than high, one of them grey."""
    root = tmp_path_factory.mktemp("jpeg")
    rng = np.random.default_rng(0)
    for label in range(3):
        (root / f"c{label}").mkdir()
        for i in range(20):
            pixels = rng.integers(0, 256, (24, 32, 3), np.uint8)
            image = Image.fromarray(pixels).convert("L" if i == 0 else "RGB")
            image.save(root / f"c{label}" / f"{i}.jpg", quality=95)
    return root


def test_rows_are_those_of_the_array():
    whole = np.arange(60).reshape(12, 5)
    stored = Stored(whole.shape, whole.dtype, lambda rows: whole[rows])
    mask = np.arange(12) % 5 == 0
    pairs, none = np.array([[7, 0], [0, 11]]), np.array([], int)
    for index in (3, -1, slice(2, 9, 3), mask, pairs, none):
        np.testing.assert_array_equal(stored[index], whole[index])
    np.testing.assert_array_equal(np.asarray(stored), whole)
    assert len(stored) == 12 and stored.nbytes == whole.nbytes
    with pytest.raises(IndexError):
        stored[12]


@pytest.mark.parametrize("kind", ["image_folder", "tfds"])
def test_a_set_on_disk_is_the_set_in_memory(kind, folder, tmp_path):
    source = f"image_folder:{folder}"
    if kind == "tfds":
        source = f"tfds:{prepare_tfds(tmp_path, {'train': (12, True)})}"
    kept = data.load(source, image_size=16)
    stored = data.load(source, image_size=16, in_memory_gb=0)
    assert kept.class_names == stored.class_names
    for ours, theirs in ((kept.train, stored.train), (kept.test, stored.test)):
        assert isinstance(ours.images, np.ndarray) and isinstance(theirs.images, Stored)
        np.testing.assert_array_equal(ours.images, np.asarray(theirs.images))
        np.testing.assert_array_equal(ours.labels, theirs.labels)


def test_an_image_that_does_not_decode_is_named_when_it_is_used(folder, tmp_path):
    (tmp_path / "a").mkdir()
    for i in range(6):
        Image.new("RGB", (16, 16)).save(tmp_path / "a" / f"{i}.jpg")
    (tmp_path / "a" / "4.jpg").write_bytes(b"no image")
    found = data.load(f"image_folder:{tmp_path}", image_size=16, in_memory_gb=0)
    with pytest.raises(ValueError, match="4.jpg"):
        for split in (found.train, found.validation, found.test):
            np.asarray(split.images)


def test_other_pixels_on_disk_are_other_data(folder, tmp_path):
    """As many images of the same names, on disk or in memory: no network of theirs."""
    root = tmp_path / "copy"
    shutil.copytree(folder, root)
    made = get_config()
    made.data.source, made.data.image_size = f"image_folder:{root}", 16

    def keys():
        found = []
        for made.data.in_memory_gb in (8.0, 0.0):
            found.append(load_data(made)[2])
        return found

    before = keys()
    assert keys() == before and before[0] != before[1]
    path = root / "c1" / "3.jpg"
    Image.open(path).transpose(Image.Transpose.ROTATE_180).save(path, quality=95)
    assert not set(keys()) & set(before)


def test_a_folder_that_moves_is_the_same_data(folder, tmp_path):
    made = get_config()
    made.data.image_size = 16

    def keys(root):
        made.data.source, found = f"image_folder:{root}", []
        for made.data.in_memory_gb in (8.0, 0.0):
            found.append(load_data(made)[2])
        return found

    shutil.copytree(folder, tmp_path / "moved")
    assert keys(folder) == keys(f"{folder}/") == keys(tmp_path / "moved")


def test_one_class_is_no_data_set(folder, tmp_path):
    shutil.copytree(folder / "c1", tmp_path / "photos" / "all")
    made = get_config()
    made.data.source, made.data.image_size = f"image_folder:{tmp_path / 'photos'}", 16
    made.ipc = 1
    with pytest.raises(ValueError, match="has one class, 'all'"):
        load_data(made)


@pytest.mark.parametrize("ending", ["ppm", "bmp", "tif", "png"])
def test_one_other_pixel_is_another_image(ending, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    (tmp_path / "a").mkdir()
    for i in range(6):
        Image.fromarray(pixels).save(tmp_path / "a" / f"{i}.{ending}")
    pixels[8, 8] ^= 1
    Image.fromarray(pixels).save(tmp_path / "a" / f"3.{ending}")
    found = data.load(f"image_folder:{tmp_path}", image_size=16, in_memory_gb=0)
    parts = (found.train, found.validation, found.test)
    marks = np.concatenate([part.images.marks() for part in parts])
    assert sorted(np.unique(marks, return_counts=True)[1]) == [1, 5]


def test_records_are_told_apart_by_all_of_their_bytes(tmp_path):
    source = f"tfds:{prepare_tfds(tmp_path, {'train': (12, True)})}"
    found = data.load(source, image_size=16, in_memory_gb=0)
    parts = (found.train, found.validation, found.test)
    marks = np.concatenate([part.images.marks() for part in parts])
    written = [zlib.crc32(png(i % 2, i)[1].getvalue()) & 0x7FFFFFFF for i in range(12)]
    assert sorted(marks.tolist()) == sorted(written)


def batches(stream, first, lengths):
    feed = stream.feed(None, first, iter(lengths))
    return np.concatenate([np.asarray(batch.columns[0]) for batch in feed])


def test_an_epoch_has_every_row_once_and_a_run_can_go_on_from_any_step():
    rows = np.arange(24)
    stream = Stream((rows, -rows), size=6, seed=3)
    whole = batches(stream, 0, [3, 3, 2])
    assert whole.shape == (8, 6)
    for epoch in (whole[:4], whole[4:]):
        np.testing.assert_array_equal(np.sort(epoch.ravel()), rows)
    assert (whole[:4] != whole[4:]).any()
    np.testing.assert_array_equal(batches(stream, 5, [1, 2]), whole[5:])
    np.testing.assert_array_equal(batches(stream, 2, [4]), whole[2:6])
    other = batches(stream._replace(seed=4), 0, [8])
    assert (other != whole).any()
    (both,) = stream.feed(None, 0, iter([8]))
    np.testing.assert_array_equal(both.columns[1], -both.columns[0])
    shapes = [(x.shape, x.dtype) for x in jax.tree.leaves(stream.example(8))]
    assert shapes == [(x.shape, np.dtype(int)) for x in both.columns]


def test_large_batches_are_held_a_few_steps_at_a_time():
    images = Stored((10_000, 256, 256, 3), np.uint8, None)
    assert Stream((images,), 256, 0).chunk(25) == 5
    assert Stream((np.arange(10),), 5, 0).chunk(25) == 25
    assert Stream((images,), 10_000, 0).chunk(25) == 1


def test_records_come_back_from_several_files(tmp_path):
    rows = np.random.default_rng(0).normal(size=(10, 2, 3)).astype(np.float32)
    paths = [tmp_path / "a" / f"{i}.array_record" for i in range(3)]
    for path, part in zip(paths, np.split(rows, [4, 8])):
        write_records(path, part)
    stored = read_records(paths, rows.shape, np.float32)
    np.testing.assert_array_equal(stored[[9, 0, 4]], rows[[9, 0, 4]])
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [p.name for p in paths]
    with pytest.raises(ValueError, match="holds 10 rows in its parts, expected 11"):
        read_records(paths, (11, 2, 3), np.float32)
    paths[1].write_bytes(paths[1].read_bytes()[:40])
    with pytest.raises(ValueError, match="is damaged .*: delete it"):
        read_records(paths, rows.shape, np.float32)[np.arange(10)]


def test_parts_that_are_missing_are_made_and_no_others(tmp_path):
    work, rows = WorkDir(tmp_path), np.arange(30.0, dtype=np.float32).reshape(10, 3)
    made = []

    def make(part):
        made.append((part.start, part.stop))
        return rows[part.start : part.stop]

    def stored():
        return work.records("latents-x", rows.shape, np.float32, 4, make)

    np.testing.assert_array_equal(np.asarray(stored()), rows)
    assert made == [(0, 4), (4, 8), (8, 10)]
    names = sorted(path.name for path in (tmp_path / "cache" / "latents-x").iterdir())
    assert names == [f"0000{i}-of-00003.array_record" for i in range(3)]
    (tmp_path / "cache" / "latents-x" / names[1]).unlink()
    np.testing.assert_array_equal(stored()[[9, 5]], rows[[9, 5]])
    assert made[3:] == [(4, 8)]


def test_figures_of_many_stored_images_take_the_same_rows_of_both():
    """More images than such figures need: their labels are thinned alike."""
    from ot_dd import models
    from ot_dd.stages.artifacts import Autoencoder, Classifier
    from ot_dd.stages.prepare import _MANY, _on_reconstructions

    labels = np.random.default_rng(0).integers(0, 2, 3 * _MANY + 1).astype(np.int32)
    pixels = np.repeat(255 * labels.astype(np.uint8), 4).reshape(-1, 2, 2, 1)
    stored = Stored(pixels.shape, np.uint8, lambda rows: pixels[rows])
    pixel_space = Autoencoder({}, 0.0, 1.0, None, (2, 2, 1), 0)
    module = models.create("mlp", num_classes=2)
    black_and_white = np.stack([np.full((2, 2, 1), v, np.float32) for v in (-1, 1)])

    def classifier(seed):
        variables = module.init(jax.random.key(seed), black_and_white)
        return Classifier(variables, module, "mlp")

    # One that tells them apart, whatever it calls them: always right, or never.
    sharp = next(
        c for c in map(classifier, range(50)) if np.ptp(c(black_and_white).argmax(-1))
    )
    found = [
        _on_reconstructions(pixel_space, (sharp,), data.Images(images, labels))["mlp"]
        for images in (pixels, stored)
    ]
    assert found[0] == found[1] and found[0] in (0.0, 1.0)
