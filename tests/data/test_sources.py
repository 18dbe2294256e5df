"""Sources on small files made here: splits, decoding, and what errors say."""

import gzip
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from blobs import png, prepare_tfds
from PIL import Image

from ot_dd import data
from ot_dd.data import sources


def _rows(*splits):
    return np.concatenate(
        [split.images.reshape(len(split.labels), -1) for split in splits]
    )


def _assert_sound(dataset):
    shape = dataset.train.images.shape[1:]
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.images.dtype == np.uint8 and split.images.shape[1:] == shape
        assert split.labels.dtype == np.int32
        assert split.labels.shape == (len(split.images),)
        assert set(split.labels) <= set(range(len(dataset.class_names)))
    assert set(dataset.train.labels) == set(range(len(dataset.class_names)))


# --- Splits ---------------------------------------------------------------------------


def test_quotas_by_hand():
    # Shares 2.5, 0.75, 1.75: floors 2, 0, 1, and the total of 5 tops up the last two.
    np.testing.assert_array_equal(
        sources._quotas(np.array([10, 3, 7]), 0.25), [2, 1, 2]
    )
    # One of two is cut though the share rounds to nothing; an only image is kept.
    np.testing.assert_array_equal(sources._quotas(np.array([2, 1, 0]), 0.1), [1, 0, 0])
    np.testing.assert_array_equal(sources._quotas(np.array([2, 2]), 0.99), [1, 1])


def test_splits_are_disjoint_stratified_and_follow_the_seed():
    source = "synthetic:classes=4,size=8,n=20"
    first = data.load(source, seed=1)
    _assert_sound(first)
    assert np.bincount(first.test.labels).tolist() == [4] * 4
    # 10 % of 64 is 6: each class gets the 1 it is owed, the rest goes by remainders.
    assert np.bincount(first.validation.labels).tolist() == [2, 2, 1, 1]
    assert (
        len(np.unique(_rows(first.train, first.validation, first.test), axis=0)) == 80
    )
    again, other = data.load(source, seed=1), data.load(source, seed=2)
    np.testing.assert_array_equal(first.train.images, again.train.images)
    assert not np.array_equal(first.test.images, other.test.images)


def test_max_per_class_keeps_the_test_set():
    source = "synthetic:classes=3,size=8,n=20"
    whole, small = data.load(source), data.load(source, max_per_class=5)
    np.testing.assert_array_equal(whole.test.images, small.test.images)
    pool = np.concatenate([small.train.labels, small.validation.labels])
    assert np.bincount(pool).tolist() == [5] * 3
    assert "at most 5" in small.provenance


def test_no_validation():
    dataset = data.load("synthetic:classes=3,size=8,n=5", validation_fraction=0.0)
    assert dataset.validation.images.shape == (0, 8, 8, 3)


# --- Arrays ---------------------------------------------------------------------------


def test_digits():
    dataset = data.load("digits", test_fraction=0.1)
    _assert_sound(dataset)
    assert dataset.test.images.shape == (719, 8, 8, 1)
    assert len(dataset.train.labels) + len(dataset.validation.labels) == 1797 - 719
    assert dataset.train.images.min() == 0 and dataset.train.images.max() == 255
    assert dataset.class_names == tuple("0123456789")
    assert "719" not in dataset.provenance and "test 0.4" in dataset.provenance


def test_synthetic_is_generated_from_its_own_seed_and_classes_differ():
    first = data.load("synthetic:classes=3,size=12,n=8,channels=1,seed=4")
    _assert_sound(first)
    assert first.train.images.shape[1:] == (12, 12, 1)
    again = data.load("synthetic:classes=3,size=12,n=8,channels=1,seed=4")
    np.testing.assert_array_equal(first.train.images, again.train.images)
    other = data.load("synthetic:classes=3,size=12,n=8,channels=1,seed=5")
    assert not np.array_equal(first.train.images, other.train.images)


