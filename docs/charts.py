"""Draws the charts of the pages from the JSON of trials and tables.

python docs/charts.py
"""

import ast
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ot_dd.stages.summary import METHOD, spread
from ot_dd.stages.vocabulary import CHANGES, TITLES

ROOT = Path(__file__).resolve().parents[1]

LOOK = {
    "svg.hashsalt": "ot-dd", "svg.fonttype": "none", "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.alpha": 0.3, "legend.frameon": False,
}  # fmt: skip


def fields(trial: str) -> dict:
    """Returns the changed fields of a trial of `benchmarks.tune`."""
    found = {}
    for change in trial.split()[1:]:
        field, value = change.split("=", 1)
        try:
            found[field] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[field] = value
    return found


def transport(trials: list[dict]) -> plt.Figure:
    """Draws accuracy against epsilon, by marginals, real images of a step, and IPC."""
    rows = [(fields(row["trial"]), row["hard"]) for row in trials if "hard" in row]
    rows = [
        r for r in rows if "refine.pool" in r[0] and "refine.epsilon_end" not in r[0]
    ]
    sizes = sorted({changes.get("ipc", 10) for changes, _ in rows})
    figure, axes = plt.subplots(
        1, len(sizes), figsize=(4.4 * len(sizes), 3.6), layout="constrained"
    )
    for axis, ipc in zip(axes, sizes, strict=True):
        curves: dict = {}
        axis.plot([], [], color="0.5", linestyle=":", label="class means")
        for changes, reached in rows:
            if changes.get("ipc", 10) != ipc:
                continue
            mean, spread = 100 * reached["mean"], 100 * reached["std"]
            if changes.get("refine.divergence") == "mean":
                axis.axhline(mean, color="0.5", linestyle=":", zorder=1)
                continue
            key = changes["refine.tau"], changes["refine.real_batch"]
            curves.setdefault(key, []).append((changes["refine.epsilon"], mean, spread))
        for (tau, batch), points in sorted(curves.items(), reverse=True):
            x, y, spread = np.array(sorted(points)).T
            axis.errorbar(
                x, y, spread, capsize=2, linewidth=1.2, markersize=5,
                color={1.0: "tab:blue", 0.5: "tab:orange"}.get(tau, "tab:green"),
                marker={64: "o", 512: "s"}.get(batch, "^"),
                label=f"τ {tau:g}, {batch:,} real images",
            )  # fmt: skip
        shown = sorted({x for points in curves.values() for x, _, _ in points})
        axis.set(xscale="log", xlabel="epsilon (mean costs)", title=f"{ipc} per class")
        axis.set_xticks(shown, [f"{x:g}" for x in shown])
        axis.minorticks_off()
        axis.legend(fontsize=7, loc="lower right")
    axes[0].set_ylabel("validation accuracy, %")
    return figure


def compute(found: dict) -> plt.Figure:
    """Draws what the students of every set reach against the seconds that made it."""
    figure, axis = plt.subplots(figsize=(9, 4.2), layout="constrained")
    costs = found["geometry"][0]["cost"]
    scores = {
        name: [100 * r["accuracy"] for r in found["table"] if r["set"] == name]
        for name in costs
    }
    ranked = sorted(costs, key=lambda name: -np.mean(scores[name]))
    for place, name in enumerate(ranked, 1):
        ours = name == METHOD or name in CHANGES
        x, y = max(costs[name]["seconds"], 0.1), np.mean(scores[name])
        ink = "tab:red" if name == METHOD else "tab:orange" if ours else "tab:blue"
        axis.errorbar(
            x, y, np.std(scores[name], ddof=1), marker="o", markersize=11, color=ink,
            capsize=2, linewidth=1, alpha=0.75, label=f"{place}  {TITLES[name]}",
        )  # fmt: skip
        axis.annotate(
            str(place), (x, y), color="white", fontsize=7, ha="center", va="center"
        )
    axis.set(
        xscale="log", xlabel="seconds to make a set, after the networks",
        ylabel="test accuracy, %",
    )  # fmt: skip
    figure.legend(loc="outside right upper", fontsize=7)
    return figure


def sets(*tables: dict) -> plt.Figure:
    """Draws what every kind of set reaches, hard labels and soft, a panel for each IPC."""
    student = tables[0]["table"][0]["student"]
    scores: dict = {}
    for record in (r for found in tables for r in found["table"]):
        if record["student"] == student:
            kind = record["labels"], record["set"]
            runs = scores.setdefault(record["ipc"], {}).setdefault(kind, {})
            seeds = record["set_seed"], record["student_seed"]
            runs[seeds] = 100 * record["accuracy"]
    kinds = {name for found in scores.values() for _, name in found}
    named = [name for name in TITLES if name in kinds][::-1]
    figure, axes = plt.subplots(
        1, len(scores), figsize=(11, 0.24 * len(named) + 0.9), sharey=True,
        layout="constrained",
    )  # fmt: skip
    for axis, ipc in zip(axes, sorted(scores), strict=True):
        found = {kind: spread(runs) for kind, runs in scores[ipc].items()}
        best = max(reached.mean for reached in found.values())
        left = best - _SHOWN
        axis.set_xlim(left, best + 2)
        for (labels, name), reached in found.items():
            if reached.mean < left:
                axis.text(
                    left, named.index(name), f" \u2190 {reached.mean:.0f}", fontsize=7,
                    va="center", color=_MARKS[labels]["color"],
                )  # fmt: skip
                continue
            axis.errorbar(
                reached.mean, named.index(name), xerr=reached.between, capsize=2,
                linewidth=1, markersize=5, **_MARKS[labels],
            )  # fmt: skip
            if name == METHOD:
                color = _MARKS[labels]["color"]
                axis.axvline(reached.mean, color=color, alpha=0.4, zorder=1)
        axis.set(title=f"{ipc} per class", xlabel="test accuracy, %")
    axes[0].set_yticks(range(len(named)), [TITLES[name] for name in named], fontsize=7)
    axes[0].set_ylim(-0.6, len(named) - 0.4)
    for labels, look in _MARKS.items():
        axes[-1].plot([], [], linestyle="", label=f"{labels} labels", **look)
    axes[-1].legend(fontsize=7, loc="best")
    return figure


_SHOWN = 35  # points below the best; what is farther off is written at the edge
_MARKS = {
    "hard": {"color": "tab:blue", "marker": "s"},
    "soft": {"color": "tab:orange", "marker": "o"},
}

CHARTS = {
    "transport.svg": (transport, ["docs/transport_fashion_mnist.json"]),
    "compute.svg": (compute, ["docs/results/table_fashion_mnist.json"]),
    "sets.svg": (
        sets,
        [
            f"docs/results/table_fashion_mnist{part}.json"
            for part in (
                "",
                "_hard",
                "_transport",
                "_ipc1",
                "_ipc1_hard",
                "_ipc50",
                "_ipc50_hard",
            )
        ],
    ),
}


def main(directory: Path = ROOT / "docs") -> None:
    """Writes every chart into a directory."""
    plt.switch_backend("svg")
    with plt.rc_context(LOOK):
        for name, (draw, sources) in CHARTS.items():
            figure = draw(*(json.loads((ROOT / s).read_text()) for s in sources))
            figure.savefig(directory / name, metadata={"Date": None})
            plt.close(figure)


if __name__ == "__main__":
    main()
