"""The stages end to end at debug size: repeatable, resumable, and what they leave."""

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import files, without_times

from configs import digits
from ot_dd.distill import run
from ot_dd.metrics import Stopped
from ot_dd.stages import sample, train
from ot_dd.stages.distilled import load_distilled

pytestmark = pytest.mark.slow


def config():
    made = digits.get_config("debug")
    made.study.baselines = ("random", "kmeans", "igd")
    made.study.ablations = ("no_otm",)
    made.study.num_sets = made.study.num_students = 1
    made.guidance.terms = ("influence", "deviation", "transport")
    made.guidance.influence.strength = made.guidance.deviation.strength = 1.0
    made.teachers.models = ("convnet", "mlp")
    made.lia.teachers_by_ipc = ((1, 1), (2, 2))
    return made


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("first")
    return workdir, run(config(), workdir)


def test_what_a_run_leaves(first):
    workdir, results = first
    assert json.loads((workdir / "results.json").read_text()) == results
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["config"]["ipc"] == 2 and "jax" in stored["versions"]
    names = {(r["set"], r["labels"], r["variant"]) for r in results["records"]}
    sets = ("ot_dd", "random", "kmeans", "igd")
    expected = {(name, labels, "") for name in sets for labels in ("hard", "soft")}
    assert names == expected | {("ot_dd", "soft", "no_otm")}
    for record in results["records"]:
        assert 0 <= record["accuracy"] <= record["best_accuracy"] <= 1
    assert all(results["sets"][name]["transport"]["mean"] > 0 for name in sets)
    assert (workdir / "report.html").exists()
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert {"denoiser", "surrogate"} <= {json.loads(line)["name"] for line in lines}


def test_the_distilled_set(first):
    from sklearn.datasets import load_digits

    workdir, _ = first
    images, labels, description = load_distilled(workdir / "distilled")
    assert images.shape == (20, 8, 8, 1) and images.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.repeat(np.arange(10), 2))
    assert description["bytes"]["soft_labels"] == 6 // 2 * 2 * 10 * 10 * 2
    real = (load_digits().images * 255 / 16).round()
    gaps = np.abs(images[:, None, :, :, 0] - real[None]).max((2, 3))
    assert (gaps.min(1) > 0).all()  # generated, not copied
    with np.load(workdir / "distilled" / "soft_labels" / "views.npz") as views:
        assert views["logits"].dtype == np.float16
        assert views["crop"].shape == (*views["logits"].shape[:3], 4)
    page = (Path(__file__).parents[2] / "docs" / "configs.md").read_text()
    *_, code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    found: dict = {}
    exec(code.replace("out/digits", str(workdir)), found)  # the page shows a replay
    assert found["seen"].shape == (10, 8, 8, 1) and found["target"].shape == (10, 10)
    assert len(set(found["rows"].tolist())) == 10
    broken = workdir / "broken"
    shutil.copytree(workdir / "distilled", broken)
    next((broken / "images").rglob("*.png")).unlink()
    with pytest.raises(ValueError, match="holds 1 images, dataset.json says 2"):
        load_distilled(broken)


def test_a_second_run_is_bit_equal(first, tmp_path):
    workdir, results = first
    again = run(config(), tmp_path / "again")
    assert without_times(again) == without_times(results)
    assert files(tmp_path / "again") == files(workdir)


def test_the_same_directory_again_makes_nothing(first):
    workdir, results = first
    foreign = [workdir / "notes.txt", workdir / "cache" / "x.npz"]
    foreign += [
        workdir / "checkpoints" / "mine" / "readme",
        workdir / "cache" / "a.json",
    ]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("of no concern")
    before = {p: p.stat().st_mtime_ns for p in (workdir / "cache").glob("*.*")}
    checkpoints = sorted((workdir / "checkpoints").rglob("finished.json"))
    stamps = [path.stat().st_mtime_ns for path in checkpoints]
    again = run(config(), workdir)
    assert without_times(again) == without_times(results)
    assert again["seconds"] == results["seconds"]
    assert {p: p.stat().st_mtime_ns for p in (workdir / "cache").glob("*.*")} == before
    assert [path.stat().st_mtime_ns for path in checkpoints] == stamps
    for path in foreign:
        assert path.read_text() == "of no concern"
        path.unlink()


