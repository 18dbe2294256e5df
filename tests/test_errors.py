"""What a user can get wrong: one line that says where, what and what to do; exit code 2."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import digits
from ot_dd.checkpoint import read_json
from ot_dd.command import exit_code
from ot_dd.distill import run
from ot_dd.stages.distilled import load_distilled
from ot_dd.workdir import WorkDir

ROOT = Path(__file__).resolve().parents[1]

# Fields of the config, and words that the message must have.
FIELDS = [
    ({"ipc": 0}, "config.ipc is 0: must be at least 1"),
    ({"ipc": 5000}, "config.ipc is 5000, but the smallest class of digits has"),
    ({"student.model": "resnet19"}, "did you mean 'resnet18'"),
    ({"surrogate.model": "dit"}, "no registered classifier"),
    ({"teachers.models": ("convnet", "vitt")}, "did you mean 'vit'"),
    ({"teachers.models": ()}, "config.teachers.models is (): needs at least one"),
    ({"teachers.models": ("mlp", "mlp")}, "names a network twice"),
    ({"teachers.weights": {"resnet": "x"}}, "config.teachers.weights is 'resnet'"),
    ({"autoencoder.model": "autoencoder"}, "did you mean 'autoencoder_kl'"),
    ({"autoencoder.weights": "w"}, "leaves no use for config.autoencoder.weights"),
    ({"autoencoder.feature_teachers": -1}, "must be at least 0"),
    ({"denoiser.model": "resnet18"}, "config.denoiser.model is 'resnet18'"),
    ({"denoiser.parametrization": "eps"}, "did you mean 'epsilon'"),
    ({"denoiser.dtype": "float16"}, "must be one of float32, bfloat16"),
    ({"denoiser.ema": 1.0}, "must be from 0 to below 1"),
    ({"denoiser.label_dropout": -0.1}, "config.denoiser.label_dropout"),
    ({"denoiser.steps": 0}, "config.denoiser.steps is 0"),
    ({"denoiser.options": {"patch": 3}}, "config.denoiser does not fit images (8, 8, 1)"),
    ({"denoiser.options": {"depht": 3}}, "did you mean 'depth'"),
    ({"denoiser.weights": "nowhere"}, "nowhere"),
    ({"teachers.batch_size": 0}, "config.teachers.batch_size is 0"),
    ({"teachers.learning_rate": 0.0}, "config.teachers.learning_rate is 0.0"),
    ({"surrogate.epochs": 0}, "config.surrogate.epochs"),
    ({"surrogate.save_every": 0}, "config.surrogate.save_every"),
    ({"sampler.name": "ddmp"}, "did you mean 'ddpm'"),
    ({"sampler.name": "ddpm"}, "is sampled by flow"),
    ({"sampler.num_steps": 0}, "config.sampler.num_steps is 0"),
    ({"sampler.name": "ddpm", "denoiser.parametrization": "epsilon",
      "sampler.num_steps": 2000}, "config.sampler.num_steps is 2000: must be from 2"),
    ({"sampler.group": 3, "ipc": 10}, "divide ipc=10"),
    ({"guidance.terms": ("transprot",)}, "did you mean 'transport'"),
    ({"guidance.transport.window": (3, 40)}, "within the 4 steps"),
    ({"guidance.influence.window": (3, 1)}, "config.guidance.influence.window is (3, 1)"),
    ({"guidance.transport.cost_fn": "l2"}, "must be one of sqeuclidean, l1"),
    ({"guidance.transport.epsilon": 0.0}, "config.guidance.transport.epsilon is 0.0"),
    ({"guidance.transport.epsilon_unit": "mean"}, "did you mean 'mean_cost'"),
    ({"guidance.deviation.strength": -1.0}, "config.guidance.deviation.strength is -1.0"),
    ({"student.ot_weight": -0.1}, "config.student.ot_weight is -0.1: must be at least 0"),
    ({"refine.start": "kmean"}, "did you mean 'kmeans'"),
    ({"refine.start": "random", "refine.optimise": "denoiser"}, "leave refine.start"),
    ({"guidance.transport.space": "latent"}, "config.guidance.transport.space"),
    ({"guidance.deviation.normalise": "l2"}, "config.guidance.deviation.normalise"),
    ({"guidance.transport.num_real": 0}, "config.guidance.transport.num_real"),
    ({"guidance.not_finite": "ignore"}, "must be one of stop, skip"),
    ({"refine.optimise": "images"}, "must be one of latents, pixels"),
    ({"refine.optimise": "decoder"}, "has no decoder: use 'latents' or 'pixels'"),
    ({"refine.features": ("clip",)}, "use 'fresh:<model>'"),
    ({"refine.features": ("fresh:clip",)}, "no registered classifier"),
    ({"refine.divergence": "wasserstein"}, "sinkhorn, distance, mean"),
    ({"refine.epsilon": -1.0}, "config.refine.epsilon is -1.0: must be above 0"),
    ({"refine.tau": 1.5}, "at most 1 (balanced)"),
    ({"refine.real_batch": 0}, "config.refine.real_batch is 0"),
    ({"refine.views": 0}, "config.refine.views is 0"),
    ({"refine.class_weight_by_ipc": ((1, -1.0),)}, "with weights of 0 or above"),
    ({"refine.class_weight_by_ipc": ()}, "needs (ipc, weight) pairs"),
    ({"parallel.strategy": "ddp"}, "must be one of replicate, fsdp"),
    ({"lia.teachers_by_ipc": ((1, 9),)}, "with 1 to 4 teachers each"),
    ({"lia.teachers_by_ipc": (1, 2)}, "needs (ipc, teachers) pairs"),
    ({"lia.teachers_by_ipc": ((1, 1.5),)}, "needs (ipc, teachers) pairs"),
    ({"guidance.transport.window": (3,)}, "must be (first, last) step"),
    ({"student.evaluations": 50}, "config.student.evaluations is 50: must be at most"),
    ({"student.decays": (0.5, 0.1)}, "needs (share of the run, factor) pairs"),
    ({"surrogate.epochs": 7}, "must be at most surrogate.steps=6"),
    ({"lia.teachers_by_ipc": ()}, "config.lia.teachers_by_ipc is ()"),
    ({"lia.mode": "later"}, "must be one of stored, online"),
    ({"student.optimiser": "lion"}, "must be one of adamw, adam, sgd"),
    ({"student.plan": "uniform"}, "must be one of sinkhorn, identity"),
    ({"student.temperature": 0.0}, "config.student.temperature is 0.0"),
    ({"student.zeta": 0.0}, "config.student.zeta is 0.0: must be above 0"),
    ({"student.decays": ((1.5, 0.1),)}, "config.student.decays is ((1.5, 0.1),): needs"),
    ({"surrogate.similarity_threshold": float("nan")},
     "config.surrogate.similarity_threshold is nan: must be a finite number"),
    ({"seed": 2**32}, "config.seed is 4294967296: must be below 2**32"),
    ({"teachers.options": {"convent": {}}}, "did you mean 'convnet'"),
    ({"student.options": {"width": 3.5}}, "config.student does not fit images"),
    (
        {"autoencoder.model": "autoencoder_small",
         "autoencoder.options": {"channels": (12, 24)}},
        "config.autoencoder does not fit images (8, 8, 1) with latents (8, 8, 1): "
        "8 groups do not divide 12 channels",
    ),
    (
        {"autoencoder.model": "autoencoder_small", "autoencoder.options": {"channels": 8}},
        "config.autoencoder does not fit",
    ),
    (
        {"autoencoder.model": "autoencoder_small",
         "autoencoder.options": {"channels": ()}},
        "config.autoencoder does not fit",
    ),
    ({"student.options": {"depth": 9}}, "config.student does not fit images"),
    ({"teachers.models": (1, 2)}, "config.teachers.models is (1, 2): must be a tuple of"),
    ({"study.baselines": ("random,kmeans",)}, "as in --config.study.baselines=\"('a'"),
    (
        {"refine.features": ("fresh:convnet",), "refine.class_weight_by_ipc": ((1, 1.0),)},
        "needs 'surrogate' or 'teachers' in refine.features",
    ),
    ({"study.baselines": ("kmean",)}, "did you mean 'kmeans'"),
    ({"study.baselines": ("no_lia",)}, "config.study.baselines is 'no_lia': known are"),
    ({"study.ablations": ("kmeans",)}, "config.study.ablations is 'kmeans': known are"),
    ({"study.labels": ("firm",)}, "must be hard or soft"),
    ({"study.labels": ()}, "config.study.labels is (): needs hard, soft or both"),
    ({"seed": -1}, "config.seed is -1: must be at least 0"),
    ({"refine.depth": 9}, "config.refine.features does not fit images"),
    ({"teachers.options": {"convnet": {"width": 0}}}, "config.teachers (convnet) does"),
    ({"data.augment.crop_scale": (0.5,)}, "data.augment.crop_scale is (0.5,): must be"),
    ({"data.augment.cutmix": 2.0}, "data.augment.cutmix = 2.0: must be a probability"),
    ({"data.source": str(Path(__file__).parent)}, "did you mean 'image_folder:/"),
    ({"data.source": "digit"}, "data.source = 'digit': unknown source"),
    ({"data.source": "image_folder:/nowhere"}, "no directory /nowhere"),
    ({"data.source": "tfds:/nowhere"}, "dataset_info.json"),
    ({"data.source": "synthetic:clases=3"}, "unknown option 'clases'"),
    ({"data.validation_fraction": 1.5}, "data.validation_fraction = 1.5"),
    ({"data.validation_fraction": 0.0}, "config.data.validation_fraction is 0.0"),
    ({"data.image_size": -1}, "data.image_size"),
    ({"data.source": "synthetic:n=2", "ipc": 1}, "synthetic has no validation image"),
]  # fmt: skip


def complaint(work, capsys) -> str:
    """Returns what a command printed that must have failed by a user's mistake."""
    assert exit_code(work) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    return said


