"""Prints the Markdown tables of README and docs from the committed JSON files.

python docs/tables.py docs/results/digits.json | docs/tuning_digits.json | ...
"""

import json
import sys
from pathlib import Path

import numpy as np


def percent(values) -> str:
    """Returns "mean ± std" in percent."""
    values = 100 * np.asarray(values)
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"


def trial_score(row: dict, kind: str) -> str:
    """Returns a trial's "mean ± std" in percent, or nothing where it has none."""
    if kind not in row:
        return ""
    return f"{100 * row[kind]['mean']:.1f} ± {100 * row[kind]['std']:.1f}"


def timings(cases: list[dict]) -> None:
    """Prints a benchmark's ratios to ours."""
    others = [name for name in cases[0]["ratio_to_ours"] if name != "ot_dd"]
    print(f"| case | ours | {' | '.join(others)} |\n|{'---|' * (2 + len(others))}")
    for case in cases:
        ratios = [f"{case['ratio_to_ours'][name]:.1f}" for name in others]
        ours = case["milliseconds"]["ot_dd"]
        print(f"| `{case['case']}` | {ours:.0f} ms | {' | '.join(ratios)} |")


def main(path: Path) -> None:
    """Prints the table that belongs to the file."""
    found = json.loads(path.read_text())
    if "cases" in found:
        return timings(found["cases"])
    if isinstance(found, list):
        kinds = [kind for kind in ("hard", "soft") if any(kind in row for row in found)]
        print(f"| trial | {' | '.join(kinds)} |\n|{'---|' * (1 + len(kinds))}")
        for row in found:
            trial = " ".join(f"`{word}`" for word in row["trial"].split())
            print(f"| {trial} | {' | '.join(trial_score(row, k) for k in kinds)} |")
        return
    variants = {
        "no_lia": "ot-dd, labels by all teachers (no LIA)",
        "no_otm": "ot-dd, no transport in the student loss (no OTM)",
        "identity_plan": "ot-dd, identity plan instead of OTM's",
    }
    rows: dict = {}
    for record in found["records"]:
        cell = rows.setdefault((record["set"], record["variant"]), {})
        cell.setdefault(record["labels"], []).append(record["accuracy"])
    print("| set | hard labels | soft labels | W |\n|---|---|---|---|")
    for (name, variant), cells in rows.items():
        title = variants.get(variant) or found["sets"][name]["title"]
        scores = [percent(cells[k]) if k in cells else "" for k in ("hard", "soft")]
        distance = found["sets"][name]["transport"]["mean"]
        print(f"| {title} | {' | '.join(scores)} | {distance:.1f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
