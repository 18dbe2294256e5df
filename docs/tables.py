"""Prints the Markdown tables of README and docs from the committed JSON files.

python docs/tables.py docs/results/digits.json | docs/results/table_digits.json | ...

With --page=docs/results.md it writes each table into the page instead, between the lines
`<!-- docs/results/table_digits.json -->` and `<!-- end -->`. The word `accuracies` after the
file leaves out what a table of the same sets has shown: their geometry and what they cost;
`overview` after a pattern of files has a row for each recipe, size and student of them.
"""

import contextlib
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))
from ot_dd.stages.summary import (
    LABELS,
    METHOD,
    Difference,
    difference,
    group_runs,
    share_seeds,
    spread,
)
from ot_dd.stages.vocabulary import TITLES


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


def comparison(found: dict, accuracies: bool = False) -> None:
    """Prints accuracies of `benchmarks.table`, and the sets' geometry and cost."""
    columns = list(dict.fromkeys((r["protocol"], r["student"]) for r in found["table"]))
    for part in found["geometry"]:
        ipc = part["ipc"]
        cells: dict = {}
        for record in found["table"]:
            if record["ipc"] == ipc:
                column = (record["protocol"], record["student"])
                runs = cells.setdefault(record["set"], {}).setdefault(column, {})
                seeds = record["set_seed"], record["student_seed"]
                runs[seeds] = 100 * record["accuracy"]
        titles = [f"{protocol}, `{student}`" for protocol, student in columns]
        print(f"**{ipc} per class**\n\n| set | {' | '.join(titles)} |")
        print(f"|{'---|' * (1 + len(columns))}")
        away = {
            (name, column): gap(name, runs, cells[METHOD].get(column, {}))
            for name, row in cells.items()
            for column, runs in row.items()
            if METHOD in cells
        }
        stars = asterisks(away)
        for name in filter(cells.get, found["titles"]):
            row, scores = cells[name], []
            for column in columns:
                scores.append(str(spread(row[column])) if column in row else "")
                if away.get((name, column)):
                    points = away[name, column].mean
                    scores[-1] += f" ({points:+.1f}{stars[name, column]})"
            print(f"| {found['titles'][name]} | {' | '.join(scores)} |")
        names = list(part["sets"][0]["geometry"])
        kinds = dict.fromkeys(s["set"] for s in part["sets"])
        ranked = len(kinds) >= _FEWEST
        if ranked or not accuracies:
            first = "" if accuracies else "set "
            print(f"\n| {first}| {' | '.join(names)} |\n|{'---|' * (1 + len(names))}")
        for name in () if accuracies else kinds:
            own = [s["geometry"] for s in part["sets"] if s["set"] == name]
            values = [f"{np.mean([g[k] for g in own]):.2f}" for k in names]
            print(f"| {found['titles'][name]} | {' | '.join(values)} |")
        for protocol, student in columns if ranked else ():
            ranks = [part["correlations"][k][f"{protocol} {student}"] for k in names]
            print(
                f"| *rank correlation with {protocol}, `{student}`* | {signs(ranks)} |"
            )
        if not accuracies:
            by_class(found, part)
            costs(found, part)
        print("\n| student | GFLOP | seconds | MB of images | MB of soft labels |")
        print("|---|---|---|---|---|")
        for protocol, student in columns:
            own = [
                r for r in found["table"]
                if (r["protocol"], r["student"], r["ipc"]) == (protocol, student, ipc)
            ]  # fmt: skip
            # Several processes shared a GPU: its seconds say nothing.
            alone = [r["seconds"] for r in own if r.get("device", "cpu") == "cpu"]
            # The median: the first of several compiles, some had other work beside them.
            middle = np.median(alone) if alone else 0
            seconds = f"{middle:.{0 if middle >= 1 else 1}f}" if alone else "–"
            operations = f"{own[0]['flops'] / 1e9:,.0f}"
            sizes = [own[0][k] / 1e6 for k in ("image_bytes", "soft_label_bytes")]
            stored = " | ".join(f"{size:.2g}" if size else "" for size in sizes)
            print(f"| {protocol}, `{student}` | {operations} | {seconds} | {stored} |")
        print()
    if len(found["geometry"]) > 1:
        ranks_of = found["correlations_of_all"]
        print("**Rank correlation with accuracy, over the sets of every size**\n")
        print(f"| | {' | '.join(ranks_of)} |\n|{'---|' * (1 + len(ranks_of))}")
        for protocol, student in columns:
            ranks = [ranks_of[k][f"{protocol} {student}"] for k in ranks_of]
            print(f"| {protocol}, `{student}` | {signs(ranks)} |")


