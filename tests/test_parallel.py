"""Jobs side by side: results, failures, and how running jobs are told to end."""

import threading
import time

import jax
import numpy as np
import pytest

from ot_dd.metrics import Metrics, Stopped
from ot_dd.parallel import place, side_by_side
from ot_dd.workdir import WorkDir


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


def test_threads_that_time_one_name_lose_nothing(tmp_path):
    work = WorkDir(tmp_path)
    work.turn("thing")

    def time_it():
        for _ in range(10):
            with work.timed("thing"):
                time.sleep(0.01)

    with side_by_side(threading.Event()) as submit:
        for job in [submit(time_it) for _ in range(4)]:
            job.result()
    assert work.seconds()["thing"] >= 0.4


def test_an_unknown_strategy_is_refused():
    mesh = jax.make_mesh((1,), ("data",))
    with pytest.raises(ValueError, match="one of .*fsdp.*, found 'fspd'"):
        place(np.ones(3), mesh, strategy="fspd")
