"""Tensor files: every format, damaged ones, and pickles that would run code."""

import argparse
import os
import pickle
import shutil
import subprocess
import sys
import zipfile

import jax
import numpy as np
import peers
import pytest
import torch
from safetensors.numpy import save_file

from ot_dd import convert, models
from ot_dd.convert import _files, _pickle


@pytest.fixture(params=["torch", "our reader"])
def reader(request, monkeypatch):
    """Reads .pt files with PyTorch, and as if it were not installed."""
    if request.param == "our reader":
        monkeypatch.setattr(_files, "find_spec", lambda name: None)
    return request.param


def tensors():
    base = torch.arange(24.0).reshape(4, 6)
    return {
        "a.weight": base,
        "b.weight": base.t()[1:4],  # A view, transposed, with an offset.
        "c": torch.tensor(7),
        "d": torch.randn(3).to(torch.bfloat16),
        "e": torch.randn(2, 2).half(),
        "f": torch.nn.Parameter(torch.ones(2)),
        "empty": torch.zeros(0, 3),
    }


@pytest.mark.parametrize("new", [True, False])
def test_pytorch_files(reader, new, tmp_path):
    path, wanted = tmp_path / "x.pt", tensors()
    torch.save(wanted, path, _use_new_zipfile_serialization=new)
    file = convert.open_tensors(path)
    assert file.shapes == {k: tuple(v.shape) for k, v in wanted.items()}
    for key, value in wanted.items():
        ours = np.asarray(file.read(key), np.float32)
        np.testing.assert_array_equal(ours, value.detach().float().numpy())


def test_training_checkpoints_are_unwrapped(reader, tmp_path):
    torch.save(
        {"model": {"x": torch.zeros(1)}, "ema": {"module.x": torch.ones(2)}, "step": 3},
        tmp_path / "x.pth",
    )
    file = convert.open_tensors(tmp_path / "x.pth")
    np.testing.assert_array_equal(file.read("x"), [1.0, 1.0])


def test_settings_called_like_weights_are_passed_over(reader, tmp_path):
    for decay in (0.999, torch.tensor(0.999)):
        content = {"ema": {"decay": decay}, "state_dict": {"x": torch.ones(2)}}
        torch.save(content, tmp_path / "x.pth")
        file = convert.open_tensors(tmp_path / "x.pth")
        np.testing.assert_array_equal(file.read("x"), [1.0, 1.0])


