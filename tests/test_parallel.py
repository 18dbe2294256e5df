"""Jobs side by side: results, failures, and how running jobs are told to end."""

import threading

import pytest

from ot_dd.metrics import Metrics, Stopped
from ot_dd.parallel import side_by_side


def test_every_job_gives_its_result():
    with side_by_side(threading.Event()) as submit:
        jobs = [submit(pow, base, 2) for base in range(20)]
        assert [job.result() for job in jobs] == [base**2 for base in range(20)]


def test_a_failure_ends_the_running_jobs_and_drops_the_rest(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    running, ended, begun = threading.Event(), [], []

    def endless():
        begun.append(1)
        try:
            while True:
                metrics.check("endless")
                running.set()
        except Stopped:
            ended.append(1)
            raise

    with pytest.raises(ZeroDivisionError):
        with side_by_side(metrics.stop) as submit:
            for _ in range(200):
                submit(endless)
            running.wait()
            1 / 0  # noqa: B018
    assert ended == begun and 0 < len(begun) < 200
