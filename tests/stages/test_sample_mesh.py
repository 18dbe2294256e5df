"""Classes over devices, and refinement: the same set on one device and on four."""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
_RUN = """
import sys, jax
from pathlib import Path
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
from ot_dd.distill import run
from tests.stages.tiny import get_config

config = get_config()
config.guidance.terms = ("influence", "deviation", "transport")
config.sampler.group = 1
run(config, Path(sys.argv[2]), tuple(sys.argv[3].split(",")))
print(jax.device_count())
"""


def run(devices, folder, stages):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_RUN), str(devices), folder, stages],
        capture_output=True, text=True, timeout=600, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == str(devices)


@pytest.mark.slow
def test_the_set_does_not_depend_on_the_devices(tmp_path):
    run(1, tmp_path / "one", "prepare,sample,refine")
    made_there = shutil.ignore_patterns("sample-*", "refine-*")
    shutil.copytree(tmp_path / "one", tmp_path / "four", ignore=made_there)
    run(4, tmp_path / "four", "prepare,sample,refine")
    sets = {}
    for name in ("one", "four"):  # Ten classes: the last are padded.
        (made,) = (tmp_path / name / "cache").glob("sample-guided-0-*.npz")
        sets[name] = np.load(made)
    one, four = sets["one"], sets["four"]
    assert one["latents"].shape[0] == 10
    np.testing.assert_allclose(four["latents"], one["latents"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(four["distances"], one["distances"], rtol=1e-3)
    refined = [
        np.load(next((tmp_path / name / "cache").glob("refine-ot_dd-0-*.npz")))[
            "latents"
        ]
        for name in ("one", "four")
    ]
    # Adam divides by small gradients' size: rounding shows more than in sampling.
    np.testing.assert_allclose(*refined, rtol=0, atol=0.02)
    difference = np.abs(four["images"].astype(int) - one["images"].astype(int))
    assert difference.max() <= 1