def test_synthetic_classes_can_be_told_apart():
    # Amplitude spectra do not see the phase: nearest class mean should work well.
    dataset = data.load("synthetic:size=16,n=20,channels=1")

    def spectrum(split):
        pixels = split.images[..., 0].astype(float)
        return np.abs(np.fft.fft2(pixels - pixels.mean((1, 2), keepdims=True)))

    train, test = spectrum(dataset.train), spectrum(dataset.test)
    means = np.stack([train[dataset.train.labels == k].mean(0) for k in range(10)])
    guess = ((test[:, None] - means) ** 2).sum((2, 3)).argmin(1)
    assert (guess == dataset.test.labels).mean() > 0.8


def test_image_size_resizes_arrays():
    dataset = data.load("synthetic:classes=2,size=16,n=5", image_size=8)
    assert dataset.train.images.shape[1:] == (8, 8, 3)
    grey = data.load("synthetic:classes=2,size=8,n=5,channels=1", image_size=16)
    assert grey.train.images.shape[1:] == (16, 16, 1)


@pytest.mark.parametrize(
    "source, said",
    [
        ("digit", "did you mean 'digits'"),
        ("imagenet", "known: digits"),
        ("digits:8", "takes nothing"),
        ("tfds", "has no path"),
        ("image_folder:", "image_folder:/path"),
        ("synthetic:clases=3", "unknown option 'clases'"),
        ("synthetic:classes=-3", "classes='-3'"),
        ("synthetic:size=many", "size='many'"),
        ("synthetic:channels=2", "1 or 3"),
    ],
)
def test_bad_source(source, said):
    with pytest.raises(ValueError, match="data.source") as error:
        data.load(source)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "field, value",
    [
        ("image_size", -1),
        ("validation_fraction", 1.0),
        ("test_fraction", 0.0),
        ("seed", -1),
        ("max_per_class", -2),
    ],
)
def test_bad_number_names_the_field(field, value):
    with pytest.raises(ValueError, match=f"data.{field} = {value}"):
        data.load("digits", **{field: value})


# --- Fashion-MNIST --------------------------------------------------------------------


def _idx(array, magic=None):
    magic = magic if magic is not None else bytes([0, 0, 8, array.ndim])
    return magic + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def fashion_dir(tmp_path):
    rng = np.random.default_rng(0)
    for stem, n in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 256, (n, 28, 28), np.uint8)
        labels = np.arange(n, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            with gzip.open(tmp_path / f"{stem}-{kind}-ubyte.gz", "wb") as file:
                file.write(_idx(array))
    return tmp_path


def test_fashion_mnist(fashion_dir):
    dataset = data.load("fashion_mnist", data_dir=str(fashion_dir))
    _assert_sound(dataset)
    assert dataset.test.images.shape == (20, 28, 28, 1)
    np.testing.assert_array_equal(dataset.test.labels, np.arange(20) % 10)
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8)
    ours = _rows(dataset.train, dataset.validation)
    assert {row.tobytes() for row in ours} == {image.tobytes() for image in images}


def test_fashion_mnist_as_debian_packages_it():
    if not sources.FASHION_MNIST_DIR.is_dir():
        pytest.skip("dataset-fashion-mnist is not installed")
    dataset = data.load("fashion_mnist", max_per_class=20)
    _assert_sound(dataset)
    assert dataset.test.images.shape == (10000, 28, 28, 1)
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10