@pytest.mark.parametrize(("changes", "words"), FIELDS, ids=lambda v: str(v)[:50])
def test_a_field_that_cannot_be(changes, words, tmp_path, capsys):
    config = digits.get_config("debug")
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    workdir = tmp_path / "work"
    assert words in complaint(lambda: run(config, workdir), capsys)
    left = [path.name for path in workdir.rglob("*") if path.is_file()]
    assert not set(left) - {"config.json", "metrics.jsonl", ".lock"}


def folder_of_images(root: Path, classes=("cat", "dog"), count=6) -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 255, (8, 8), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def empty_class(root):
    for path in (root / "cat").iterdir():
        path.unlink()


def no_classes(root):
    for name in ("cat", "dog"):
        empty_class(root) if name == "cat" else [
            p.unlink() for p in (root / name).iterdir()
        ]
        (root / name).rmdir()


def one_level_too_high(root):
    (root / "set").mkdir()
    for name in ("cat", "dog"):
        (root / name).rename(root / "set" / name)


def not_an_image(root):
    (root / "cat" / "3.png").write_bytes(b"GIF8 nothing")


def cut_image(root):
    path = root / "dog" / "2.png"
    path.write_bytes(path.read_bytes()[:60])


def other_size(root):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(root / "dog" / "1.png")