def costs(found: dict, part: dict) -> None:
    """Prints what making each set cost, networks apart."""
    print("\n| set | seconds | GFLOP |\n|---|---|---|")
    for name, cost in part["cost"].items():
        operations = f"{cost['flops'] / 1e9:,.0f}" if cost["flops"] else ""
        print(f"| {found['titles'][name]} | {cost['seconds']} | {operations} |")


# The sets of an overview, in its order, and what their columns are called.
_OVERVIEW = {
    METHOD: "ot-dd", "no_otg": "no guidance", "no_refine": "no refinement",
    "mean_matching": "means, not transport", "random": "random real",
    "herding": "herding", "kmeans_features": "k-means of features",
    "diffusion": "plain diffusion", "igd": "IGD",
}  # fmt: skip


def overview(tables: list[dict]) -> None:
    """Prints what the main sets reach under every recipe, size and student."""
    rows: dict = {}
    for found in tables:  # Of equal seeds the last table's counts.
        for record in found["table"]:
            key = record["ipc"], record["protocol"], record["student"]
            runs = rows.setdefault(key, {}).setdefault(record["set"], {})
            seeds = record["set_seed"], record["student_seed"]
            runs[seeds] = 100 * record["accuracy"]
    print(f"| images per class, recipe | student | {' | '.join(_OVERVIEW.values())} |")
    print(f"|{'---|' * (2 + len(_OVERVIEW))}")
    away = {
        (key, name): gap(name, sets[name], sets[METHOD])
        for key, sets in rows.items()
        for name in _OVERVIEW
        if name in sets
    }
    stars = asterisks(away)
    for key, sets in sorted(rows.items(), key=lambda row: row[0][:2]):
        ipc, protocol, student = key
        cells = []
        for name in _OVERVIEW:
            runs = list(sets.get(name, {}).values())
            alone = "°" if len(runs) == 1 else ""
            mean = f"{np.mean(runs):.1f}" if runs else ""
            cells.append(mean + alone + stars.get((key, name), ""))
        kind = student.split(":")[0]
        print(f"| {ipc}, `{protocol}` | `{kind}` | {' | '.join(cells)} |")


_FEWEST = 5  # Kinds of sets that a rank correlation says anything of.
# What the table of classes compares, and by which figures.
_CLASS_SETS = ("ot_dd", "diffusion", "random")
_CLASS_FIGURES = ("coverage", "recall", "diversity", "transport")


def by_class(found: dict, part: dict) -> None:
    """Prints the geometry of every class: the full method's, plain samples', real images'."""
    means: dict = {}
    for one in part["sets"]:
        means.setdefault(one["set"], []).append(one.get("by_class"))
    shown = [name for name in _CLASS_SETS if means.get(name, [None])[0]]
    if not shown:
        return
    titles = " / ".join(found["titles"][name] for name in shown)
    print(f"\n| {titles} | {' | '.join(_CLASS_FIGURES)} |")
    print(f"|{'---|' * (1 + len(_CLASS_FIGURES))}")
    for c, title in enumerate(found["classes"]):
        cells = [
            " / ".join(f"{np.mean([g[k][c] for g in means[n]]):.2f}" for n in shown)
            for k in _CLASS_FIGURES
        ]
        print(f"| {title} | {' | '.join(cells)} |")


def plans(found: dict) -> None:
    """Prints what `ot_dd.plan` found for each slice, and how they compare."""
    for plan in found.values():
        print(
            f"**{plan['topology']}**: {plan['chips']} chips, {plan['hosts']} hosts\n\n"
            "| program | chips | HBM a chip | TFLOP | GB | collectives | a run | runs "
            "| hours |\n|---|---|---|---|---|---|---|---|---|"
        )
        for row in plan["programs"]:
            name = f"| {row['stage']}: {row['name']} | {row['chips']} | "
            if not row["fits"]:
                print(f"{name}{row['used']} of {row['of']}: does not fit | | | | | | |")
                continue
            used = row["arguments_gb"] + row["temporaries_gb"]
            print(
                f"{name}{used:.1f} GB | {row['teraflops']:.3g} | {row['gigabytes']:.3g} "
                f"| {row['collectives']:,.0f} | {row['seconds']:.3g} s "
                f"| {row['runs']:,.0f} | {row['hours']:.2f} |"
            )
        print()
    sampling = {
        name: plan["chips"] * sum(
            row["hours"] for row in plan["programs"]
            if row["stage"] == "sample" and row["fits"]
        )
        for name, plan in found.items()
    }  # fmt: skip
    print("| slice | the set, h | the study, h | chip-hours | of sampling, per chip |")
    print("|---|---|---|---|---|")
    first = next(iter(sampling.values()))
    for name, plan in found.items():
        efficiency = f"{first / sampling[name]:.1%}" if sampling[name] else ""
        print(
            f"| {name} | {plan['product_hours']:.1f} | {plan['hours']:.1f} "
            f"| {plan['chip_hours']:,.0f} | {efficiency} |"
        )


