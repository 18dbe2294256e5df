"""`python -m ot_dd.evaluate`: anybody's folders and the baselines under one protocol."""

import dataclasses
import functools
import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from configs import digits
from ot_dd import models
from ot_dd.config import ConfigError
from ot_dd.data import AugmentConfig, augment
from ot_dd.stages import vocabulary
from ot_dd.stages.evaluation import evaluate, parse_sets, parse_student
from ot_dd.stages.folders import read_image_set
from ot_dd.stages.prepare import load_data
from ot_dd.stages.train import evaluation_parts, recipe_of
from ot_dd.training.protocols import PROTOCOLS, apply_protocol

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
STUDENT = "convnet:width=16:depth=2"


def config():
    made = digits.get_config("debug")
    made.teachers.models = ("convnet",)
    made.teachers.steps, made.teachers.batch_size = 60, 64
    made.lia.teachers_by_ipc = ((1, 1),)
    made.study.baselines, made.ipc = (), 3
    return made


@pytest.fixture(scope="module")
def dataset():
    return load_data(config())[0]


def write_folder(root, dataset, names, ipc=3):
    """Writes real training images of each class into folders called `names`."""
    images, labels = dataset.train
    for c, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i, image in enumerate(images[labels == c][:ipc]):
            Image.fromarray(image[..., 0]).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize(
    "order", [list("0123456789"), [f"c{9 - i}" for i in range(10)]]
)
def test_folders_are_matched_by_name_or_taken_in_order(tmp_path, dataset, order):
    root = write_folder(tmp_path / "set", dataset, order)
    made, note = read_image_set(root, dataset, name="theirs")
    first = made.images[:, 0]
    own = np.stack(
        [dataset.train.images[dataset.train.labels == c][0] for c in range(10)]
    )
    named = order[0] == "0"
    assert ("by name" in note) == named
    np.testing.assert_array_equal(first, own if named else own[::-1])


def test_classes_whose_names_differ_in_signs_are_matched_by_name(tmp_path, dataset):
    names = ("c++", "c", *"23456789")
    root = write_folder(tmp_path / "set", dataset, names)
    made, note = read_image_set(
        root, dataclasses.replace(dataset, class_names=names), name="theirs"
    )
    assert "by name" in note
    own = dataset.train.images[dataset.train.labels == 0][0]
    np.testing.assert_array_equal(made.images[0, 0], own)


def test_names_sort_as_people_count_and_some_of_the_classes_are_refused(
    tmp_path, dataset
):
    root = write_folder(tmp_path / "a", dataset, [f"x{i + 2}" for i in range(10)])
    made, _ = read_image_set(root, dataset, name="theirs")
    wanted = dataset.train.images[dataset.train.labels == 9][0]
    np.testing.assert_array_equal(made.images[9, 0], wanted)  # x11, not after x10
    root = write_folder(tmp_path / "b", dataset, [*"012345678", "nine"])
    with pytest.raises(ValueError, match=r"none for \['9'\]"):
        read_image_set(root, dataset, name="theirs")


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        ("{}.{}", "{1}"), ("{} {}", "{1}"), ("{1}", "{:03d}.{}"), ("{:02d}-{}", "{}. {}"),
    ],
)  # fmt: skip
def test_leading_numbers_of_folders_and_classes(tmp_path, dataset, folders, classes):
    """In another order than the classes': by the numbers they would be mixed up."""
    words = ["caf\u00e9", *"bcdefghij"]
    made = dataclasses.replace(
        dataset, class_names=tuple(classes.format(i, w) for i, w in enumerate(words))
    )
    names = [folders.format(9 - i, w) for i, w in enumerate(words)]
    names[0] = unicodedata.normalize("NFD", names[0])  # As macOS writes it.
    root = write_folder(tmp_path / "set", dataset, names)
    found, note = read_image_set(root, made, name="theirs")
    assert "by name" in note
    own = dataset.train.images[dataset.train.labels == 0][0]
    np.testing.assert_array_equal(found.images[0, 0], own)