def test_fashion_mnist_missing_names_package_and_field(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        data.load("fashion_mnist", data_dir=str(tmp_path))
    assert "dataset-fashion-mnist" in str(error.value)
    assert "data.data_dir" in str(error.value)


def _damaged(kind, images):
    whole = _idx(images)
    if kind == "truncated gzip":
        return gzip.compress(whole)[:-20]
    if kind == "not gzip":
        return whole
    raw = {
        "truncated idx": whole[:-1],
        "long idx": whole + b"0",
        "wrong magic": _idx(images, magic=b"\0\0\x0d\3"),
        "empty": b"",
        "header only": whole[:9],
        "fewer images": _idx(images[:-1]),
    }[kind]
    return gzip.compress(raw)


@pytest.mark.parametrize(
    "kind, said",
    [
        ("truncated gzip", "not a whole gzip file"),
        ("not gzip", "not a whole gzip file"),
        ("truncated idx", "truncated or damaged"),
        ("long idx", "truncated or damaged"),
        ("wrong magic", "starts with 00000d03"),
        ("empty", "starts with nothing"),
        ("header only", "starts with"),
        ("fewer images", "has 39 images"),
    ],
)
def test_damaged_fashion_mnist_says_which_file(fashion_dir, kind, said):
    path = fashion_dir / "train-images-idx3-ubyte.gz"
    path.write_bytes(_damaged(kind, np.zeros((40, 28, 28), np.uint8)))
    with pytest.raises(ValueError) as error:
        data.load("fashion_mnist", data_dir=str(fashion_dir))
    assert str(path) in str(error.value) and said in str(error.value)


def test_label_out_of_range(fashion_dir):
    labels = np.full(20, 10, np.uint8)
    path = fashion_dir / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(_idx(labels)))
    with pytest.raises(ValueError, match="test split: image 0 has label 10"):
        data.load("fashion_mnist", data_dir=str(fashion_dir))


# --- Image folders --------------------------------------------------------------------


def _save(path, size=(8, 8), mode="RGB", value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(value)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)


def _class_folders(root, counts=(6, 5), **options):
    for label, count in enumerate(counts):
        for i in range(count):
            _save(root / f"class_{label}" / f"{i}.png", value=10 * label + i, **options)
    return root


def test_bare_class_folders_are_split_by_the_seed(tmp_path):
    dataset = data.load(f"image_folder:{_class_folders(tmp_path)}", test_fraction=0.4)
    _assert_sound(dataset)
    assert dataset.class_names == ("class_0", "class_1")
    assert np.bincount(dataset.test.labels).tolist() == [2, 2]
    assert dataset.train.images.shape[1:] == (8, 8, 3)
    # Lossless: the pixels are the files'.
    expected = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    rows = _rows(dataset.train, dataset.validation, dataset.test)
    assert (rows == expected.ravel()).all(1).any()


def test_train_and_val_folders_make_val_the_test_set(tmp_path):
    _class_folders(tmp_path / "train", (6, 5))
    _class_folders(tmp_path / "val", (3, 3))
    dataset = data.load(f"image_folder:{tmp_path.name}", data_dir=str(tmp_path.parent))
    _assert_sound(dataset)
    assert len(dataset.test.labels) == 6
    assert len(dataset.train.labels) + len(dataset.validation.labels) == 11


def test_all_three_folders_are_kept(tmp_path):
    for split, counts in (("train", (4, 4)), ("val", (2, 3)), ("test", (3, 2))):
        _class_folders(tmp_path / split, counts)
    dataset = data.load(f"image_folder:{tmp_path}")
    sizes = [len(x.labels) for x in (dataset.train, dataset.validation, dataset.test)]
    assert sizes == [8, 5, 5]


def test_a_class_may_be_called_train(tmp_path):
    for name in ("plane", "train"):
        for i in range(4):
            _save(tmp_path / name / f"{i}.png", value=i)
    assert data.load(f"image_folder:{tmp_path}").class_names == ("plane", "train")


def test_splits_of_other_names_are_no_classes(tmp_path):
    _class_folders(tmp_path / "Training")
    _class_folders(tmp_path / "Testing")
    with pytest.raises(ValueError, match="Training, which has folders in its turn"):
        data.load(f"image_folder:{tmp_path}")


@pytest.mark.parametrize("other", ["Test", "testing", "my-eval", "Val", "dev"])
def test_a_split_that_would_not_be_read_is_named(tmp_path, other):
    _class_folders(tmp_path / "train")
    (tmp_path / other).mkdir()  # Without folders it is no split.
    assert data.load(f"image_folder:{tmp_path}").train.images.shape[1:3] == (8, 8)
    _class_folders(tmp_path / other)
    with pytest.raises(ValueError, match=f"the folder {other} beside train"):
        data.load(f"image_folder:{tmp_path}")


