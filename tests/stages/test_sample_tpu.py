"""The paper's sampler at full size, compiled for a pod that is not here."""

import importlib.util
import json
import subprocess
import sys

import pytest


@pytest.mark.tpu_aot
@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the libtpu wheel"
)
def test_the_guided_xl_sampler_fits_a_pod_and_never_waits(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ot_dd.plan", "--config=configs/imagenet1k.py:ipc50",
         "--topology=v5e:16x16", "--stages=sample", f"--cache={tmp_path}",
         "--config.autoencoder.weights=vae", "--config.denoiser.weights=dit",
         f"--json={tmp_path / 'found.json'}"],
        timeout=2400, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((tmp_path / "found.json").read_text()).values()
    assert found["fits"] and found["chips"] == 256
    rows = {row["name"]: row for row in found["programs"]}
    assert not any(row["collectives"] for row in rows.values())
    # The paper's claim: transport costs next to nothing.
    assert rows["guided sampling"]["transport_share"] < 0.01
    # 50 images in 50 steps, each DiT-XL/2 (118.6 G multiplications) with and without
    # the class, make the plain sampler.
    plain = 50 * 50 * 2 * 2 * 118.6e9 / 1e12
    assert rows["plain sampling"]["teraflops"] == pytest.approx(plain, rel=0.05)