@pytest.mark.parametrize("first", ["0_0", "0"])
def test_folders_of_one_class_are_refused(tmp_path, dataset, first):
    names = [first, "1_0", *(f"{i}_{i}" for i in range(2, 10))]
    root = write_folder(tmp_path / "set", dataset, names)
    with pytest.raises(ValueError, match=r"none for \['1'\]"):
        read_image_set(root, dataset, name="theirs")


def test_classes_of_other_sizes_are_named(tmp_path, dataset):
    root = write_folder(tmp_path / "set", dataset, "0123456789")
    for path in (root / "4").iterdir():
        Image.fromarray(np.zeros((9, 9), np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"images of \S+set/4 are \(9, 9\) pixels"):
        read_image_set(root, dataset, name="theirs")


def test_options_are_numbers_switches_or_words():
    found = parse_student("convnet:width=32:pool=false:norm=batch:scale=0.5")
    assert found == (
        "convnet",
        {"width": 32, "pool": False, "norm": "batch", "scale": 0.5},
    )


def test_folders_are_named_and_numbered(tmp_path, monkeypatch):
    found = parse_sets(("m=a", "m=b", "out/x/distilled"), ("random",))
    assert [(name, seed) for name, seed, _ in found] == [("m", 0), ("m", 1), ("x", 0)]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()
    found = parse_sets(("lr=0.1", "out/distilled/distilled"), ())
    assert [(name, str(path)) for name, _, path in found] == [
        ("lr-0.1", "lr=0.1"), ("distilled", "out/distilled/distilled"),
    ]  # fmt: skip


@pytest.mark.parametrize("devices", [1, 4, 6])
@pytest.mark.parametrize("count", [3, 256, 1000])
def test_evaluation_images_divide_among_devices(monkeypatch, devices, count):
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    images = np.arange(count * 4, dtype=np.uint8).reshape(count, 2, 2, 1)
    parts, labels = evaluation_parts(images, np.arange(count, dtype=np.int32))
    assert parts.shape[:2] == labels.shape and parts.shape[1] % devices == 0
    kept = labels.ravel() >= 0
    np.testing.assert_array_equal(parts.reshape(-1, 2, 2, 1)[kept], images)
    np.testing.assert_array_equal(labels.ravel()[kept], np.arange(count))
    assert (~kept).sum() < parts.shape[1]


def test_other_data_is_another_record(tmp_path):
    """The same folder in the same work directory, judged on another split."""
    reached = []
    for seed in (0, 1):
        made = config()
        made.data.seed = seed
        folder = tmp_path / "theirs"
        if not folder.exists():
            write_folder(folder, load_data(made)[0], list("0123456789"))
        found = evaluate(
            made, tmp_path / "work", protocol="dc_hard", distilled=(str(folder),),
            students=("mlp",), seeds=1, epochs=50, split="validation",
        )  # fmt: skip
        reached.append(found["records"][0]["curve"])
    assert reached[0] != reached[1]


def few(root):
    next((root / "3").glob("*.png")).unlink()


def empty(root):
    for path in (root / "3").glob("*.png"):
        path.unlink()


def broken(root):
    (root / "3" / "0.png").write_bytes(b"no image")


def odd(root):
    Image.new("L", (5, 8)).save(root / "3" / "1.png")


def missing(root):
    empty(root)
    (root / "3").rmdir()


def wide(root):
    Image.fromarray(np.full((8, 8), 30000, np.uint16)).save(root / "3" / "1.png")


def large(root):
    for path in root.rglob("*.png"):
        Image.new("L", (9, 9)).save(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (few, r"3 has 2 images, another class 3"),
        (empty, r"3 has no image"),
        (broken, r"cannot decode .*0\.png"),
        (odd, r"1\.png is \(8, 5\) pixels"),
        (missing, r"9 class folders, the config's data 10"),
        (large, r"images of \(9, 9, 1\)"),
        (wide, r"1\.png: .* not 8 bits"),
    ],
)
def test_a_folder_that_does_not_fit_is_named(tmp_path, dataset, spoil, message):
    root = write_folder(tmp_path / "set", dataset, list("0123456789"))
    spoil(root)
    with pytest.raises(ValueError, match=message):
        read_image_set(root, dataset, name="theirs")


