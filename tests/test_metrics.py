"""Metrics for machines: JSON lines, and TensorBoard's events read by TensorBoard."""

import json
import sys

import pytest

from ot_dd.config import ConfigError
from ot_dd.metrics import Metrics


def test_tensorboard_reads_what_is_written(tmp_path):
    from tensorboard.backend.event_processing import event_accumulator

    metrics = Metrics(tmp_path / "metrics.jsonl", tensorboard=str(tmp_path / "events"))
    for step in (10, 20):
        metrics.write("denoiser", step, loss=1.5 / step, accuracy=0.5)
    metrics.close()
    read = event_accumulator.EventAccumulator(str(tmp_path / "events"))
    read.Reload()
    assert sorted(read.Tags()["scalars"]) == ["denoiser/accuracy", "denoiser/loss"]
    losses = [(e.step, e.value) for e in read.Scalars("denoiser/loss")]
    assert losses == [(10, pytest.approx(0.15)), (20, pytest.approx(0.075))]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [0.15, 0.075]


def test_what_is_not_finite_is_null(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.write("denoiser", 1, loss=float("nan"), accuracy=0.5)
    metrics.close()
    row = json.loads(
        (tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail
    )
    assert row["loss"] is None and row["accuracy"] == 0.5


def test_without_the_extra_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match=r"pip install 'ot-dd\[tensorboard\]'"):
        Metrics(tmp_path / "metrics.jsonl", tensorboard=str(tmp_path / "events"))