def signs(ranks) -> str:
    """Returns correlations as the cells of a row; empty where there is none."""
    return " | ".join("" if rank is None else f"{rank:+.2f}" for rank in ranks)


def gap(name: str, runs: dict, full: dict) -> Difference | None:
    """Returns the difference from the full method, None for itself or without it."""
    if name == METHOD:
        return None
    return difference(runs, full, paired=share_seeds(name, METHOD))


def asterisks(differences: dict) -> dict[tuple, str]:
    """Returns the asterisks of a table's differences.

    One is for a 95 % interval that excludes zero, two for a difference that is found,
    too, among all of the table at a false discovery rate of 5 % (Benjamini and Hochberg).
    """
    stars = dict.fromkeys(differences, "")
    p_values = {k: d.p_value for k, d in differences.items() if d and d.low is not None}
    if p_values:
        adjusted = stats.false_discovery_control(list(p_values.values()))
        for (key, alone), among_all in zip(p_values.items(), adjusted):
            stars[key] = "*" * (int(alone < 0.05) + int(among_all < 0.05))
    return stars


def write_page(page: Path) -> None:
    """Writes every table that a page names into it."""

    def table(match):
        if not list(Path().glob(match[1])):
            return match[0]  # not made yet
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            main(Path(match[1]), *match[2].split())
        return f"<!-- {match[1]}{match[2]} -->\n{text.getvalue().strip()}\n<!-- end -->"

    pattern = r"<!-- (\S+\.json)( accuracies| overview|) -->\n.*?<!-- end -->"
    page.write_text(re.sub(pattern, table, page.read_text(), flags=re.DOTALL))


def main(path: Path, *words: str) -> None:
    """Prints the table that belongs to the file, or to all that the pattern finds."""
    if "overview" in words:
        files = sorted(Path().glob(str(path)))
        return overview([json.loads(file.read_text()) for file in files])
    found = json.loads(path.read_text())
    if "table" in found:
        return comparison(found, accuracies="accuracies" in words)
    if "cases" in found:
        return timings(found["cases"])
    if isinstance(found, dict) and ":" in next(iter(found)):  # slices: v5e:4x4
        return plans(found)
    if isinstance(found, list):
        kinds = [kind for kind in ("hard", "soft") if any(kind in row for row in found)]
        print(f"| trial | {' | '.join(kinds)} |\n|{'---|' * (1 + len(kinds))}")
        for row in found:
            trial = " ".join(f"`{word}`" for word in row["trial"].split())
            print(f"| {trial} | {' | '.join(trial_score(row, k) for k in kinds)} |")
        return
    results(found)


def results(found: dict) -> None:
    """Prints accuracies of a run's sets, and what the full method is ahead of each."""
    groups = group_runs(found["records"])
    for (student, ipc), reached in groups.items():
        if len(groups) > 1:
            print(f"\n**{student}, {ipc} per class**\n")
        one_group(found, reached)


def one_group(found: dict, reached: dict) -> None:
    """Prints what students of one kind and size reached."""
    titles = {
        (name, variant): TITLES.get(variant) or found["sets"][name]["title"]
        for name, variant in reached
    }
    print("| set | hard labels | soft labels | W |\n|---|---|---|---|")
    for key, cells in reached.items():
        scores = [str(spread(cells[kind])) if kind in cells else "" for kind in LABELS]
        distance = found["sets"][key[0]].get("transport")  # not of `ot_dd.evaluate`
        distance = f"{distance['mean']:.1f}" if distance else ""
        print(f"| {titles[key]} | {' | '.join(scores)} | {distance} |")
    full = reached.pop((METHOD, ""), None)
    if full is None:
        return
    print(
        "\n| the full method is ahead of | hard labels | soft labels |\n|---|---|---|"
    )
    for key, cells in reached.items():
        paired = share_seeds(METHOD, key[0])
        ahead = [
            str(difference(full[kind], cells[kind], paired=paired) or "")
            if kind in cells
            else ""
            for kind in LABELS
        ]
        print(f"| {titles[key]} | {' | '.join(ahead)} |")


if __name__ == "__main__":
    argument = sys.argv[1]
    if argument.startswith("--page="):
        write_page(Path(argument.removeprefix("--page=")))
    else:
        main(Path(argument), *sys.argv[2:])