def test_splits_with_folders_of_their_own_name_are_no_classes(tmp_path):
    for split in ("seg_train", "seg_test"):
        _class_folders(tmp_path / split / split)
    with pytest.raises(ValueError, match="the folder seg_train, which has folders"):
        data.load(f"image_folder:{tmp_path}")


def test_a_folder_whose_name_is_not_utf8_is_refused(tmp_path):
    _class_folders(tmp_path)
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    with pytest.raises(ValueError, match=r"'caf\\udce9' is not UTF-8: rename it"):
        data.load(f"image_folder:{tmp_path}")


def test_a_split_called_valid_is_the_validation_split(tmp_path):
    for split, counts in (("train", (4, 4)), ("valid", (2, 3)), ("test", (3, 2))):
        _class_folders(tmp_path / split, counts)
    dataset = data.load(f"image_folder:{tmp_path}")
    sizes = [len(x.labels) for x in (dataset.train, dataset.validation, dataset.test)]
    assert sizes == [8, 5, 5]


def test_hidden_folders_hold_no_images(tmp_path):
    _class_folders(tmp_path)
    _save(tmp_path / "class_0" / ".ipynb_checkpoints" / "0.png")
    dataset = data.load(f"image_folder:{tmp_path}")
    assert len(_rows(dataset.train, dataset.validation, dataset.test)) == 11


def test_files_that_are_left_out_are_named(tmp_path, caplog):
    _class_folders(tmp_path)
    (tmp_path / "__MACOSX" / "class_0").mkdir(parents=True)
    (tmp_path / "class_0" / "v1.2").mkdir()
    data.load(f"image_folder:{tmp_path}")
    assert not caplog.messages
    for name in ("a.heic", "b.heic", "Thumbs.db", ".DS_Store"):
        (tmp_path / "class_0" / name).touch()
    dataset = data.load(f"image_folder:{tmp_path}")
    assert len(_rows(dataset.train, dataset.validation, dataset.test)) == 11
    (said,) = caplog.messages
    assert said.endswith("known here are left out: 2 .heic, 1 .db")


def test_grey_and_colour_files(tmp_path):
    _class_folders(tmp_path, (4, 4), mode="L")
    assert data.load(f"image_folder:{tmp_path}").train.images.shape[-1] == 1
    _save(tmp_path / "class_0" / "colour.png")
    dataset = data.load(f"image_folder:{tmp_path}")
    assert dataset.train.images.shape[-1] == dataset.test.images.shape[-1] == 3


def test_palette_alpha_and_cmyk_become_rgb(tmp_path):
    _class_folders(tmp_path, (2, 2))
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    red.convert("RGBA").save(tmp_path / "class_0" / "alpha.png")
    red.convert("P").save(tmp_path / "class_0" / "palette.gif", transparency=0)
    red.convert("CMYK").save(tmp_path / "class_0" / "cmyk.jpg", quality=100)
    dataset = data.load(f"image_folder:{tmp_path}")
    rows = _rows(dataset.train, dataset.validation, dataset.test).reshape(-1, 64, 3)
    close = np.abs(rows.astype(int) - [255, 0, 0]).max((1, 2)) < 8
    assert close.sum() == 3


def test_resize_keeps_the_centre(tmp_path):
    # Blue | green | red in a wide image: the centre square is green.
    for name in ("a", "b"):
        for i in range(2):
            image = np.zeros((10, 30, 3), np.uint8)
            image[:, :10, 2] = image[:, 10:20, 1] = image[:, 20:, 0] = 255
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(image).save(tmp_path / name / f"{i}.png")
    dataset = data.load(f"image_folder:{tmp_path}", image_size=20)
    assert dataset.train.images.shape[1:] == (20, 20, 3)
    np.testing.assert_array_equal(dataset.train.images[0, 10, 3:-3], [[0, 255, 0]] * 14)