def deep_image(root):
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(root / "dog" / "1.png")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (empty_class, "cat has no image"),
        (no_classes, "has no class folders"),
        (one_level_too_high, "images/set?"),
        (not_an_image, "cannot decode image"),
        (cut_image, "2.png"),
        (other_size, "set data.image_size"),
        (deep_image, "not 8 bits"),
    ],
)
def test_a_folder_that_cannot_be_read(spoil, words, tmp_path, capsys):
    root = folder_of_images(tmp_path / "images")
    spoil(root)
    config = digits.get_config("debug")
    config.data.source = f"image_folder:{root}"
    assert words in complaint(lambda: run(config, tmp_path / "work"), capsys)


def test_a_class_without_a_test_image(tmp_path, capsys):
    root = folder_of_images(tmp_path / "images")
    folder_of_images(root, ["bird"], count=1)
    config = digits.get_config("debug")
    config.data.source, config.ipc = f"image_folder:{root}", 1
    said = complaint(lambda: run(config, tmp_path / "work"), capsys)
    assert "no test image of ['bird']" in said


def test_a_run_says_the_last_of_its_stages(tmp_path, capsys):
    config = digits.get_config("debug")
    config.data.source = "image_folder:/nowhere"
    assert exit_code(lambda: run(config, tmp_path, ("sample", "prepare"))) == 2
    said = "".join(capsys.readouterr())
    assert "up to sample; what is there is restored\n" in said

    (tmp_path / "results.json").touch()
    assert exit_code(lambda: run(config, tmp_path, ("relabel",))) == 2
    assert "report.html stay an earlier run's" in "".join(capsys.readouterr())


def idx(path: Path, content: bytes):
    with gzip.open(path, "wb") as file:
        file.write(content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "starts with nothing"),
        (b"\x00\x00\x08\x01" + bytes(4), "starts with 00000801"),
        (
            b"\x00\x00\x08\x03" + b"\x00\x00\x00\x02" * 3 + bytes(3),
            "is truncated or damaged",
        ),
    ],
)
def test_a_damaged_idx_file(content, words, tmp_path, capsys):
    for kind in ("train", "t10k"):
        idx(tmp_path / f"{kind}-images-idx3-ubyte.gz", content)
        idx(tmp_path / f"{kind}-labels-idx1-ubyte.gz", content)
    config = digits.get_config("debug")
    config.data.source, config.data.data_dir = "fashion_mnist", str(tmp_path)
    assert words in complaint(lambda: run(config, tmp_path / "work"), capsys)


