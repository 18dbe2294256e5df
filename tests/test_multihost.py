"""Two real processes of four devices each: the whole pipeline, killed and resumed."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from stages.runs import files, without_times

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.multihost


def start(processes, devices, workdir, *flags):
    command = [
        "launch/local.sh", f"--processes={processes}", f"--devices={devices}",
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
def undisturbed(tmp_path_factory):
    """The run of two processes; the others start from its prepared small networks."""
    workdir = tmp_path_factory.mktemp("pod") / "whole"
    said = finish(start(2, 4, workdir))
    # One of the two prints.
    assert said.count("prepare: data, autoencoder") == 1
    return workdir


@pytest.mark.slow
def test_a_killed_run_goes_on_with_other_processes(undisturbed, tmp_path):
    workdir = tmp_path / "killed"
    process = start(2, 4, workdir)
    wait_for(process, workdir, "checkpoints/denoiser-*/steps/25")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (workdir / "results.json").exists()
    finish(start(1, 8, workdir))
    # Eight devices either way: the same programs, and the same numbers.
    assert files(workdir) == files(undisturbed)
    runs = [
        json.loads((w / "results.json").read_text()) for w in (workdir, undisturbed)
    ]
    ours, theirs = map(without_times, runs)
    assert ours == theirs


@pytest.mark.slow
def test_a_preempted_run_saves_and_ends(tmp_path):
    process = start(
        2, 4, tmp_path, "--stages=prepare", "--config.denoiser.steps=100_000",
        "--config.denoiser.save_every=100_000",
    )  # fmt: skip
    metrics = tmp_path / "metrics.jsonl"
    wait_for(process, tmp_path, "checkpoints/denoiser-*")
    while '"denoiser"' not in metrics.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # the script passes it on to both
    _, said = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, said
    # Both end at one step, which is saved though no checkpoint was due.
    saved = [path.name for path in tmp_path.glob("checkpoints/denoiser-*/steps/*")]
    (step,) = [name for name in saved if name.isdigit()]
    assert said.count(f"told to end at denoiser, step {step}, which is saved") == 2
    assert "Traceback" not in said


def test_a_directory_in_use_is_refused(tmp_path):
    process = start(1, 0, tmp_path, "--stages=prepare")
    try:
        wait_for(process, tmp_path, ".lock")
        second = subprocess.run(
            [*process.args[:1], "--processes=1", *process.args[3:]],
            cwd=ROOT, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert second.returncode == 2
    assert "is in use by process" in second.stderr and "--workdir" in second.stderr
    shutil.rmtree(tmp_path)
