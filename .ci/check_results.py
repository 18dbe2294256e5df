"""Checks what `make distill` left: complete, and the method beats random images.

The config is also that of the figures in README.
"""

import json
import sys
from pathlib import Path

from ot_dd.stages.distilled import load_distilled
from ot_dd.stages.summary import headline

work = Path(sys.argv[1])
results = json.loads((work / "results.json").read_text())
images, labels, description = load_distilled(work / "distilled")
published = json.loads(Path("docs/results/digits.json").read_text())
assert results["config"] == published["config"], "digits.json is of another config"
assert (work / "report.html").stat().st_size > 50_000
assert len(images) == 10 * description["ipc"] == len(labels)


def mean(name, kind):
    """Returns the mean accuracy of a set's plain runs."""
    found = [
        r["accuracy"]
        for r in results["records"]
        if (r["set"], r["labels"], r["variant"]) == (name, kind, "")
    ]
    assert len(found) == 9, f"{name} {kind}: {len(found)} runs, expected 9"
    return sum(found) / len(found)


for name in results["sets"]:
    for kind in ("hard", "soft"):
        print(f"{name:16} {kind:5} {100 * mean(name, kind):5.1f}")
gain = 100 * (mean("ot_dd", "hard") - mean("random", "hard"))
assert gain > 1, f"hard labels: only {gain:+.1f} points over random real images"
print(headline(results["records"], results["sets"]))
print(f"hard labels: {gain:+.1f} points over random real images")