@pytest.fixture
def work(tmp_path):
    made = WorkDir(tmp_path / "work")
    made.arrays("thing", lambda: {"x": np.arange(1000)})
    made.json("note", lambda: {"x": 1})
    return made


def test_arrays_are_read_as_what_they_are(work):
    x = jnp.arange(3, dtype=jnp.bfloat16)
    made = work.arrays("narrow", lambda: {"x": x, "names": ["a", "b"]})
    read = work.arrays("narrow", dict)
    assert made["x"].dtype == read["x"].dtype == np.float32
    assert read["x"].tolist() == [0, 1, 2] and read["names"].tolist() == ["a", "b"]


@pytest.mark.parametrize("size", [0, 3, 100, 900])
def test_a_cut_file_of_arrays(work, size, capsys):
    path = work.path / "cache" / "thing.npz"
    path.write_bytes(path.read_bytes()[:size])
    said = complaint(lambda: work.arrays("thing", dict), capsys)
    assert str(path) in said and "delete it" in said


def test_json_is_what_the_next_run_reads(work):
    def make():
        return {"by_class": {3: (1, 2)}}

    assert work.json("keys", make) == work.json("keys", make)
    assert work.json("keys", make) == {"by_class": {"3": [1, 2]}}


@pytest.mark.parametrize("text", ["", "{", "[1, 2", "\x00"])
def test_a_cut_json_file(work, text, capsys):
    path = work.path / "cache" / "note.json"
    path.write_text(text)
    said = complaint(lambda: work.json("note", dict), capsys)
    assert str(path) in said and "delete it" in said


def test_a_damaged_checkpoint(work, capsys):
    checkpoints = work.checkpoints("net")
    tree = {"w": np.arange(6.0)}
    checkpoints.save(1, tree)
    checkpoints.close()
    for path in (work.path / "checkpoints" / "net" / "steps" / "1").rglob("*"):
        if path.is_file() and path.stat().st_size > 40:
            path.write_bytes(path.read_bytes()[:20])
    again = work.checkpoints("net")
    said = complaint(lambda: again.restore(tree), capsys)
    assert "checkpoints/net" in said and "delete that folder" in said
    again.close()


def test_a_checkpoint_of_another_network(work, capsys):
    checkpoints = work.checkpoints("net")
    checkpoints.save(1, {"w": np.arange(6.0)})
    said = complaint(lambda: checkpoints.restore({"v": np.zeros((2, 2))}), capsys)
    assert "is damaged or of another network" in said
    checkpoints.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ipc": 3}, "holds 2 images, dataset.json says 3"),
        ({"image_shape": [4, 4, 1]}, "holds images of shape"),
        ({"folders": ["0_a", "1_c"]}, "holds 0 images"),
        ({"class_names": None}, "is damaged"),
        (None, "has no dataset.json"),
    ],
)
def test_a_distilled_set_that_disagrees_with_its_description(
    change, words, tmp_path, capsys
):
    description = {
        "name": "x", "class_names": ["a", "b"], "folders": ["0_a", "1_b"], "ipc": 2,
        "image_shape": [8, 8, 1],
    }  # fmt: skip
    folder_of_images(tmp_path / "images", ("0_a", "1_b"), count=2)
    if change is not None:
        description |= change
        if description["class_names"] is None:
            del description["class_names"]
        (tmp_path / "dataset.json").write_text(json.dumps(description))
    assert words in complaint(lambda: load_distilled(tmp_path), capsys)


@pytest.mark.parametrize("folder", ["../outside", "/etc", "a/../../outside"])
def test_a_description_cannot_leave_its_directory(folder, tmp_path, capsys):
    description = {
        "name": "x", "class_names": ["a"], "folders": [folder], "ipc": 1,
        "image_shape": [8, 8, 1],
    }  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    assert "is no folder of the set" in complaint(
        lambda: load_distilled(tmp_path), capsys
    )


