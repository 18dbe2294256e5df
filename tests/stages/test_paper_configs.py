"""The paper's configs at debug size, on generated images, through the same code."""

import importlib

import pytest

from ot_dd.distill import run


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet1k", "imagenette", "imagewoof", "cifar100"])
def test_runs_end_to_end(name, tmp_path):
    config = importlib.import_module(f"configs.{name}").get_config("debug")
    results = run(config, tmp_path)
    sets = {record["set"] for record in results["records"]}
    assert sets == {"ot_dd", "random", "diffusion"}
    assert (tmp_path / "report.html").exists()
    # All three terms were on: the guided set differs from the plain one.
    assert (
        results["sets"]["ot_dd"]["transport"]
        != results["sets"]["diffusion"]["transport"]
    )
