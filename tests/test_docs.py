"""What README shows runs, and its tables are those of the committed JSON files."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("page", ["README.md", "docs/sinkhorn.md"])
def test_code_on_the_page_runs(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})


@pytest.mark.parametrize(
    ("page", "source"),
    [
        ("README.md", "docs/results/digits.json"),
        ("README.md", "docs/results/fashion_mnist.json"),
        ("docs/sinkhorn.md", "benchmarks/sinkhorn.json"),
        ("docs/speed.md", "benchmarks/dit.json"),
        ("docs/speed.md", "benchmarks/students.json"),
        ("docs/tuning.md", "docs/tuning_digits.json"),
        ("docs/tuning.md", "docs/tuning_fashion_mnist.json"),
    ],
)
def test_tables_come_from_the_committed_files(page, source):
    printed = subprocess.run(
        [sys.executable, ROOT / "docs" / "tables.py", ROOT / source],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert printed.stdout.strip() in (ROOT / page).read_text()