def distill(*flags, **options):
    return subprocess.run(
        [sys.executable, "-m", "ot_dd.distill", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=300, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.ipcc=3"], "the config has no field 'ipcc'. Did you mean"),
        (["--config.foo=3"], "error: the config has no field 'foo'\n"),
        (
            ["--config.student.options.norm=batch"],
            "no field 'norm': options that a config file does not name are added there",
        ),
        (["--config.ipc=ten"], "ipc"),
        (["--config=configs/digits.py:debgu"], "did you mean 'debug'"),
        (["--config=configs/nowhere.py"], "nowhere.py"),
        (["--stages=sampel"], "--stages names 'sampel'"),
        (["--num_processes=2"], "go together"),
        (["--coordinator=auto"], "found no cluster here"),
        (["--config={tmp}/plain.py"], "its get_config() must return a ConfigDict"),
        (
            ["--config={tmp}/short.py"],
            "missing, or of another type (\"'autoencoder'\")",
        ),
        (["extra"], "unexpected argument 'extra'"),
    ],
)
def test_a_flag_that_cannot_be(flags, words, tmp_path):
    (tmp_path / "plain.py").write_text("def get_config():\n    return {'name': 'a'}\n")
    (tmp_path / "short.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n    return ConfigDict({'name': 'a', 'ipc': 1})\n"
    )
    flags = [flag.format(tmp=tmp_path) for flag in flags]
    done = distill(f"--workdir={tmp_path / 'work'}", *flags)
    assert done.returncode != 0
    assert words in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "work" / "checkpoints").exists()


def test_a_work_directory_that_is_a_file(tmp_path):
    (tmp_path / "work").write_text("mine")
    done = distill("--config=configs/digits.py:debug", f"--workdir={tmp_path / 'work'}")
    assert done.returncode == 2 and str(tmp_path / "work") in done.stderr
    assert (tmp_path / "work").read_text() == "mine"


def on_a_file_system(tmp_path, options, script):
    """Runs a script on a small file system of its own, where the machine allows one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = f"mount -t tmpfs -o {options} tmpfs {place} && exec"
    namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        subprocess.run([*namespace, f"{mount} true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs user namespaces that may mount a tmpfs")
    command = f'{mount} "$@"'
    return subprocess.run(
        [*namespace, command, "sh", sys.executable, "-c", script, str(place)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_a_full_disk_leaves_what_was_there(tmp_path):
    script = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from configs import digits\n"
        "from ot_dd.command import exit_code\n"
        "from ot_dd.distill import run\n"
        "from ot_dd.workdir import WorkDir\n"
        "folder = Path(sys.argv[1])\n"
        "work = WorkDir(folder)\n"
        "work.arrays('small', lambda: {'x': np.arange(10)})\n"
        "big = lambda: {'x': np.arange(1_000_000)}\n"
        "codes = [exit_code(lambda: work.arrays('big', big))]\n"
        # The pipeline as well, which fills the disk with its checkpoints.
        "pipeline = lambda: run(digits.get_config('debug'), folder)\n"
        "codes.append(exit_code(pipeline))\n"
        "codes.append(exit_code(pipeline))\n"
        "print(codes, sorted(p.name for p in (folder / 'cache').iterdir()))\n"
        "print(work.arrays('small', dict)['x'].sum())\n"
    )
    done = on_a_file_system(tmp_path, "size=600k", script)
    codes, rest = done.stdout.splitlines()[-2:]
    assert codes.startswith("[2, 2, 2] "), done.stderr
    assert "'small.npz'" in codes and "big.npz'" not in codes and rest == "45"
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 3 and "big.npz" in said[0]
    assert all("No space left on device" in line for line in said), said
    assert "Traceback" not in done.stderr


def test_a_disk_that_cannot_be_written(tmp_path):
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from configs import digits\n"
        "from ot_dd.command import exit_code\n"
        "from ot_dd.distill import run\n"
        "folder = Path(sys.argv[1]) / 'work'\n"
        "sys.exit(exit_code(lambda: run(digits.get_config('debug'), folder)))\n"
    )
    done = on_a_file_system(tmp_path, "ro,size=100k", script)
    assert done.returncode == 2, done.stderr
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert "Read-only file system" in line and "disk/work" in line
    assert "Traceback" not in done.stderr


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path):
    """A limit on the size of files stands for the disk: writes fail half-way."""
    script = (
        "import resource, signal, sys, numpy as np\n"
        "from ot_dd.command import exit_code\n"
        "from ot_dd.workdir import WorkDir\n"
        "work = WorkDir(sys.argv[1])\n"
        "work.arrays('small', lambda: {'x': np.arange(10)})\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "big = lambda: {'x': np.arange(100_000)}\n"
        "sys.exit(exit_code(lambda: work.arrays('big', big)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, env=dict(os.environ), timeout=300,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "big.npz" in done.stderr.splitlines()[-1]
    kept = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert kept == ["seconds", "small.npz"]
    assert read_json(tmp_path / "cache" / "seconds" / "small.json") is not None