@pytest.mark.parametrize(
    "name", ["dc_plain", "dc_hard", "dsa_hard", "minimax_hard", "edc_soft", "rd3"]
)
def test_a_protocol_trains(tmp_path_factory, dataset, name):
    """At a few passes; the teachers are trained once for all of them."""
    shared = tmp_path_factory.getbasetemp() / "evaluate"
    folder = shared / "set"
    if not folder.exists():
        write_folder(folder, dataset, list("0123456789"))
    passes = 40 if PROTOCOLS[name].labels == "soft" else 300
    options = {
        "protocol": name, "distilled": (str(folder),), "students": (STUDENT,), "seeds": 2,
        "epochs": passes,
    }  # fmt: skip
    found = evaluate(config(), shared / "work", **options)
    assert len(found["records"]) == 2
    for record in found["records"]:
        assert record["labels"] == PROTOCOLS[name].labels
        assert (record["protocol"], record["student"]) == (name, STUDENT)
        assert record["accuracy"] > 0.3  # chance is 0.1
        size = min(PROTOCOLS[name].student["batch_size"], 30)
        steps = -(-passes * 30 // size)
        assert record["steps"] == steps
        assert record["images_seen"] == record["steps"] * size
        stored = 2 * 10 * (steps // (30 // size)) * (30 // size) * size
        assert record["soft_label_bytes"] in (0, stored)
        assert (record["soft_label_bytes"] > 0) == (record["labels"] == "soft")
    again = evaluate(config(), shared / "work", **options)
    assert again["records"] == found["records"]  # kept, with their seconds


def test_protocols_say_what_their_sources_say():
    """Steps and rates by hand for ten classes, IPC 10."""
    made = config()
    apply_protocol(made, "minimax_hard", ipc=10, classes=10)
    assert made.student.steps == 2000 * 100 / 64
    assert (made.student.optimiser, made.student.learning_rate) == ("sgd", 0.01)
    assert PROTOCOLS["minimax_hard"].epochs_for(50) == 1500
    assert PROTOCOLS["minimax_hard"].epochs_for(1000) == 500
    for name, options in map(parse_student, PROTOCOLS["minimax_hard"].students):
        assert models.create(name, num_classes=10, **options).norm == "instance"
    apply_protocol(made, "dsa_hard", ipc=10, classes=10)
    assert (made.student.steps, made.student.decays) == (1000, ((0.5, 0.1),))
    kinds = recipe_of(made, "hard").augment.kinds
    assert kinds == ("color", "crop", "cutout", "scale", "rotate")  # no flip for digits
    assert isinstance(recipe_of(made, "soft").augment, AugmentConfig)
    apply_protocol(made, "dc_hard", ipc=10, classes=10)
    assert isinstance(recipe_of(made, "hard").augment, AugmentConfig)
    plain = config()
    apply_protocol(plain, "dc_plain", ipc=10, classes=10)
    assert (plain.student.steps, plain.student.batch_size) == (300, 256)
    images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
    kept, _ = augment(jax.random.key(1), images, recipe_of(plain, "hard").augment)
    np.testing.assert_allclose(kept, images, atol=1e-6)
    apply_protocol(made, "edc_soft", ipc=10, classes=10)
    assert made.student.steps == 300 * 2
    assert (made.student.ce_weight, made.student.ema) == (0.025, 0.99)
    apply_protocol(made, "rd3", ipc=50, classes=10)
    assert (made.student.steps, made.student.optimiser) == (400 * 10, "adam")
    assert not made.data.augment.flip  # digits may not be mirrored, whatever the recipe


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "edc"}, "protocol 'edc' is unknown.*edc_soft"),
        (
            {"protocol": "rd3", "students": ("resnet81",), "baselines": ("random",)},
            "resnet81.*resnet18",
        ),
        ({"protocol": "rd3", "baselines": ("randon",)}, "randon.*random"),
        ({"protocol": "rd3"}, "nothing to judge"),
        (
            {"protocol": "rd3", "students": ("mlp:width",), "baselines": ("random",)},
            "name:option=value",
        ),
        (
            {"protocol": "rd3", "students": ("mlp:w=1",), "baselines": ("random",)},
            "mlp:w=1.*does not fit",
        ),
        (
            {"protocol": "rd3", "students": ("dit_s_2",), "baselines": ("random",)},
            "dit_s_2.*no registered classifier",
        ),
        (
            {"protocol": "rd3", "students": ("mlp:width=0",), "baselines": ("random",)},
            "mlp:width=0.*does not fit",
        ),
        ({"protocol": "rd3", "distilled": ("a/x", "b/x")}, "two folders called 'x'"),
        ({"protocol": "rd3", "distilled": ("a/random",)}, "set made here"),
    ],
)
def test_unknown_names_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(config(), tmp_path, **options)