@pytest.mark.parametrize("ending", ["safetensors", "npz", "pt"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrapped_modules(ending, prefix, tmp_path):
    path, arrays = tmp_path / f"x.{ending}", {f"{prefix}a.module.b": np.ones(2, "f4")}
    if ending == "pt":
        torch.save({k: torch.from_numpy(v) for k, v in arrays.items()}, path)
    elif ending == "npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)
    file = convert.open_tensors(path)
    assert file.shapes == {"a.module.b": (2,)}
    np.testing.assert_array_equal(file.read("a.module.b"), [1.0, 1.0])


class Evil:
    """Touches a file when it is unpickled by the standard library."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("style", ["zip", "stream", "plain"])
def test_a_pickle_that_runs_code_is_refused(reader, style, tmp_path):
    trap, path = tmp_path / "trap", tmp_path / "x.pt"
    content = {"w": torch.zeros(2), "evil": Evil(trap)}
    if style == "plain":
        path.write_bytes(pickle.dumps({"evil": Evil(trap)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=style == "zip")
    with pytest.raises(ValueError, match="refused"):
        convert.open_tensors(path)
    assert not trap.exists()
    # The trap is real: the standard library falls into it.
    pickle.loads(pickle.dumps(Evil(trap)))
    assert trap.exists()


@pytest.mark.parametrize(
    "name", [("builtins", "eval"), ("torch", "load"), ("collections", "namedtuple")]
)
def test_our_reader_knows_tensors_alone(name, tmp_path):
    module, attribute = name
    path = tmp_path / "x.pt"
    path.write_bytes(f"c{module}\n{attribute}\n(S'1'\ntR.".encode())
    with pytest.raises(pickle.UnpicklingError, match=f"{module}.{attribute}"):
        _pickle.load(path)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (5,), (1,)), (3, (2,), (1,)), (0, (2, 2), (3, 1)), (-1, (2,), (1,)),
     (2, (2,), (-1,)), (0, (5,), (0,))],
)  # fmt: skip
def test_a_tensor_outside_its_storage_is_refused(offset, shape, strides):
    class Bytes(_pickle._Source):
        def _bytes(self, key, length):
            return bytes(length)

    storage = _pickle._Storage(Bytes(), "0", np.dtype("f4"), 4)
    with pytest.raises(ValueError, match="outside"):
        _pickle.Tensor(storage, offset, shape, strides).read()


def test_safetensors_and_npz(tmp_path):
    wanted = {"a": np.arange(6.0, dtype="f4").reshape(2, 3), "b": np.ones((), "i8")}
    save_file(wanted, tmp_path / "x.safetensors")
    np.savez(tmp_path / "x.npz", **wanted)
    for name in ("x.safetensors", "x.npz"):
        file = convert.open_tensors(tmp_path / name)
        assert file.shapes == {"a": (2, 3), "b": ()}
        for key, value in wanted.items():
            np.testing.assert_array_equal(file.read(key), value)


def test_npz_with_objects_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{}], object))
    file = convert.open_tensors(tmp_path / "x.npz")
    with pytest.raises(ValueError, match=r"x\.npz.*allow_pickle"):
        file.read("a")


@pytest.mark.parametrize("ending", ["safetensors", "npz", "pt"])
@pytest.mark.parametrize("cut", [0.0, 0.4, 0.99])
def test_truncated_files(reader, ending, cut, tmp_path):
    path = tmp_path / f"x.{ending}"
    if ending == "pt":
        torch.save(tensors(), path)
    elif ending == "npz":
        np.savez(path, a=np.zeros((10, 10)))
    else:
        save_file({"a": np.zeros((10, 10), "f4")}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(ValueError, match="x." + ending):
        convert.open_tensors(path)


def test_a_pickle_without_named_tensors(reader, tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "x.pt")
    with pytest.raises(ValueError, match="state_dict"):
        convert.open_tensors(tmp_path / "x.pt")


def test_training_settings_are_passed_over(reader, tmp_path):
    content = {"ema": {"x": torch.ones(2)}, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "x.pt")
    file = convert.open_tensors(tmp_path / "x.pt")
    np.testing.assert_array_equal(file.read("x"), [1.0, 1.0])


def _deep_key():
    """A dictionary whose key takes for ever to hash: tuples of twice the same tuple."""
    tuples = b"".join(b"h%ch%c\x86q%c" % (k, k, k + 1) for k in range(40))
    return b"\x80\x02}(K\x01\x85q\x00" + tuples + b"K\x01u."


@pytest.mark.parametrize(
    "content",
    [
        b"hello",
        b"\x80",
        b"",
        _deep_key(),
        b")" + b"\x85" * 100_000 + b".",
        b"\x80\x02N" + b"r\xff\xff\xff\xff" + b".",
        b"\x80\x02" + b"B\xff\xff\xff\x7f" + b".",
        b"\x80\x02(]q\x00h\x00d.",
        b"\x80\x02\x8f.",
        b"\x80\x02\x82\x01.",
    ],
    ids=range(10),
)
def test_hostile_pickles_are_one_message(reader, content, tmp_path):
    # Two of them would hang, or take the process down, in the standard library.
    if reader == "torch" and content in (_deep_key(),):
        pytest.skip("PyTorch's own affair")
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pt"):
        convert.open_tensors(tmp_path / "x.pt")


def test_tensors_that_are_larger_than_the_file_are_refused(reader, tmp_path):
    torch.save({"w": torch.zeros(1).expand(10_000, 1000)}, tmp_path / "x.pt")
    file = convert.open_tensors(tmp_path / "x.pt")
    with pytest.raises(ValueError, match="its storage"):
        file.read("w")


def test_compressed_archives_are_refused(tmp_path):
    torch.save({"w": torch.zeros(1000)}, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as plain,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(pickle.UnpicklingError, match="compressed"):
        _pickle.load(tmp_path / "y.pt")


@pytest.mark.parametrize("kind", ["i8", "?", "c16"])
def test_other_types_than_floats_are_refused(kind, tmp_path):
    state = peers.from_torchvision("resnet18", num_classes=3).state_dict()
    arrays = {k: v.numpy() for k, v in state.items()}
    arrays["fc.bias"] = arrays["fc.bias"].astype(kind)
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(convert.ConversionError, match="fc.bias.*expected a float"):
        convert.convert("resnet18", tmp_path / "x.npz", tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["x.npz"]


def test_the_other_byte_order_is_read(tmp_path):
    state = peers.from_torchvision("resnet18", num_classes=3).state_dict()
    arrays = {k: v.numpy() for k, v in state.items()}
    np.savez(tmp_path / "x.npz", **{k: v.astype(">f4") for k, v in arrays.items()})
    convert.convert("resnet18", tmp_path / "x.npz", tmp_path / "out")
    found = models.load(tmp_path / "out").variables["params"]["fc"]["bias"]
    np.testing.assert_array_equal(found, arrays["fc.bias"])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_are_refused(value, tmp_path):
    state = peers.from_torchvision("resnet18", num_classes=3).state_dict()
    arrays = {k: v.numpy() for k, v in state.items()}
    arrays["fc.bias"] = np.array([0, value, 0])
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(convert.ConversionError, match="'fc.bias' holds values"):
        convert.convert("resnet18", tmp_path / "x.npz", tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["x.npz"]


@pytest.mark.parametrize(
    ("key", "shape"),
    [("fc.bias", ()), ("fc.weight", (3,)), ("conv1.weight", (0, 3, 7, 7)),
     ("fc.bias", (0,))],
)  # fmt: skip
def test_shapes_of_another_rank_are_named(key, shape, tmp_path):
    state = peers.from_torchvision("resnet18", num_classes=3).state_dict()
    arrays = {k: v.numpy() for k, v in state.items()} | {key: np.zeros(shape, "f4")}
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(convert.ConversionError, match=r"x\.npz is no resnet18"):
        convert.convert("resnet18", tmp_path / "x.npz", tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == ["x.npz"]


def test_a_damaged_member_is_one_message(tmp_path):
    state = peers.from_torchvision("resnet18", num_classes=3).state_dict()
    np.savez(tmp_path / "x.npz", **{k: v.numpy() for k, v in state.items()})
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "x.npz").write_bytes(content)
    done = run("--model=resnet18", f"--input={tmp_path / 'x.npz'}",
               f"--output={tmp_path / 'out'}")  # fmt: skip
    assert done.returncode == 2 and "is damaged" in done.stderr
    assert "Traceback" not in done.stderr
    assert [f.name for f in tmp_path.iterdir()] == ["x.npz"]


def test_a_store_without_its_weights_is_named(tmp_path):
    module = models.create("mlp", num_classes=2, width=4)
    variables = module.init(jax.random.key(0), np.zeros((1, 4, 4, 1)))
    note = {"model": "mlp", "options": {"num_classes": 2, "width": 4},
            "inputs": [1, 4, 4, 1], "preprocess": None}  # fmt: skip
    models.save(tmp_path / "m", variables, note)
    assert models.load(tmp_path / "m").module == module
    shutil.rmtree(tmp_path / "m" / "steps")
    with pytest.raises(FileNotFoundError, match="no weights"):
        models.load(tmp_path / "m")
    (tmp_path / "m" / "model.json").write_text("[1]")
    with pytest.raises(ValueError, match="damaged"):
        models.load(tmp_path / "m")


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "ot_dd.convert", *arguments],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_command_line(tmp_path):
    peer = peers.from_torchvision("resnet18", num_classes=10)
    torch.save(peer.state_dict(), tmp_path / "r.pth")
    done = run(
        "--model=resnet18", f"--input={tmp_path / 'r.pth'}",
        f"--output={tmp_path / 'out'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "11,181,642 parameters" in done.stdout and "BSD" in done.stdout
    loaded = models.load(tmp_path / "out")
    assert loaded.note["sha256"] and loaded.module.num_classes == 10
    images = np.zeros((2, 300, 200, 3), np.uint8)
    assert loaded.preprocess(images).shape == (2, 224, 224, 3)
    again = run(
        "--model=resnet18", f"--input={tmp_path / 'r.pth'}",
        f"--output={tmp_path / 'out'}",
    )  # fmt: skip
    assert again.returncode == 2 and "exists" in again.stderr


def test_command_line_errors_are_one_message(tmp_path):
    save_file(
        {"conv1.weight": np.zeros((64, 3, 7, 7), "f4")}, tmp_path / "a.safetensors"
    )
    (tmp_path / "a.dat").write_bytes(b"x")
    cases = {
        ("resnet81", "a.safetensors"): "did you mean 'resnet18'",
        ("mlp", "a.safetensors"): "no public weights",
        ("resnet18", "none.pt"): "no such file",
        ("resnet18", "a.dat"): "expected one of",
        ("resnet18", "a.safetensors"): "fc/bias",
    }
    for (model, name), message in cases.items():
        done = run(
            f"--model={model}", f"--input={tmp_path / name}",
            f"--output={tmp_path / 'out'}",
        )  # fmt: skip
        assert done.returncode == 2 and message in done.stderr, (message, done.stderr)
        assert "Traceback" not in done.stderr
        assert not list(tmp_path.glob("*out*"))


_PEAK = """
import re, sys, threading, time
from ot_dd.convert import convert

def used():  # Memory of our own: pages of mapped files do not count.
    text = open("/proc/self/status").read()
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", text)[1])

def watch():
    while not done.is_set():
        peaks.append(used())
        time.sleep(0.002)

import torch
before, peaks, done = used(), [], threading.Event()
thread = threading.Thread(target=watch)
thread.start()
convert(*sys.argv[1:])
done.set()
thread.join()
print(max(peaks) - before)
"""


def test_memory_is_the_file_and_one_tensor(tmp_path):
    state = peers.from_torchvision("alexnet").state_dict()
    torch.save(state, tmp_path / "x.pth")
    sizes = [v.numel() * 4 for v in state.values()]
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, "alexnet", str(tmp_path / "x.pth"),
         str(tmp_path / "out")],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    assert int(done.stdout.split()[-1]) <= sum(sizes) + max(sizes)


def test_a_crop_larger_than_the_image_is_refused():
    whole = models.Preprocess(None, 8, "bilinear", (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ValueError, match="9x6 pixels are smaller than the crop of 8"):
        whole(np.zeros((1, 9, 6, 3), np.uint8))
