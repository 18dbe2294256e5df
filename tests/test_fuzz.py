"""Files that others made, damaged in any way: they are read, or refused in one message.

Nothing but ValueError and FileNotFoundError may leave a reader, whatever is in a file.
"""

import gzip
import json
import shutil
import struct

import numpy as np
import pytest
import torch
from blobs import prepare_tfds
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file

from ot_dd import convert, data
from ot_dd.convert import _files, _pickle
from ot_dd.stages.distilled import load_distilled

MESSAGES = (ValueError, FileNotFoundError)
fuzzed = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,  # a failure in CI is a failure here
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
edits = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6
)
lengths = st.one_of(st.just(1.0), st.floats(0, 1))


def damaged(content: bytes, changes, length: float) -> bytes:
    """Replaces bytes at shares of the length, and cuts the rest off."""
    changed = bytearray(content)
    for where, value in changes:
        changed[int(where * len(changed))] = value
    return bytes(changed[: int(length * len(changed))])


def read_tensors(path):
    file = convert.open_tensors(path)
    return {key: file.read(key) for key in file.shapes}


@fuzzed
@given(edits, lengths, st.booleans())
def test_idx(tmp_path, changes, length, inside):
    images = struct.pack(">4B3I", 0, 0, 8, 3, 20, 4, 4) + bytes(range(16)) * 20
    labels = struct.pack(">4BI", 0, 0, 8, 1, 20) + bytes(i % 10 for i in range(20))
    for stem in ("train", "t10k"):
        for kind, whole in (("images-idx3", images), ("labels-idx1", labels)):
            path = tmp_path / f"{stem}-{kind}-ubyte.gz"
            if inside:
                path.write_bytes(gzip.compress(damaged(whole, changes, length)))
            else:
                path.write_bytes(damaged(gzip.compress(whole), changes, length))
    try:
        found = data.load("fashion_mnist", data_dir=str(tmp_path))
    except MESSAGES as error:
        assert str(tmp_path) in str(error) or "fashion_mnist" in str(error)
    else:
        assert found.train.images.dtype == np.uint8


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    splits = {"train": (12, True), "validation": (4, True)}
    return prepare_tfds(tmp_path_factory.mktemp("tfds"), splits)


@fuzzed
@given(st.data(), edits, lengths)
def test_a_tfds_directory(tfds_dir, tmp_path, draw, changes, length):
    copy = tmp_path / "1.0.0"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(tfds_dir, copy)
    path = copy / draw.draw(st.sampled_from(sorted(p.name for p in copy.iterdir())))
    path.write_bytes(damaged(path.read_bytes(), changes, length))
    try:
        found = data.load(f"tfds:{copy}")
    except MESSAGES as error:
        assert "1.0.0" in str(error) or "blobs" in str(error)
    else:
        assert found.train.images.shape[1:] == (8, 8, 3)


@fuzzed
@given(edits, lengths)
def test_safetensors(tmp_path, changes, length):
    path = tmp_path / "x.safetensors"
    save_file({"a": np.arange(6.0), "b": np.ones((2, 3), np.float16)}, path)
    path.write_bytes(damaged(path.read_bytes(), changes, length))
    try:
        read_tensors(path)
    except MESSAGES as error:
        assert "x.safetensors" in str(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=8,
)
header_entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "I64", "X9"]) | json_values,
        "shape": st.lists(st.integers(-3, 2**40), max_size=4) | json_values,
        "data_offsets": st.lists(st.integers(-9, 2**40), max_size=3) | json_values,
    },
)


@fuzzed
@given(st.dictionaries(st.text(max_size=9), header_entries, max_size=3), st.binary())
def test_a_safetensors_header(tmp_path, header, content):
    path = tmp_path / "x.safetensors"
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    try:
        read_tensors(path)
    except MESSAGES as error:
        assert "x.safetensors" in str(error)


@pytest.mark.parametrize("new", [True, False])
@fuzzed
@given(changes=edits, length=lengths)
def test_pickles_by_our_reader(tmp_path, new, changes, length):
    path = tmp_path / "x.pt"
    tensors = {"a": torch.arange(6.0), "b": {"c": torch.ones(2, 3).half()}}
    torch.save(tensors, path, _use_new_zipfile_serialization=new)
    path.write_bytes(damaged(path.read_bytes(), changes, length))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_files, "find_spec", lambda name: None)
        try:
            read_tensors(path)
        except MESSAGES as error:
            assert "x.pt" in str(error)


@fuzzed
@given(st.binary(max_size=200))
@example(b"cos\nsystem\n(S'true'\ntR.")
def test_any_pickle_makes_plain_values_or_nothing(tmp_path, content):
    assume(content)
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    try:
        _pickle.load(path)
    except Exception as error:  # noqa: BLE001 - `open_tensors` makes one message of it
        assert not isinstance(error, MemoryError)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    root = tmp_path_factory.mktemp("distilled")
    for folder in ("0_a", "1_b"):
        (root / "images" / folder).mkdir(parents=True)
        for i in range(2):
            pixels = np.full((8, 8), 40 * i, np.uint8)
            Image.fromarray(pixels).save(root / "images" / folder / f"{i}.png")
    return root


DESCRIPTION = {
    "name": "x", "class_names": ["a", "b"], "folders": ["0_a", "1_b"], "ipc": 2,
    "image_shape": [8, 8, 1],
}  # fmt: skip


@fuzzed
@given(st.sampled_from(sorted(DESCRIPTION)), json_values)
@example("image_shape", [0])
@example("image_shape", [8, 8, 2])
@example("image_shape", [4, 16, 1])
def test_a_field_of_a_description(distilled, name, value):
    text = json.dumps(DESCRIPTION | {name: value})
    (distilled / "dataset.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        images, labels, _ = load_distilled(distilled)
    except MESSAGES as error:
        assert str(distilled) in str(error)
    else:
        assert images.dtype == np.uint8 and len(images) == len(labels)


@fuzzed
@given(edits, lengths)
def test_the_text_of_a_description(distilled, changes, length):
    whole = json.dumps(DESCRIPTION).encode()
    (distilled / "dataset.json").write_bytes(damaged(whole, changes, length))
    try:
        load_distilled(distilled)
    except MESSAGES as error:
        assert str(distilled) in str(error)
