"""The paper's sampler at full size, compiled for TPUs that are not here."""

import json
import subprocess
import sys

import pytest


@pytest.mark.tpu_aot
@pytest.mark.slow
def test_the_guided_xl_sampler_fits_a_chip_and_never_waits(tmp_path):
    pytest.importorskip("libtpu")
    subprocess.run(
        [sys.executable, "-m", "benchmarks.tpu", "--only=sampling",
         f"--json={tmp_path / 'found.json'}"],
        check=True, timeout=1800, capture_output=True,
    )  # fmt: skip
    (found,) = json.loads((tmp_path / "found.json").read_text()).values()
    used = found["argument_megabytes"] + found["temporary_megabytes"]
    assert used < 16 * 1024
    assert found["collectives"] == 0
    # Two evaluations of DiT-XL/2 (2 x 118.6 GFLOP each) and what guidance adds: the loop
    # over its 28 blocks is counted once.
    assert found["gigaflops"] > 100
