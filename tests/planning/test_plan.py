"""`python -m ot_dd.plan` in a process of its own, with the real TPU compiler."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ot_dd.config import ConfigError
from ot_dd.planning.programs import Slice, label_bytes, programs
from ot_dd.planning.sizes import sizes_of
from ot_dd.stages.study import sets_of

ROOT = Path(__file__).resolve().parents[2]
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the libtpu wheel"
)


def plan(*flags):
    return subprocess.run(
        [sys.executable, "-m", "ot_dd.plan", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip


def config_of(name, *arguments):
    return importlib.import_module(f"configs.{name}").get_config(*arguments)


def here():
    """Returns this machine's one device in the place of a slice."""
    devices = np.array(jax.devices()[:1])
    mesh = jax.sharding.Mesh(devices, ("data",))
    return Slice("here", mesh, mesh, 1)


@pytest.mark.tpu_aot
@pytest.mark.slow
@needs_compiler
def test_a_run_on_digits_fits_and_is_quick_to_ask_for_again(tmp_path):
    flags = (
        "--config=configs/digits.py", "--topology=v5e:2x2", f"--cache={tmp_path / 'c'}",
        f"--json={tmp_path / 'plan.json'}", "--stages=sample,refine",
    )  # fmt: skip
    first = plan(*flags)
    assert first.returncode == 0, first.stderr
    found = json.loads((tmp_path / "plan.json").read_text())["v5e:2x2"]
    assert found["fits"] and found["chips"] == 4
    rows = {row["name"]: row for row in found["programs"]}
    assert set(rows) == {
        "guided sampling", "plain sampling", "decode latents", "refine latents",
    }  # fmt: skip
    assert rows["guided sampling"]["collectives"] == 0
    assert rows["refine latents"]["collectives"] > 0
    for row in rows.values():
        assert row["seconds"] >= row["compiler_seconds"] > 0
        assert row["arguments_gb"] > 0
    assert "guided sampling" in first.stdout
    again = plan(*flags)
    assert again.returncode == 0
    assert again.stdout == first.stdout


@pytest.mark.tpu_aot
@pytest.mark.slow
@needs_compiler
def test_what_does_not_fit_is_said_with_the_field_to_change(tmp_path):
    done = plan(
        "--config=configs/digits.py", "--topology=v5e:2x2", f"--cache={tmp_path}",
        "--stages=refine", "--config.refine.real_batch=2_000_000",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "refine latents does not fit: it needs" in done.stdout
    assert "of 15.75G. Change config.refine.real_batch" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--topology=v9:2x2", "--topology is 'v9:2x2': it begins with one of v4, v5e"),
        ("--stages=sampling", "--stages names 'sampling'; the stages are prepare"),
        ("--config=configs/cifar100.py --config.name=own",
         "the data of config.data.source are not here"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(flag, message):
    done = plan(*flag.split())
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: {message}")


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is not None, reason="the compiler is here"
)
def test_a_missing_compiler_says_what_to_install():
    done = plan("--topology=v5e:2x2")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == (
        'error: the TPU compiler is not installed: pip install "ot-dd[plan]"'
    )


def test_sizes_are_known_given_or_read():
    config = config_of("imagenet1k")
    assert sizes_of(config)[:3] == (1_153_050, 50_000, 1000)
    assert sizes_of(config, images=1000, classes=7)[:3] == (900, 50_000, 7)
    config.data.max_per_class = 100
    assert sizes_of(config, images=5000, classes=7)[0] == 630
    assert sizes_of(config_of("digits"))[1:] == (719, 10, (8, 8, 1))
    config = config_of("cifar100")
    config.name = "own"
    with pytest.raises(ConfigError, match="give --images, --test_images, --classes"):
        sizes_of(config)


def test_programs_are_the_runs_own_and_count_their_runs():
    config = config_of("digits")
    found = {p.name: p for p in programs(config, sizes_of(config), here())}
    study = config.study
    assert found["train denoiser"].runs == config.denoiser.steps / 25
    # The full method, IGD and `no_otg` are sampled; `no_refine` starts from the first.
    guided = 2 + ("no_otg" in study.ablations)
    assert found["guided sampling"].runs == guided * study.num_sets
    assert found["guided sampling"].product == 1
    changes = sum(name in ("no_otg", "no_refine") for name in study.ablations)
    students = 1 + len(study.baselines) + changes
    assert found["student, hard labels"].runs == (
        students * study.num_sets * study.num_students * config.student.evaluations
    )
    # Shapes alone: every program traces without data or weights.
    for program in found.values():
        assert program.trace().jaxpr.eqns, program.name


def test_runs_of_baselines_and_ablations():
    config = config_of("digits")
    config.study.num_sets = 1

    def runs(baselines, ablations):
        config.study.baselines, config.study.ablations = baselines, ablations
        found = programs(config, sizes_of(config), here())
        return {p.name: p.runs for p in found if p.stage in ("sample", "refine")}

    alone = runs(("random",), ())
    # D4M goes through 0.7 of the steps; DDOQ's images are the same.
    for names in (("d4m",), ("quantised",), ("d4m", "quantised")):
        found = runs(names, ())
        assert found["plain sampling"] == 0.7 * alone["guided sampling"]
        assert found["decode latents"] == 2 * alone["decode latents"]
    found = runs(("random",), ("no_refine", "early_no_refine", "mean_matching"))
    assert found["guided sampling"] == 2 * alone["guided sampling"]
    assert found["refine latents"] == 2 * alone["refine latents"]


def test_ablations_that_change_nothing_are_no_sets():
    config = config_of("imagenette")
    config.study.baselines = ("random",)
    config.study.ablations = ("no_otg", "no_refine", "mean_matching", "real_start")
    assert not config.refine.steps
    assert sets_of(config) == ["ot_dd", "random", "no_otg", "real_start"]
    config.refine.steps = 2
    assert sets_of(config)[2:] == list(config.study.ablations)
    config.guidance.transport.strength = 0.0
    assert sets_of(config)[2:] == list(config.study.ablations)[1:]
    config.guidance.transport.strength = 1.0
    config.study.ablations = ("early_guidance", "early_no_refine", "no_otg")
    assert sets_of(config)[2:] == list(config.study.ablations)
    config.guidance.terms = ("influence",)
    assert sets_of(config)[2:] == ["early_no_refine"]
    config.guidance.terms, config.refine.start = ("transport",), "kmeans"
    assert sets_of(config)[2:] == ["early_no_refine"]
    config.refine.steps = 0
    assert sets_of(config)[2:] == []


def test_labels_of_every_view_of_imagenet_are_too_many_to_store():
    config = config_of("imagenet1k", "ipc50")
    sizes = sizes_of(config)
    assert label_bytes(config, sizes) == 0
    config.lia.mode = "stored"
    assert label_bytes(config, sizes) == 2 * 300 * 50_000 * 1000