def test_sizes_that_differ_ask_for_image_size(tmp_path):
    _class_folders(tmp_path, (3, 3))
    _save(tmp_path / "class_1" / "wide.png", size=(12, 9))
    with pytest.raises(ValueError, match="data.image_size") as error:
        data.load(f"image_folder:{tmp_path}")
    assert "8x8" in str(error.value) and "12x9" in str(error.value)
    dataset = data.load(f"image_folder:{tmp_path}", image_size=6)
    assert dataset.train.images.shape[1:] == (6, 6, 3)


def test_undecodable_image_is_named(tmp_path):
    _class_folders(tmp_path)
    path = tmp_path / "class_1" / "2.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match="cannot decode") as error:
        data.load(f"image_folder:{tmp_path}")
    assert str(path) in str(error.value)


def test_sixteen_bit_image_is_refused(tmp_path):
    _class_folders(tmp_path)
    wide = Image.fromarray(np.full((8, 8), 40000, np.uint16))
    wide.save(tmp_path / "class_0" / "wide.png")
    with pytest.raises(ValueError, match="not 8 bits"):
        data.load(f"image_folder:{tmp_path}")


def test_folder_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no directory"):
        data.load(f"image_folder:{tmp_path / 'nowhere'}")
    with pytest.raises(ValueError, match="no class folders"):
        data.load(f"image_folder:{tmp_path}")
    _class_folders(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("none yet")
    with pytest.raises(ValueError, match="empty has no image"):
        data.load(f"image_folder:{tmp_path}")


def test_class_folders_that_disagree(tmp_path):
    _class_folders(tmp_path / "train", (3, 3, 3))
    _class_folders(tmp_path / "test", (3, 3))
    with pytest.raises(ValueError, match="different class folders: class_2"):
        data.load(f"image_folder:{tmp_path}")


def test_one_image_a_class_cannot_be_split(tmp_path):
    with pytest.raises(ValueError, match="test split is empty"):
        data.load(f"image_folder:{_class_folders(tmp_path, (1, 1))}")


# --- TFDS -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    splits = {"train": (12, True), "validation": (4, True), "test": (3, False)}
    return prepare_tfds(tmp_path_factory.mktemp("tfds"), splits)


def test_tfds(tfds_dir):
    dataset = data.load(f"tfds:{tfds_dir}")
    _assert_sound(dataset)
    assert dataset.class_names == ("cat", "dog") and dataset.name == "blobs"
    # As in ImageNet: the unlabelled test split is passed over for the validation split.
    assert np.bincount(dataset.test.labels).tolist() == [2, 2]
    train = np.concatenate([dataset.train.labels, dataset.validation.labels])
    assert np.bincount(train).tolist() == [6, 6]
    rows = _rows(dataset.train, dataset.validation)
    expected = {png(i % 2, i)[0].tobytes() for i in range(12)}
    assert {row.tobytes() for row in rows} == expected
    assert dataset.provenance.startswith("TFDS blobs/1.0.0;")


def test_tfds_resizes_and_limits(tfds_dir):
    dataset = data.load(f"tfds:{tfds_dir}", image_size=4, max_per_class=3)
    assert dataset.test.images.shape == (4, 4, 4, 3)
    assert len(dataset.train.labels) + len(dataset.validation.labels) == 6


def test_tfds_reads_without_tensorflow(tfds_dir):
    code = (
        "import sys; from ot_dd import data; "
        f"print(data.load('tfds:{tfds_dir}').train.images.shape); "
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(10, 8, 8, 3)"


def test_tfds_missing_directory_hints_at_the_version(tfds_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match="dataset_info.json"):
        data.load(f"tfds:{tmp_path}")
    with pytest.raises(FileNotFoundError, match="did you mean tfds:.*1.0.0"):
        data.load(f"tfds:{tfds_dir.parent}")


def test_tfds_in_tfrecords_is_refused(tfds_dir, tmp_path):
    copy = tmp_path / "1.0.0"
    copy.mkdir()
    for path in tfds_dir.iterdir():
        if path.suffix == ".json":
            text = path.read_text()
            copy.joinpath(path.name).write_text(
                text.replace("array_record", "tfrecord")
            )
    with pytest.raises(ValueError, match="--file_format=array_record"):
        data.load(f"tfds:{copy}")