def test_more_images_than_the_data_has_leave_no_baseline(tmp_path, dataset):
    folder = tmp_path / "theirs"
    for c in range(10):
        (folder / str(c)).mkdir(parents=True)
        for i in range(150):
            Image.new("L", (8, 8)).save(folder / str(c) / f"{i}.png")
    message = "images per class of a folder, and of baselines, is 150, but the smallest"
    options = {"protocol": "rd3", "distilled": (str(folder),), "students": ("mlp",)}
    with pytest.raises(ValueError, match=message):
        evaluate(config(), tmp_path / "work", baselines=("random",), **options)


def test_the_command_prints_and_writes(tmp_path, dataset):
    folder = write_folder(tmp_path / "theirs", dataset, list("0123456789"))
    command = [
        sys.executable, "-m", "ot_dd.evaluate", f"--distilled={folder}",
        "--protocol=dc_hard", "--students=mlp", "--seeds=2", "--epochs=20",
        "--baselines=random,herding", "--sets=2", "--split=validation",
        f"--workdir={tmp_path / 'work'}", f"--json={tmp_path / 'found.json'}",
        "--config=configs/digits.py:debug",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "theirs" in done.stdout and "validation accuracy" in done.stdout
    # Baselines have the folder's three images a class, and need no generator.
    left = {
        path.name.split("-")[0] for path in (tmp_path / "work/checkpoints").iterdir()
    }
    assert left == {"teacher_resnet10"}
    found = json.loads((tmp_path / "found.json").read_text())
    kinds = [(r["set"], r["set_seed"], r["student_seed"]) for r in found["records"]]
    assert kinds[:2] == [("theirs", 0, 0), ("theirs", 0, 1)] and len(kinds) == 8
    assert {r["ipc"] for r in found["records"]} == {3}
    assert found["command"].startswith("python -m ot_dd.evaluate --distilled=")
    assert found["recipes"]["3"]["optimiser"] == "sgd"
    theirs, random = found["summary"]["rows"][:2]
    assert (theirs["set"], random["set"]) == ("theirs", "random")
    assert (
        theirs["difference"]["unit"] == "students of one set against sets and students"
    )
    assert random["difference"] is None and random["between"] is not None
    assert found["protocol_epochs"] == {"3": 1000} and found["epochs_changed_to"] == 20
    wrong = subprocess.run(
        [*command[:3], f"--distilled={tmp_path / 'none'}", *command[4:]],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
    assert "no directory of images" in wrong.stderr
    wrong = subprocess.run(
        [*command, "--reference=randon"], capture_output=True, text=True, cwd=ROOT
    )
    assert wrong.returncode == 2 and "did you mean 'random'" in wrong.stderr
    variant = [*command, "--baselines=ot_dd,no_otm", "--reference=no_otm"]
    wrong = subprocess.run(variant, capture_output=True, text=True, cwd=ROOT)
    assert wrong.returncode == 2
    assert "sets that are judged are theirs, ot_dd" in wrong.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--trial=random", "--labels=sotf"], "--labels has 'sotf'"),
        (["--trial=ot_ddd"], "did you mean 'ot_dd'"),
        (["--trial=ot_dd refine.stesp=3"], "refine.stesp, which the config has not"),
        (
            ["--trial=ot_dd", "--json=docs"],
            "--json=docs: it is a directory: name a file",
        ),
    ],
)
def test_a_trial_that_cannot_be(flags, words, tmp_path):
    command = [
        sys.executable,
        "-m",
        "benchmarks.tune",
        f"--workdir={tmp_path / 'work'}",
    ]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "work").exists()