def test_a_changed_stage_reuses_the_earlier_ones(first, tmp_path):
    workdir, results = first
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    networks = set(p.name for p in (copy / "checkpoints").glob("[!r]*"))
    changed = config()
    changed.guidance.transport.strength = 0.9
    changed.study.baselines, changed.study.ablations = (), ()
    again = run(changed, copy, ("sample", "relabel", "train", "report"))
    # What the directory holds besides is not counted.
    assert again["flops"]["refine"] == results["flops"]["refine"]
    assert again["flops"]["sample"] < results["flops"]["sample"]
    assert set(p.name for p in (copy / "checkpoints").glob("[!r]*")) == networks
    assert files(copy) != files(workdir)


def test_fields_that_change_no_result_make_nothing(first, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(first[0], copy)
    kept = {path for path in copy.glob("c*/*")}
    changed = config()
    for part in ("teachers", "denoiser", "autoencoder", "surrogate", "refine"):
        changed[part].save_every = 3
    changed.sampler.class_batch = 5
    changed.denoiser.options.remat = True
    run(changed, copy, ("sample", "refine", "relabel"))
    assert {path for path in copy.glob("c*/*")} == kept
    # Other epochs of the surrogate are chosen from those of its one training.
    changed.surrogate.similarity_threshold = -1.0
    run(changed, copy, ("prepare",))
    made = {path.name.rpartition("-")[0] for path in set(copy.glob("c*/*")) - kept}
    assert made == {"surrogate-epochs"}
    # One teacher labels instead of two: images are those that are there.
    kept = {path for path in copy.glob("c*/*")}
    changed = config()
    changed.teachers.models, changed.lia.teachers_by_ipc = ("convnet",), ((1, 1),)
    run(changed, copy, ("sample", "refine", "relabel"))
    made = {path.name.rpartition("-")[0] for path in set(copy.glob("c*/*")) - kept}
    assert made == {"labels-ot_dd-0"}


def test_sampling_goes_on_from_the_classes_that_are_there(first, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(first[0], copy)
    (sampled,) = copy.glob("cache/sample-guided-*.npz")
    before = dict(np.load(sampled))
    sampled.unlink()
    changed = config()
    changed.sampler.class_batch = 4

    def full(*_):
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(sample, "decode_set", full)
        with pytest.raises(OSError, match="no space"):
            run(changed, copy, ("sample",))
    pieces = sampled.with_name(f"{sampled.stem}.pieces")
    names = sorted(path.name for path in pieces.iterdir())
    assert names == ["0-4.npz", "4-8.npz", "8-10.npz"]
    with monkeypatch.context() as patch:
        patch.setattr(sample, "sampler", full)  # It is not asked again.
        run(changed, copy, ("sample",))
    assert not pieces.exists()
    for name, value in np.load(sampled).items():
        np.testing.assert_allclose(
            value, before[name], atol=1e-3 if value.dtype.kind == "f" else 1
        )


def test_a_student_goes_on_from_its_last_evaluation(first, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(first[0], copy)
    for path in copy.glob("cache/student-ot_dd-*.json"):
        path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(train, "told_to_end", lambda: True)
        with pytest.raises(Stopped, match="student 0 of ot_dd, set 0, .*, step 3, wh"):
            run(config(), copy, ("train",))
    begun = list(copy.glob("cache/student-ot_dd-*.part.npz"))
    assert begun
    for path in begun:
        leaves = dict(np.load(path))
        leaves[max(leaves)] = np.float64(1e4)  # Seconds that it took so far.
        np.savez(path, **leaves)
    run(config(), copy)
    results = json.loads((copy / "results.json").read_text())
    assert without_times(results) == without_times(first[1])
    assert sum(r["seconds"] > 1e4 for r in results["records"]) == len(begun)
    assert not list(copy.glob("cache/*.part.npz"))


def test_a_student_whose_loss_is_not_finite_is_named_at_once(first, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(first[0], copy)
    changed = config()
    changed.student.learning_rate, changed.student.evaluations = 1e30, 6
    before = set(copy.glob("cache/student-*"))
    with pytest.raises(FloatingPointError, match="student 0 of .* loss is not finite"):
        run(changed, copy, ("train",))
    assert set(copy.glob("cache/student-*")) == before


def test_a_smaller_set_leaves_nothing_of_a_larger_one(first, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(first[0], copy)
    (copy / ".distilled.part").mkdir()  # of a run that was killed
    folder = next((copy / "distilled" / "images").iterdir())
    shutil.copy(folder / "0000.png", folder / "0002.png")
    shutil.copytree(folder, folder.with_name("99_of_before"))
    with pytest.raises(ValueError, match="holds 3 images"):
        load_distilled(copy / "distilled")
    run(config(), copy, ("relabel",))
    assert files(copy) == files(first[0])
    assert not [path for path in copy.iterdir() if path.name.startswith(".distilled")]


def test_stages_run_up_to_the_one_named(first, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(first[0] / "checkpoints", copy / "checkpoints")
    run(config(), copy, ("prepare",))
    assert not (copy / "distilled").exists()
    run(config(), copy, ("sample", "refine", "relabel"))
    assert files(copy) == files(first[0])
    run(config(), copy, ("train",))
    assert list((copy / "cache").glob("student-*"))
    assert not (copy / "results.json").exists()


def test_online_labels_equal_stored_ones(first, tmp_path):
    """Soft labels made again from the seeds during training change no digit."""
    import jax.numpy as jnp

    from ot_dd.stages.prepare import prepare
    from ot_dd.stages.relabel import relabel
    from ot_dd.stages.sets import distil
    from ot_dd.stages.train import train
    from ot_dd.training.views import mean_logits, view_batch
    from ot_dd.workdir import WorkDir

    made = config()
    work = WorkDir(first[0])
    prepared = prepare(made, work)
    product = distil(made, work, prepared, seed=0)
    stored = relabel(made, work, prepared, product, teachers=2)
    (kept,) = train(made, work, prepared, [(product, stored)])
    made.lia.mode = "online"
    online = relabel(made, work, prepared, product, teachers=2)
    assert online.logits is None and online.bytes() == 0
    # In another directory: here the student is there, under the same name.
    (replayed,) = train(made, WorkDir(tmp_path), prepared, [(product, online)])
    assert replayed["seconds"] != kept["seconds"]
    assert replayed["curve"] == kept["curve"]
    # The parameters on disk are those of the views that the labels belong to.
    from ot_dd import data
    from ot_dd.data import to_float
    from ot_dd.stages.networks import augment_config

    images, labels = product.flat()
    pixels = to_float(jnp.asarray(images))
    augment = augment_config(made.data.augment)
    with np.load(first[0] / "distilled" / "soft_labels" / "views.npz") as views:
        rows = views["rows"][1, 1]
        fields = [jnp.asarray(views[f][1, 1]) for f in data.AugmentParams._fields]
        view, _, _ = view_batch(
            pixels, labels, jax.random.key(stored.seed), 1, 1, 10, augment
        )
        again = data.apply(pixels[rows], data.AugmentParams(*fields))
        np.testing.assert_allclose(again, view, atol=1e-6)
        expected = mean_logits(prepared.teachers, view).astype(jnp.float16)
        np.testing.assert_allclose(views["logits"][1, 1], expected, atol=2e-3)
