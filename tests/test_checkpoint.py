"""Checkpoints: restored as saved, also when several runs of a process save at once."""

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ot_dd.checkpoint import Checkpoints, write_atomic
from ot_dd.training import make_state, restore
from ot_dd.workdir import Unfinished


def _tree(value):
    return {"a": jnp.full((50,), value), "b": jnp.arange(10)}


def test_runs_that_save_at_the_same_time_do_not_mix(tmp_path):
    def run(number):
        checkpoints = Checkpoints(tmp_path / str(number))
        for step in range(1, 16):
            checkpoints.save(step, _tree(100.0 * number + step))
        checkpoints.finish({"number": number})
        checkpoints.close()

    with ThreadPoolExecutor(4) as pool:
        for job in [pool.submit(run, number) for number in range(4)]:
            job.result()
    for number in range(4):
        checkpoints = Checkpoints(tmp_path / str(number))
        restored = checkpoints.restore(_tree(0.0))
        np.testing.assert_array_equal(restored["a"], np.full(50, 100.0 * number + 15))
        assert checkpoints.finished() == {"number": number}
        checkpoints.close()


def test_nothing_to_restore_is_none(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(_tree(0.0)) is None
    assert checkpoints.finished() is None
    checkpoints.close()


def test_a_step_that_is_not_newer_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, _tree(2.0))
    for step in (1, 2):
        with pytest.raises(ValueError, match=f"step {step} is not newer than 2, which"):
            checkpoints.save(step, _tree(0.0))
    np.testing.assert_array_equal(checkpoints.restore(_tree(0.0))["a"], 2.0)
    checkpoints.close()


def test_a_file_cut_short_is_one_message_or_does_no_harm(tmp_path):
    whole, copy = tmp_path / "whole", tmp_path / "copy"
    tree = {"a": jax.random.normal(jax.random.key(0), (300, 40))}  # A file of its own.
    checkpoints = Checkpoints(whole)
    checkpoints.save(1, tree)
    checkpoints.close()
    named = 0
    for file in [path for path in whole.rglob("*") if path.is_file()]:
        shutil.copytree(whole, copy)
        os.truncate(copy / file.relative_to(whole), file.stat().st_size // 2)
        checkpoints = Checkpoints(copy)
        try:
            jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(tree), tree)
        except ValueError as error:
            assert "copy, step 1, is damaged or of another" in str(error)
            assert "delete that folder" in str(error)
            named += 1
        checkpoints.close()
        shutil.rmtree(copy)
    assert named >= 3


def test_the_step_before_one_that_came_in_part_is_gone_on_from(tmp_path):
    """What a copy of the directory that broke off leaves: both steps, one in part."""
    for step in (1, 2):
        checkpoints = Checkpoints(tmp_path / str(step))
        checkpoints.save(step, _tree(float(step)))
        checkpoints.close()
    shutil.copytree(tmp_path / "1/steps/1", tmp_path / "2/steps/1")
    newer = tmp_path / "2/steps/2"
    for file in sorted(path for path in newer.rglob("*") if path.is_file())[1:]:
        file.unlink()
    checkpoints = Checkpoints(tmp_path / "2")
    np.testing.assert_array_equal(checkpoints.restore(_tree(0.0))["a"], np.ones(50))
    assert not newer.exists()
    checkpoints.save(2, _tree(3.0))
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path / "2")
    np.testing.assert_array_equal(
        checkpoints.restore(_tree(0.0))["a"], np.full(50, 3.0)
    )
    with pytest.raises(ValueError, match="step 2, is damaged or of another"):
        checkpoints.restore({"other": jnp.zeros(3)})
    checkpoints.close()


def test_a_server_that_fails_for_a_moment_costs_no_checkpoint(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoints = Checkpoints(tmp_path / str(step))
        checkpoints.save(step, _tree(float(step)))
        checkpoints.close()
    shutil.copytree(tmp_path / "1/steps/1", tmp_path / "2/steps/1")
    checkpoints = Checkpoints(tmp_path / "2")

    def stale(*_, **__):
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(type(checkpoints._manager), "restore", stale)
        with pytest.raises(OSError, match="Stale"):
            checkpoints.restore(_tree(0.0))
    np.testing.assert_array_equal(
        checkpoints.restore(_tree(0.0))["a"], np.full(50, 2.0)
    )
    checkpoints.close()


def test_what_a_killed_writer_left_the_next_one_writes_over(tmp_path):
    path = tmp_path / "image.png"

    child = multiprocessing.get_context("spawn").Process(
        target=_write_and_die, args=(path,)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not path.exists() and len(list(tmp_path.iterdir())) == 1
    write_atomic(path, lambda file: file.write(b"whole"))
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [
        ("image.png", b"whole")
    ]


def _write_and_die(path):
    def write(file):
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    write_atomic(path, write)


def test_a_finished_run_is_restored_from_shapes_alone(tmp_path):
    def init():
        return make_state({"w": jnp.arange(3.0)}, optax.adam(0.1))

    checkpoints = Checkpoints(tmp_path)
    trained = init().replace(step=jnp.asarray(10), params={"w": jnp.full(3, 7.0)})
    checkpoints.save(10, {"state": trained, "curve": jnp.zeros((2, 100))})
    checkpoints.finish({})
    found = restore(checkpoints, init)
    wanted = trained.replace(opt_state=None)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))
    checkpoints.close()
    gone = Checkpoints(tmp_path / "gone")
    gone.finish({})
    with pytest.raises(ValueError, match="gone has no checkpoint, though its run is"):
        restore(gone, init)
    gone.close()


def test_imports_leave_the_process_as_it_was():
    """Nobody's loggers are silenced, and what takes long to import waits for its use."""
    program = (
        "import logging, sys, ot_dd.baselines, ot_dd.ot, ot_dd.training; "
        "names = ('absl', 'asyncio', 'concurrent.futures'); "
        "assert all(logging.getLogger(n).level < logging.ERROR for n in names); "
        "assert not {'ott', 'sklearn', 'tensorflow', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unfinished_tree_is_taken_for_what_it_is_alone(tmp_path):
    part = Unfinished(tmp_path / "cache" / "student.part.npz")
    assert part.restore({}) is None
    narrow = jnp.arange(3, dtype=jnp.bfloat16)
    part.save({"bias": narrow, "steps": (jnp.int32(7),)})
    like = jax.ShapeDtypeStruct((3,), jnp.bfloat16)
    steps = (jax.ShapeDtypeStruct((), jnp.int32),)
    found = part.restore({"bias": like, "steps": steps})
    assert found["bias"].dtype == jnp.bfloat16 and found["bias"].tolist() == [0, 1, 2]
    assert found["steps"][0] == 7 and found["steps"][0].dtype == np.int32
    assert part.restore({"scale": like, "steps": steps}) is None  # Another name.
    longer = jax.ShapeDtypeStruct((4,), jnp.bfloat16)
    assert part.restore({"bias": longer, "steps": steps}) is None
    part.delete()
    part.delete()
    assert not list((tmp_path / "cache").iterdir())
