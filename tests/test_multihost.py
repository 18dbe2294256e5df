"""Two real processes of two devices each: the whole pipeline, killed and resumed."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.multihost


def start(processes, devices, workdir, *flags):
    # A shell that runs the tests in the background has them ignore Ctrl-C.
    command = [
        "env", "--default-signal=INT", "launch/local.sh",
        f"--processes={processes}", f"--devices={devices}",
        "--config=tests/stages/tiny.py", f"--workdir={workdir}", *flags,
    ]  # fmt: skip
    return subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def finish(process) -> str:
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, out + err
    return err


def wait_for(process, workdir, pattern):
    end = time.monotonic() + 600
    while not list(workdir.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"no {pattern} in {workdir}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """Flags that make the digits image files, of which each process reads its share."""
    folder = tmp_path_factory.mktemp("digits")
    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images, digits.target)):
        (folder / str(label)).mkdir(exist_ok=True)
        pixels = (image * 255 / 16).round().astype(np.uint8)
        Image.fromarray(pixels).convert("RGB").save(folder / str(label) / f"{i}.png")
    return (
        f"--config.data.source=image_folder:{folder}", "--config.data.image_size=8",
        "--config.data.in_memory_gb=0",
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, on_disk):
    """The run of two processes that the others are compared with."""
    workdir = tmp_path_factory.mktemp("pod") / "whole"
    said = finish(start(2, 2, workdir, *on_disk))
    # One of the two prints.
    assert said.count("prepare: data, autoencoder") == 1
    return workdir


@pytest.mark.slow
def test_a_killed_run_goes_on_with_other_processes(undisturbed, on_disk, tmp_path):
    workdir = tmp_path / "killed"
    process = start(2, 2, workdir, *on_disk)
    wait_for(process, workdir, "checkpoints/denoiser-*/steps/25")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (workdir / "results.json").exists()
    finish(start(1, 4, workdir, *on_disk))
    # Names have the data's key in them, which is not one of the number of processes.
    made = [{p.name for p in w.glob("checkpoints/*")} for w in (workdir, undisturbed)]
    assert made[0] == made[1]
    # Four devices either way: the same sums, but not in the same order.
    assert_alike(workdir, undisturbed)


def assert_alike(one, other):
    """Compares two runs to rounding: a pixel by one level, accuracy by an image or two."""
    for path in sorted((one / "distilled" / "images").rglob("*.png")):
        theirs = other / path.relative_to(one)
        pixels = [np.asarray(Image.open(p), int) for p in (path, theirs)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1, path
    views = [
        np.load(w / "distilled" / "soft_labels" / "views.npz") for w in (one, other)
    ]
    for name in views[0].files:
        np.testing.assert_allclose(views[0][name], views[1][name], atol=0.01)
    runs = [json.loads((w / "results.json").read_text()) for w in (one, other)]
    for ours, theirs in zip(*(run["records"] for run in runs), strict=True):
        names = ("set", "variant", "labels", "set_seed", "student_seed", "steps")
        assert [ours[n] for n in names] == [theirs[n] for n in names]
        assert abs(ours["accuracy"] - theirs["accuracy"]) < 0.01
    for name, about in runs[0]["sets"].items():
        want = runs[1]["sets"][name]["transport"]["per_class"]
        np.testing.assert_allclose(about["transport"]["per_class"], want, rtol=1e-4)
    assert runs[0]["flops"] == pytest.approx(runs[1]["flops"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("save_every", [25, 100_000])
def test_a_preempted_run_saves_and_ends(tmp_path, save_every):
    process = start(
        2, 2, tmp_path, "--stages=prepare", "--config.denoiser.steps=100_000",
        f"--config.denoiser.save_every={save_every}",
    )  # fmt: skip
    metrics = tmp_path / "metrics.jsonl"
    wait_for(process, tmp_path, "checkpoints/denoiser-*")
    if save_every == 25:  # A save before the notice does not put it off.
        wait_for(process, tmp_path, "checkpoints/denoiser-*/steps/25")
    while '"denoiser"' not in metrics.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # the script passes it on to both
    _, said = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, said
    # Both end at one step, which is saved whether a checkpoint was due or not.
    saved = [path.name for path in tmp_path.glob("checkpoints/denoiser-*/steps/*")]
    (step,) = [name for name in saved if name.isdigit()]
    assert said.count(f"told to end at denoiser, step {step}, which is saved") == 2
    assert "Traceback" not in said


EXCHANGE = """
import sys
import jax, numpy as np
from ot_dd import parallel
from ot_dd.command import exit_code
from ot_dd.config import ConfigError
from ot_dd.parallel import hosts
from ot_dd.workdir import WorkDir
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
me = jax.process_index()
hosts._GATHERED = 100  # In many turns.
rows = parallel.gather_rows(37, lambda r: np.array([[i, -i] for i in r], np.int32))
np.testing.assert_array_equal(rows, np.arange(37)[:, None] * [1, -1])
assert parallel.from_leader(np.array([me, 7])).tolist() == [0, 7]
parallel.check_alike("00ff")
try:
    parallel.check_alike(f"0{me}")
except ConfigError as error:
    assert me == 1 and "process 1 has another config" in str(error)
else:
    assert me == 0
work = WorkDir(sys.argv[3])
made = [work.json("note", lambda: {"by": me}), work.json("note", dict)]
made += [work.arrays("rows", lambda: {"by": np.arange(me + 1)})["by"].tolist()]
assert made == [{"by": 0}, {"by": 0}, [0]], made
print("exchanged", flush=True)
sys.exit(exit_code(lambda: {}["unforeseen"] if me else parallel.barrier("never")))
"""


def test_processes_exchange_and_end_together(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", EXCHANGE, address, str(i), str(tmp_path)], cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120) for process in both]
    assert all(out.endswith("exchanged\n") for out, _ in said), said
    assert both[1].returncode == 1 and "KeyError: 'unforeseen'" in said[1][1]
    assert both[0].returncode not in (0, None)


def test_a_directory_in_use_is_refused(tmp_path):
    process = start(
        1, 0, tmp_path, "--stages=prepare", "--config.denoiser.steps=100_000"
    )
    try:
        wait_for(process, tmp_path, ".lock")
        second = subprocess.run(
            ["launch/local.sh", "--processes=1", *process.args[5:]],
            cwd=ROOT, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    finally:
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C in a terminal
        _, said = process.communicate(timeout=300)
    assert said.rstrip().endswith("the same command goes on from here")
    assert "Traceback" not in said and process.returncode != 0
    assert second.returncode == 2
    assert "is in use by process" in second.stderr and "--workdir" in second.stderr
    shutil.rmtree(tmp_path)