def test_the_table_has_every_set_and_prints(tmp_path):
    """`benchmarks.table` at its smallest, then Markdown from its JSON."""
    path = tmp_path / "table.json"
    names = (
        "no_refine", "feature_guidance", "minimax", "random", "kmeans_features",
        "herding", "kcenter", "el2n", "forgetting", "collage", "prototypes", "quantised",
        "d4m",
    )  # fmt: skip
    command = [
        sys.executable, "-m", "benchmarks.table", "--config=tests/stages/tiny.py",
        f"--workdir={tmp_path / 'work'}", "--ipc=3", "--protocols=dc_hard",
        "--students=mlp", f"--names={','.join(names)}", "--sets=2", "--seeds=1",
        "--epochs=200", f"--json={path}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    (part,) = found["geometry"]
    once = ("herding", "kcenter", "el2n", "forgetting")  # Nothing random is in these.
    wanted = [
        (name, seed) for name in names for seed in range(1 if name in once else 2)
    ]
    assert [(s["set"], s["set_seed"]) for s in part["sets"]] == wanted
    assert [(r["set"], r["set_seed"]) for r in found["table"]] == wanted
    assert found["config"]["3"]["ipc"] == 3
    operations = {name: cost["flops"] for name, cost in part["cost"].items()}
    assert operations["random"] == 0 < operations["d4m"] == operations["quantised"]
    assert operations["minimax"] > 2 * operations["no_refine"]  # It trains a network.
    reached = {r["set"]: r["accuracy"] for r in found["table"]}
    for name in ("no_refine", "feature_guidance", "minimax", "d4m", "quantised"):
        del reached[name]  # A diffusion model of six steps: noise.
    assert min(reached.values()) > 0.25, reached
    printed = subprocess.run(
        [sys.executable, "docs/tables.py", str(path)],
        capture_output=True, text=True, cwd=ROOT, check=True,
    ).stdout  # fmt: skip
    assert "**3 per class**" in printed and "| real images by herding |" in printed
    assert "rank correlation with dc_hard, `mlp`" in printed


def test_variants_are_the_method_learned_otherwise(tmp_path):
    """Its images, under a protocol that takes the config's LIA and OTM; none under KL."""
    made = config()
    made.teachers.models = ("mlp", "convnet")
    made.teachers.options = {"mlp": {}, "convnet": dict(width=16, depth=2)}
    made.guidance.terms, made.refine.steps = (), 0
    made.student.ot_weight = 2.0
    run = functools.partial(
        evaluate, made, tmp_path, baselines=("ot_dd", *vocabulary.VARIANTS),
        students=("mlp",), seeds=1, sets=1, epochs=20,
    )  # fmt: skip
    found = run(protocol="edc_soft")["records"]
    assert [(r["set"], r["variant"]) for r in found] == [
        ("ot_dd", name) for name in ("", *vocabulary.VARIANTS)
    ]
    assert len({tuple(r["curve"]) for r in found}) > 2, found
    assert len({r["logit_transport"] for r in found}) == 4, found
    assert [r["variant"] for r in run(protocol="rded_soft")["records"]] == [""]
    made.student.ot_weight = 0.0  # Without it there is nothing to take away.
    found = run(protocol="edc_soft")["records"]
    assert [r["variant"] for r in found] == ["", "no_lia"]
    with pytest.raises(ConfigError, match="name ot_dd as well"):
        run(protocol="edc_soft", baselines=("no_otm", "random"))


def test_correlations_are_of_kinds_of_sets_and_none_of_a_constant():
    """Seeds of one kind are one observation, and so are kinds of the same images.

    Lone images have no diversity.
    """
    code = (
        "from benchmarks.table import correlations\n"
        "rows = [{'set': name, 'ipc': 1, 'accuracy': {'a': a},"
        " 'geometry': {'gap': gap, 'diversity': 0.0}}"
        " for name, gap, a in [('x', 0, 5), ('x', 4, 1), ('y', 3, 2), ('z', 4, 1),"
        " ('z again', 4, 9), ('z once more', 4, -7)]]\n"
        "print(correlations(rows))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert done.stdout.strip() == str({"gap": {"a": -1.0}, "diversity": {"a": None}})
