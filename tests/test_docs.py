"""What README shows runs, and its tables are those of the committed JSON files."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ot_dd.planning.programs import Slice, programs
from ot_dd.planning.sizes import sizes_of
from ot_dd.validation import validate

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("page", ["README.md", "docs/sinkhorn.md", "docs/extending.md"])
def test_code_on_the_page_runs(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    assert blocks
    names: dict = {}  # A page reads from top to bottom.
    for block in blocks:
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("size", [24, 32, 64])
def test_the_config_on_the_page_fits_images_of_its_sizes(size):
    page = (ROOT / "docs/configs.md").read_text()
    block = re.search(r"```python\n(# configs/mine.py.*?)```", page, re.S)[1]
    names: dict = {}
    exec(compile(block, "docs/configs.md", "exec"), names)
    config = names["get_config"]()
    config.data.image_size = size
    validate(config)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    sizes = sizes_of(config, images=1000, test=200, classes=5)
    for program in programs(config, sizes, Slice("here", mesh, mesh, 1)):
        assert program.trace().jaxpr.eqns, program.name


@pytest.mark.parametrize(
    ("page", "source"),
    [
        ("README.md", "docs/results/digits.json"),
        ("README.md", "docs/results/fashion_mnist.json"),
        ("README.md", "docs/results/table_fashion_mnist*.json overview"),
        ("docs/sinkhorn.md", "benchmarks/sinkhorn.json"),
        ("docs/sinkhorn.md", "benchmarks/sinkhorn_gpu.json"),
        ("docs/speed.md", "benchmarks/dit.json"),
        ("docs/speed.md", "benchmarks/students.json"),
        ("docs/tuning.md", "docs/tuning_digits.json"),
        ("docs/tuning.md", "docs/tuning_fashion_mnist.json"),
        ("docs/tuning.md", "docs/transport_fashion_mnist.json"),
        ("docs/tuning.md", "docs/refinement_fashion_mnist.json"),
        ("docs/tuning.md", "docs/recipe_fashion_mnist.json"),
        ("docs/tuning.md", "docs/class_term_fashion_mnist.json"),
        ("docs/tuning.md", "docs/augmentation_fashion_mnist.json"),
        ("docs/tuning.md", "docs/students_fashion_mnist.json"),
        ("docs/tuning.md", "docs/baselines_fashion_mnist.json"),
        ("docs/tuning.md", "docs/baselines_digits.json"),
        ("docs/tuning.md", "docs/lia_fashion_mnist.json"),
        ("docs/tuning.md", "docs/otm_fashion_mnist.json"),
        ("docs/tuning.md", "docs/features_fashion_mnist.json"),
        ("docs/tuning.md", "docs/window_fashion_mnist.json"),
        ("docs/pods.md", "docs/results/plan_imagenet1k.json"),
        ("docs/pods.md", "docs/results/plan_imagenet1k_networks.json"),
        ("docs/results.md", "docs/results/table_digits.json"),
        ("docs/results.md", "docs/results/table_fashion_mnist.json"),
        ("docs/results.md", "docs/results/table_fashion_mnist_ipc1.json"),
        ("docs/results.md", "docs/results/table_fashion_mnist_ipc50.json"),
        ("docs/results.md", "docs/results/table_fashion_mnist_transport.json"),
        *(
            (
                "docs/results.md",
                f"docs/results/table_fashion_mnist_{part}.json accuracies",
            )
            for part in (
                "hard",
                "students",
                "students_hard",
                "ipc1_hard",
                "ipc50_hard",
                "ipc50_resnet",
                "ipc50_resnet_hard",
                "ipc50_resnet_main_hard",
                "ipc50_transformer",
                "ipc50_transformer_hard",
            )
        ),
        ("docs/results.md", "docs/results/ladder_fashion_mnist_plain.json"),
        ("docs/results.md", "docs/results/ladder_fashion_mnist.json"),
        ("docs/results.md", "docs/results/ladder_fashion_mnist_ipc50.json"),
        ("docs/results.md", "docs/results/ladder_fashion_mnist_dsa_ipc50.json"),
        ("docs/results.md", "docs/results/ladder_fashion_mnist_dsa.json"),
        ("docs/results.md", "docs/results/ladder_fashion_mnist_ipc1.json"),
    ],
)
def test_tables_come_from_the_committed_files(page, source, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "docs")
    path, *words = source.split()
    importlib.import_module("tables").main(Path(path), *words)
    printed = capsys.readouterr().out.strip()
    assert printed and printed in Path(page).read_text()


def test_charts_come_from_the_committed_files(tmp_path):
    """Drawn anew they say the same words and have as many marks."""
    code = "import sys, pathlib, charts; charts.main(pathlib.Path(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", code, tmp_path], check=True, cwd=ROOT / "docs",
    )  # fmt: skip
    drawn = sorted(tmp_path.glob("*.svg"))
    assert drawn
    pages = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    for chart in drawn:
        committed = (ROOT / "docs" / chart.name).read_text()
        for pattern in (r"<text[^>]*>([^<]*)<", r"<use "):
            found = [re.findall(pattern, t) for t in (chart.read_text(), committed)]
            assert found[0] == found[1] and found[0]
        assert f"]({chart.name})" in pages


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    reference = (tmp_path / "reference.html").read_text()
    assert 'id="ot_dd.ot.solve"' in reference and "marginal_error" in reference
