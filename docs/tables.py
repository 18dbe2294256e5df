"""Prints the Markdown tables of README and docs from the committed JSON files.

python docs/tables.py docs/results/digits.json | docs/results/table_digits.json | ...
"""

import json
import sys
from pathlib import Path

import numpy as np


def percent(values) -> str:
    """Returns "mean ± std" in percent, of one value the mean alone."""
    values = 100 * np.asarray(values)
    spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"{values.mean():.1f}{spread}"


def trial_score(row: dict, kind: str) -> str:
    """Returns a trial's "mean ± std" in percent, or nothing where it has none."""
    if kind not in row:
        return ""
    return f"{100 * row[kind]['mean']:.1f} ± {100 * row[kind]['std']:.1f}"


def timings(cases: list[dict]) -> None:
    """Prints a benchmark's ratios to ours."""
    names = dict.fromkeys(name for case in cases for name in case["ratio_to_ours"])
    others = [name for name in names if name != "ot_dd"]
    print(f"| case | ours | {' | '.join(others)} |\n|{'---|' * (2 + len(others))}")
    for case in cases:
        found = case["ratio_to_ours"]
        ratios = [f"{found[name]:.2f}" if name in found else "" for name in others]
        ours = case["milliseconds"]["ot_dd"]
        print(f"| `{case['case']}` | {ours:.0f} ms | {' | '.join(ratios)} |")


def comparison(found: dict) -> None:
    """Prints accuracies, geometry and correlations of `benchmarks.table`."""
    columns = list(dict.fromkeys((r["protocol"], r["student"]) for r in found["table"]))
    for part in found["geometry"]:
        ipc = part["ipc"]
        cells: dict = {}
        for record in found["table"]:
            if record["ipc"] == ipc:
                column = (record["protocol"], record["student"])
                reached = cells.setdefault(record["set"], {}).setdefault(column, [])
                reached.append(record["accuracy"])
        titles = [f"{protocol}, `{student}`" for protocol, student in columns]
        print(f"**{ipc} per class**\n\n| set | {' | '.join(titles)} |")
        print(f"|{'---|' * (1 + len(columns))}")
        for name, row in cells.items():
            scores = " | ".join(percent(row[column]) for column in columns)
            print(f"| {found['titles'][name]} | {scores} |")
        names = list(part["sets"][0]["geometry"])
        print(f"\n| set | {' | '.join(names)} |\n|{'---|' * (1 + len(names))}")
        for name in cells:
            own = [s["geometry"] for s in part["sets"] if s["set"] == name]
            values = [f"{np.mean([g[k] for g in own]):.2f}" for k in names]
            print(f"| {found['titles'][name]} | {' | '.join(values)} |")
        for protocol, student in columns:
            ranks = [part["correlations"][k][f"{protocol} {student}"] for k in names]
            shown = " | ".join(f"{rank:+.2f}" for rank in ranks)
            print(f"| *rank correlation with {protocol}, `{student}`* | {shown} |")
        print()


def main(path: Path) -> None:
    """Prints the table that belongs to the file."""
    found = json.loads(path.read_text())
    if "table" in found:
        return comparison(found)
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
