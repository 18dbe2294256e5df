"""A run in a process of its own: killed at random moments, told to end, told off."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import files, without_times

ROOT = Path(__file__).resolve().parents[2]
# OT_DD_KILLS=30 for a thorough run.
KILLS = int(os.environ.get("OT_DD_KILLS", "2"))


def start(workdir, *extra):
    # A shell that runs the tests in the background has them ignore Ctrl-C.
    command = [
        "env", "--default-signal=INT", sys.executable, "-m", "ot_dd.distill",
        "--config=tests/stages/tiny.py", f"--workdir={workdir}", *extra,
    ]  # fmt: skip
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(process) -> str:
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return said


def results(workdir):
    return without_times(json.loads((workdir / "results.json").read_text()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run, and the seconds that it takes."""
    workdir = tmp_path_factory.mktemp("whole")
    began = time.monotonic()
    finish(start(workdir))
    return workdir, time.monotonic() - began


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_results(whole, tmp_path):
    undisturbed, seconds = whole
    seed = int(os.environ.get("OT_DD_KILL_SEED", time.time_ns() % 10_000))
    print(f"OT_DD_KILL_SEED={seed}")  # shown when the test fails
    moments, kills, number = random.Random(seed), 0, 0
    while kills < KILLS:
        workdir = tmp_path / str(number)
        number += 1
        while kills < KILLS:
            began, fresh = time.monotonic(), not workdir.exists()
            process = start(workdir)
            try:
                process.wait(moments.uniform(0.1, 0.8) * seconds)
                if fresh:  # Programs are compiled by now, and a run is shorter.
                    seconds = min(seconds, time.monotonic() - began)
                break  # it came to its end first
            except subprocess.TimeoutExpired:
                interrupted = kills % 10 == 0  # Ctrl-C, now and then
                while interrupted and not workdir.exists():
                    time.sleep(0.05)  # still importing
                process.send_signal(signal.SIGINT if interrupted else signal.SIGKILL)
                _, said = process.communicate(timeout=120)
                if interrupted and process.returncode == 0:
                    assert said.endswith(" s] done\n")
                    break  # it had just come to its end
                if interrupted:
                    assert process.returncode == 130, said
                    assert said.endswith("; the same command goes on from here\n")
                kills += 1
        finish(start(workdir))
        assert files(workdir) == files(undisturbed)
        assert results(workdir) == results(undisturbed)
        shutil.rmtree(workdir)
    assert kills == KILLS


@pytest.mark.slow
def test_told_to_end_it_saves_and_ends(tmp_path):
    process = start(
        tmp_path, "--stages=prepare", "--config.denoiser.steps=1_000_000",
        "--config.denoiser.save_every=1_000_000",
    )  # fmt: skip
    metrics = tmp_path / "metrics.jsonl"
    while not metrics.exists() or '"denoiser"' not in metrics.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, said
    saved = [path.name for path in tmp_path.glob("checkpoints/denoiser-*/steps/*")]
    (step,) = [name for name in saved if name.isdigit()]
    last = said.splitlines()[-1]
    assert last.startswith(f"told to end at denoiser, step {step}, which is saved")
    assert "Traceback" not in said


_LOST = """
import gc, os, signal, sys
from pathlib import Path
from ot_dd.command import exit_code
from ot_dd.distill import run
from ot_dd.metrics import Metrics
from tests.stages import tiny

workdir, sent = Path(sys.argv[1]), []
progress = Metrics.progress

def interrupt(phase, info):
    if not sent and '"denoiser"' in (workdir / "metrics.jsonl").read_text():
        sent.append(True)
        os.kill(os.getpid(), signal.SIGINT)

def collecting(*arguments):  # A loop that makes no garbage is never collected in.
    progress(*arguments)
    gc.collect()

Metrics.progress = collecting
config = tiny.get_config()
config.denoiser.steps = config.denoiser.save_every = 1_000_000
workdir.mkdir(exist_ok=True)
(workdir / "metrics.jsonl").touch()
gc.callbacks.append(interrupt)
sys.exit(exit_code(lambda: run(config, workdir, ("prepare",))))
"""


@pytest.mark.slow
def test_an_interruption_that_python_swallows_still_ends_the_run(tmp_path):
    command = ["env", "--default-signal=INT", sys.executable, "-c", _LOST, tmp_path]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert "Exception ignored" in done.stderr
    assert done.returncode == 130, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("told to end at denoiser, step ")
    assert last.endswith("which is saved; the same command goes on from here")


def test_a_wrong_config_is_one_line_and_exit_code_2(tmp_path):
    process = start(tmp_path, "--config.ipc=5000")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2
    (line,) = said.strip().splitlines()[-1:]
    assert line.startswith("error: config.ipc is 5000, but the smallest class")
    assert "Traceback" not in said
