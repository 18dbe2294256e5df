"""A run in a process of its own: killed, started again, and told off."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import files, without_times

ROOT = Path(__file__).resolve().parents[2]


def command(workdir, *extra):
    return [
        sys.executable, "-m", "ot_dd.distill", "--config=configs/digits.py:debug",
        f"--workdir={workdir}", "--config.teachers.models=('convnet','mlp')",
        "--config.lia.teachers_by_ipc=((1,1),(2,2))",
        "--config.study.baselines=('random',)", "--config.study.ablations=()",
        "--config.study.num_sets=1", "--config.study.num_students=1", *extra,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_results(tmp_path):
    environment = dict(os.environ, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "xla"))
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    options = {"cwd": ROOT, "env": environment, "stderr": subprocess.DEVNULL}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run(command(whole), check=True, stdout=subprocess.DEVNULL, **options)
    # Killed as soon as a stage has written: in training, sampling, students.
    for sign in (
        "checkpoints/denoiser-*",
        "cache/sample-*.npz",
        "cache/student-*.json",
    ):
        process = subprocess.Popen(command(cut), stdout=subprocess.DEVNULL, **options)
        deadline = time.monotonic() + 300
        while not list(cut.glob(sign)) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(cut), check=True, stdout=subprocess.DEVNULL, **options)
    results = [json.loads((d / "results.json").read_text()) for d in (whole, cut)]
    assert without_times(results[0]) == without_times(results[1])
    assert files(whole) == files(cut)


def test_a_wrong_config_is_one_line_and_exit_code_2(tmp_path):
    ran = subprocess.run(
        command(tmp_path, "--config.ipc=5000"), cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 2
    (line,) = ran.stderr.strip().splitlines()[-1:]
    assert line.startswith("error: config.ipc is 5000, but the smallest class")
    assert "Traceback" not in ran.stderr
