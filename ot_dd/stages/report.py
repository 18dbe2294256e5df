"""The report: one standalone HTML page and a table in the terminal.

The page opens with what can be concluded (see `summary.headline`), then the numbers,
the images, and how they came about. It needs no network and no JavaScript.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ot_dd.checkpoint import write_atomic
from ot_dd.stages import _figures as draw
from ot_dd.stages._figures import Figures
from ot_dd.stages._html import Html, join, page, tag
from ot_dd.stages.summary import (
    METHOD,
    Difference,
    Outcome,
    Row,
    compare,
    find_reference,
    headline,
    is_ablation,
    ordered,
    short_title,
    signed,
    summarise,
)
from ot_dd.stages.vocabulary import VARIANTS

MAX_CLASSES = 20  # of image rows and distance columns; the page says when it cuts


def write_report(workdir: Path, results: dict, figures: Figures) -> Path:
    """Writes `report.html` and returns its path.

    Args:
      workdir: the run's directory, created if needed.
      results: what `results.json` holds; anything missing or null is left out.
      figures: the arrays behind the pictures.
    """
    records, sets = results.get("records") or [], results.get("sets") or {}
    sets = {name: sets[name] or {} for name in ordered(sets)}
    rows = summarise(records, sets)
    body = tag(
        "main",
        _top(results, rows, figures),
        _accuracy(results, rows),
        _images(sets, figures),
        _table(records, rows, sets),
        _transport(sets, figures),
        _bound(sets, figures),
        _latents(sets, figures),
        _process(results, figures),
        _provenance(results),
    )
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "report.html"
    text = page(f"{results.get('name', 'ot-dd')}: report", body)
    write_atomic(path, lambda file: file.write(text.encode()))
    return path


def print_table(
    rows: Sequence[Row],
    console: Console | None = None,
    *,
    split: str = "test",
    against: str = "random",
) -> None:
    """Prints the results table to the terminal.

    Args:
      rows: of `summarise`.
      console: where to; the terminal by default, or 100 columns of a file.
      split: the images that accuracies are of.
      against: what differences are from.
    """
    shown = against if len(against) <= 10 else "ref."
    table = Table(title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    # Names wrap, numbers do not; together they mostly fit in 80 columns.
    table.add_column("set", overflow="fold", min_width=11)
    for name in ("hard", f"vs {shown}", "soft", f"vs {shown}", "W"):
        table.add_column(name, justify="right", no_wrap=True)
    groups = {(r.student, r.ipc) for r in rows}
    seen = None
    for row in rows:
        group = (row.student, row.ipc)
        if group != seen and len(groups) > 1:
            if seen:
                table.add_section()
            table.add_row(Text(f"{row.student}, {row.ipc} per class", style="bold"))
        seen = group
        cells = []
        for outcome in (row.hard, row.soft):
            if outcome is None:
                cells += [Text(""), Text("")]
                continue
            cells.append(Text(str(outcome.accuracy)))
            difference, text, style = outcome.difference, "", ""
            if difference:
                text = signed(difference.mean)
                styles = {"better": "green", "worse": "red"}
                style = styles.get(difference.verdict, "dim")
                if difference.low is not None:
                    text += f" ± {difference.high - difference.mean:.1f}"
            cells.append(Text(text, style=style))
        distance = "" if row.transport is None else f"{row.transport:.3g}"
        name = Text(row.title, style="bold" if _is_method(row) else "")
        table.add_row(name, *cells, Text(distance))
    # A column in which nothing stands is left out.
    names, *numbers = table.columns
    table.columns = [names, *(c for c in numbers if any(map(str, c.cells)))]
    heads = [column.header for column in table.columns]
    explained = [f"{split} accuracy, mean ± deviation of sets / of students of a set"]
    if f"vs {shown}" in heads:
        explained.append(f"differences from {against} ± half of their 95 % interval")
    if "W" in heads:
        explained.append("W: transport to unseen images, lower is closer")
    table.title = "; ".join(explained)
    for column in table.columns[1:]:
        column.min_width = max(
            len(str(cell)) for cell in (column.header, *column.cells)
        )
    console = console or Console(width=None if sys.stdout.isatty() else 100)
    endless = console.options.update(width=10**4)
    least = Measurement.get(console, endless, table).minimum
    console.width = max(console.width, least)  # Too wide rather than without names.
    console.print(table)


def _is_method(row: Row) -> bool:
    return row.set == METHOD and not row.variant


def _colors(sets: Mapping, figures: Figures) -> dict[str, int]:
    """The method and its ablations share the first colour, in whatever order."""
    names = dict.fromkeys([*sets, *figures.sets])
    own = {n for n in names if n == METHOD or is_ablation(n)}
    others = [n for n in names if n not in own]
    return dict.fromkeys(own, 0) | {n: i + 1 for i, n in enumerate(others)}


def _groups(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    groups: dict = {}
    for row in rows:
        groups.setdefault((row.student, row.ipc), []).append(row)
    return groups


def _ordered(names, sets) -> list[str]:
    names = list(names)
    return [n for n in sets if n in names] + [n for n in names if n not in sets]


def _top(results: dict, rows: Sequence[Row], figures: Figures) -> Html:
    """Verdict, four facts, and one distilled image of each class."""
    sets = results.get("sets") or {}
    found = headline(results.get("records") or [], sets)
    against = short_title(find_reference(row.set for row in rows) or "random", sets)
    chips = {
        "better": f"better than {against}",
        "worse": f"worse than {against}",
        "no clear difference": f"no clear difference from {against}",
    }
    look = found.verdict.split()[0]
    verdict = tag(
        "section",
        tag(
            "div",
            tag("span", chips.get(found.verdict, found.verdict), class_=f"chip {look}"),
            tag("p", _unbroken(found.text), class_="headline"),
            *[tag("p", _unbroken(detail)) for detail in found.details],
        ),
        _sample(figures.sets.get(METHOD)),
        class_=f"card verdict {look}",
    )
    title = f"{results.get('name', 'ot-dd')}: dataset distillation report"
    tiles = tag("section", *_tiles(results, rows), class_="tiles")
    return join(tag("header", tag("h1", title)), verdict, tiles)


def _sample(images) -> Html | None:
    """One image of up to ten classes, five in a row."""
    if images is None or not len(images):
        return None
    few = images[:: max(1, len(images) // 10), 0][:10]
    rows = [
        draw.strip(few[i : i + 5], alt="distilled images, one of a class", columns=5)
        for i in range(0, len(few), 5)
    ]
    label = "each class" if len(few) == len(images) else f"{len(few)} classes"
    caption = tag("p", f"one distilled image of {label}")
    return tag("div", *rows, caption, class_="sample")


def _unbroken(text: str) -> str:
    """Keeps `94.5 ± 0.7` and `95 %` on one line."""
    return text.replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%")


def _tiles(results: dict, rows: Sequence[Row]) -> list[Html]:
    tiles = []

    def tile(value, text):
        tiles.append(tag("div", tag("b", value), tag("span", text), class_="card tile"))

    method = next((r for r in rows if _is_method(r)), None)
    full = (results.get("full_data") or {}).get("accuracy")
    outcome = method and (method.hard or method.soft)
    if full is not None:
        text = f"accuracy of {results['full_data'].get('student', 'a student')} "
        text += "on all training images"
        if results["full_data"].get("steps"):
            text += f", after {results['full_data']['steps']:,} steps"
        if outcome:
            text += f"; on the distilled ones {outcome.accuracy.mean:.1f}%"
        tile(f"{100 * full:.1f}%", text)
    if results.get("label_robust_score") is not None:
        tile(
            f"{results['label_robust_score']:.1f}",
            "DD-Ranking's label-robust score; 26.9: nothing lost with hard labels, nor "
            "gained over random images with soft ones",
        )
    if method and method.image_bytes is None:
        tile(f"{method.ipc}", "distilled images per class")
    elif method:
        text = f"of distilled images, {method.ipc} per class"
        if method.soft_label_bytes:
            text += f", and {_bytes(method.soft_label_bytes)} of soft labels"
        tile(_bytes(method.image_bytes), text)
    if data := results.get("data"):
        height, width, _ = data["image"]
        tile(
            f"{data['train']:,}",
            f"training images of {data['classes']:,} classes, {height} x {width} pixels; "
            f"accuracies are of {data['test']:,} test images",
        )
    seconds = [s for s in (results.get("seconds") or {}).values() if s is not None]
    if seconds:
        longest = max(results["seconds"], key=lambda k: results["seconds"][k] or 0)
        tile(_duration(sum(seconds)), f"of work, most of it on {_words(longest)}")
    return tiles


def _accuracy(results: dict, rows: Sequence[Row]) -> Html | None:
    if not rows:
        return None
    colors = _colors(results.get("sets") or {}, Figures())
    full = results.get("full_data") or {}
    blocks = []
    for (student, ipc), group in _groups(rows).items():
        both = any(r.hard for r in group) and any(r.soft for r in group)
        dots = []
        for row in group:
            series = [
                draw.Series(
                    name, o.runs, o.accuracy.mean, o.accuracy.std, str(o.accuracy)
                )
                for name, o in (("hard labels", row.hard), ("soft labels", row.soft))
                if o is not None
            ]
            # a row of soft labels alone must not look like hard ones
            soft_only = both and row.hard is None
            dots.append(
                draw.DotRow(
                    row.title,
                    series,
                    colors.get(row.set, 9),
                    _is_method(row),
                    hollow=soft_only,
                )
            )
        lines = []
        if full.get("accuracy") is not None and full.get("student") in (None, student):
            lines.append(100 * full["accuracy"])
        ink = "var(--muted)"
        entries = [(f"dot:{ink}", "mean, hard labels"), (f"ring:{ink}", "soft labels")]
        if not both:
            entries = [(f"dot:{ink}", "mean")]
        entries += [(f"bar:{ink}", "± one standard deviation"), (f"run:{ink}", "a run")]
        if lines:
            entries.append((f"dash:{ink}", f"all training images, {lines[0]:.1f}"))
        chart = draw.dot_plot(dots, label="test accuracy, %", lines=lines)
        caption = f"{student}, {ipc} images per class, at the end of training."
        blocks.append(
            draw.figure("Test accuracy", caption, draw.legend(entries), chart)
        )
    return tag("section", tag("h2", "How well students learn from each set"), *blocks)


def _images(sets: Mapping, figures: Figures) -> Html | None:
    """Real images beside the chosen set's, class by class; radio buttons choose."""
    names = _ordered(figures.sets, sets)
    names.sort(key=lambda n: n != METHOD)
    if not names or figures.real is None:
        return None
    shown = min(len(figures.class_names), MAX_CLASSES)
    style, tabs, labels = [], [], []
    for i, name in enumerate(names):
        tabs.append(
            tag(
                "input",
                type="radio",
                name="set",
                id=f"set-{i}",
                class_="tabs",
                checked="" if i == 0 else None,
            )
        )
        labels.append(tag("label", short_title(name, sets), for_=f"set-{i}"))
        style.append(
            f"#set-{i}:checked ~ .gallery .set-{i} {{ display: block; }}\n"
            f"#set-{i}:checked ~ .tab-labels label[for=set-{i}] "
            "{ background: var(--c0); border-color: var(--c0); color: var(--card); }\n"
            f"#set-{i}:focus-visible ~ .tab-labels label[for=set-{i}] "
            "{ outline: 2px solid var(--ink); outline-offset: 2px; }\n"
        )
    cells = [
        tag("div", "class", class_="head"),
        tag("div", "real images", class_="head"),
        tag("div", "chosen set", class_="head"),
    ]
    for c in range(shown):
        label = figures.class_names[c]
        cells.append(tag("div", label, class_="class"))
        cells.append(draw.strip(figures.real[c], alt=f"real images of {label}"))
        cells.append(
            tag(
                "div",
                *[
                    tag(
                        "div",
                        draw.strip(figures.sets[n][c], alt=f"{n} images of {label}"),
                        class_=f"synthetic set-{i}",
                    )
                    for i, n in enumerate(names)
                ],
            )
        )
    note = f"Up to {draw.MAX_STRIP} images of each class"
    if shown < len(figures.class_names):
        note += f", {shown} of {len(figures.class_names)} classes"
    return tag(
        "section",
        tag("h2", "Real images beside each set"),
        tag(
            "p",
            f"{note}. Choose a set to compare.",
            tag("span", " Upper row real, lower row the set.", class_="narrow"),
            class_="note",
        ),
        tag("style", Html("".join(style))),
        tag(
            "div",
            *tabs,
            tag("div", *labels, class_="tab-labels"),
            tag("div", *cells, class_="gallery"),
            class_="card",
        ),
    )


def _table(records, rows: Sequence[Row], sets: Mapping) -> Html | None:
    if not rows:
        return None
    reference = find_reference(r.set for r in rows)
    base = short_title(reference, sets) if reference else "random real"
    heads = [
        "Set",
        "Hard labels",
        f"vs {base}",
        "Soft labels",
        f"vs {base}",
        "Distance W",
        "Bytes",
    ]
    blocks = []
    for (student, ipc), group in _groups(rows).items():
        lines = []
        for row in group:
            first = [tag("td", row.title)]
            own = (row.set, row.variant) == (reference, "")
            for kind, outcome in (("hard", row.hard), ("soft", row.soft)):
                first += _outcome(outcome, kind, base, own)
            distance = (
                ""
                if row.transport is None
                else draw.number(float(f"{row.transport:.3g}"))
            )
            first.append(_cell("distance W", distance))
            size = "" if row.image_bytes is None else _bytes(row.image_bytes)
            labels = row.soft_label_bytes
            labels = tag("small", f"+ {_bytes(labels)} labels") if labels else None
            first.append(_cell("bytes", size, labels))
            part = row.variant or is_ablation(row.set)
            look = "main" if _is_method(row) else "variant" if part else None
            lines.append(tag("tr", *first, class_=look))
        head = tag("thead", tag("tr", *[tag("th", h, scope="col") for h in heads]))
        table = tag("table", head, tag("tbody", *lines), class_="results")
        blocks.append(
            tag(
                "div",
                tag("h3", f"{student}, {ipc} images per class"),
                tag("div", table, class_="scroll"),
                class_="card",
            )
        )
    note = (
        "Accuracies in percent: mean ± deviation of sets / of students of one set, over all "
        "runs (count). Differences in points, of the method and its ablations seed by seed, "
        "with the 95 % interval below, in which sets and students count; "
        "green or red only where it excludes zero. Best is the best of the evaluations "
        "along the training, on the test set, so it flatters. W is the exact OT cost to "
        "held-out real latents, lower is closer."
    )
    return tag(
        "section",
        tag("h2", "All numbers"),
        tag("p", note, class_="note"),
        *blocks,
        _ablation(records, rows),
    )


def _cell(label: str, *content) -> Html:
    content = [c for c in content if c]
    look = None if content else "empty"
    inner = tag("span", *content) if content else None
    return tag("td", inner, data_label=label, class_=look)


def _outcome(outcome: Outcome | None, kind: str, base: str, own: bool) -> list[Html]:
    if outcome is None:
        return [_cell(kind), _cell(base)]
    difference = _difference(outcome.difference)
    if own:
        difference = [tag("span", "reference", class_="quiet")]
    reached = outcome.accuracy
    best = tag("small", f"best {outcome.best}") if outcome.best else None
    return [
        _cell(f"{kind} labels", f"{reached} ({reached.count})", best),
        _cell(f"{kind}, vs {base}", *difference),
    ]


def _difference(difference: Difference | None) -> list[Html]:
    if difference is None:
        return []
    look = difference.verdict if difference.verdict in ("better", "worse") else None
    return [tag("span", signed(difference.mean), class_=look), _interval(difference)]


def _interval(difference: Difference) -> Html:
    if difference.low is None:
        return tag("small", "no interval")
    return tag("small", f"{signed(difference.low)} to {signed(difference.high)}")


def _ablation(records, rows: Sequence[Row]) -> Html | None:
    """What each part of the method is worth: the method without it minus the whole."""
    lines, several = [], len(_groups(rows)) > 1
    whole = (METHOD, "")
    for key in dict.fromkeys((r.set, r.variant) for r in rows):
        name, variant = key
        if key == whole or not (name == METHOD or is_ablation(name)):
            continue
        title = next(r.title for r in rows if (r.set, r.variant) == key)
        if variant:
            title = VARIANTS.get(variant, _words(variant))
        for student, ipc, labels, difference in compare(records, key, whole):
            where = f"{labels} labels"
            if several:
                where += f", {student}, {ipc} per class"
            lines.append(
                tag(
                    "tr",
                    tag("td", title, tag("small", where)),
                    tag("td", *_difference(difference)),
                    tag("td", difference.verdict),
                )
            )
    if not lines:
        return None
    heads = [tag("th", h) for h in ("Variant", "minus full method, points", "Reading")]
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *lines))
    return tag(
        "div",
        tag("h3", "Against the full method, part by part"),
        table,
        class_="card ablation",
        style="margin-top:16px",
    )


def _transport(sets: Mapping, figures: Figures) -> Html | None:
    found = {
        name: about["transport"]
        for name, about in sets.items()
        if about and (about.get("transport") or {}).get("mean") is not None
    }
    if not found:
        return None
    colors, rows = _colors(sets, figures), []
    decimals = _decimals(max(t["mean"] for t in found.values()))
    for name, transport in found.items():
        runs = transport.get("per_seed") or []
        std = float(np.std(runs, ddof=1)) if len(runs) > 1 else None
        text = f"{transport['mean']:.{decimals}f}"
        text += "" if std is None else f" ± {std:.{decimals}f}"
        series = draw.Series("W", runs, transport["mean"], std, text)
        title = short_title(name, sets)
        rows.append(draw.DotRow(title, [series], colors[name], name == METHOD))
    chart = draw.dot_plot(
        rows, label="OT cost to held-out real latents", decimals=decimals
    )
    overall = draw.figure(
        "Over all classes", "Large: mean, small: each set seed, bar: ± one std.", chart
    )
    note = (
        "Exact optimal transport between each set's latents and real latents that no "
        "stage has seen, class by class. Lower is closer."
    )
    return tag(
        "section",
        tag("h2", "Distance to unseen real images"),
        tag("p", note, class_="note"),
        overall,
        _per_class(found, sets, figures),
    )


_BOUND = {
    "labels": "Relabelling: labels to those of unseen images",
    "logits": "Logit matching: students' logits to their labels",
}


def _bound(sets: Mapping, figures: Figures) -> Html | None:
    """What the later stages lower, of every set; the first distance has its section."""
    colors, blocks = _colors(sets, figures), []
    for term, what in _BOUND.items():
        values = {n: (about.get("bound") or {}).get(term) for n, about in sets.items()}
        values = {name: value for name, value in values.items() if value is not None}
        rows = []
        decimals = _decimals(max(values.values(), default=0))
        for name, value in values.items():
            series = draw.Series("distance", (), value, None, f"{value:.{decimals}f}")
            title = short_title(name, sets)
            rows.append(draw.DotRow(title, [series], colors[name], name == METHOD))
        if rows:
            chart = draw.dot_plot(rows, label="transport distance", decimals=decimals)
            blocks.append(draw.figure(what, "", chart))
    if not blocks:
        return None
    note = (
        "The paper bounds the distance between real data and a student by three transport "
        "distances, each lowered by a stage of the method: that of the images, above, and "
        "these two. They are estimates without the bound's constants and in units of their "
        "own: total variation of labels, and the cost of the student's loss."
    )
    return tag(
        "section",
        tag("h2", "The other two distances of the bound"),
        tag("p", note, class_="note"),
        tag("div", blocks[0]),
        *[tag("div", block, style="margin-top:16px") for block in blocks[1:]],
    )


def _per_class(found: Mapping, sets: Mapping, figures: Figures) -> Html | None:
    rows = {n: t["per_class"] for n, t in found.items() if t.get("per_class")}
    if not rows:
        return None
    count = max(map(len, rows.values()))
    shown = range(min(count, MAX_CLASSES))
    names = [*figures.class_names, *map(str, range(len(figures.class_names), count))]
    values = [v for row in rows.values() for v in row[: len(shown)] if v is not None]
    low, high = min(values), max(values)
    decimals = _decimals(high)
    body = []
    for c in shown:
        cells = [tag("th", names[c], scope="row")]
        for row in rows.values():
            value = row[c] if c < len(row) else None
            if value is None:
                cells.append(tag("td"))
                continue
            share = 6 + 54 * (value - low) / ((high - low) or 1)
            ink = f"color-mix(in srgb, var(--c1) {share:.0f}%, transparent)"
            cells.append(
                tag(
                    "td",
                    f"{value:.{decimals}f}",
                    class_="cell",
                    style=f"background:{ink}",
                )
            )
        body.append(tag("tr", *cells))
    heads = [tag("th", "Class")] + [tag("th", short_title(n, sets)) for n in rows]
    table = tag(
        "table",
        tag("thead", tag("tr", *heads)),
        tag("tbody", *body),
        class_="heat",
        style=f"min-width:{84 * (len(rows) + 1)}px",
    )
    caption = "The stronger the colour, the farther from unseen real images."
    if len(shown) < count:
        caption += f" The first {len(shown)} of {count} classes."
    inner = draw.figure("By class", caption, tag("div", table, class_="scroll"))
    return tag("div", inner, style="margin-top:16px")


def _latents(sets: Mapping, figures: Figures) -> Html | None:
    real = figures.latents_real
    if real is None or not len(real) or not figures.latents_synthetic:
        return None
    names = _ordered(figures.latents_synthetic, sets)
    names.sort(key=lambda n: n != METHOD)
    panels_at = draw.LatentMap(
        real, figures.latents_real_labels, list(figures.latents_synthetic.values())
    )
    panels = []
    for name in names:
        labels = figures.latents_synthetic_labels
        labels = labels[name] if isinstance(labels, Mapping) else labels
        plan = figures.transport_lines if name == names[0] else None

        panel = panels_at.panel(
            name, figures.latents_synthetic[name], labels, figures.class_names, plan
        )
        panels.append(draw.figure(short_title(name, sets), "", panel))
    entries = [
        (f"dot:{draw.color(i)}", name)
        for i, name in enumerate(figures.class_names[: draw.PALETTE])
    ]
    note = (
        "A 2-D projection of the latent space. Faint points are real images, outlined "
        "points are the set's; colours are classes."
    )
    if figures.transport_lines is not None:
        note += " Lines in the first panel: the transport plan of one class."
    if len(figures.class_names) > draw.PALETTE:
        note += f" Colours repeat every {draw.PALETTE} classes."
        entries = []
    return tag(
        "section",
        tag("h2", "Where the images lie"),
        tag("p", note, class_="note"),
        draw.legend(entries) if entries else None,
        tag("div", *panels, class_="trio"),
    )


def _process(results: dict, figures: Figures) -> Html | None:
    """How the set came about: guidance, training curves, teachers, time."""
    blocks, trace = [], figures.guidance_trace
    if trace is not None and len(trace.get("step", ())):
        steps = trace["step"]
        lines = [
            (name, steps, trace[key], draw.color(i))
            for i, (key, name) in enumerate(
                (("with", "with OT guidance"), ("without", "without"))
            )
            if key in trace
        ]
        chart = draw.line_chart(
            lines,
            x_label="sampling step",
            y_label="OT distance",
            reverse=steps[0] > steps[-1],
        )
        blocks.append(
            draw.figure(
                "Guidance while sampling",
                "OT distance to the real latents, noise at the left."
                + _left_out(results.get("sets") or {}),
                chart,
            )
        )
    for name, curve in (results.get("curves") or {}).items():
        blocks += _curve(name, curve)
    if results.get("teachers"):
        blocks.append(_teachers(results["teachers"], results.get("label_teachers")))
    if results.get("autoencoder"):
        rows = [
            (_words(k), _percents(v) if "accuracy" in k else _value(v))
            for k, v in results["autoencoder"].items()
        ]
        blocks.append(draw.figure("Autoencoder", "", _pairs(rows)))
    seconds = {k: v for k, v in (results.get("seconds") or {}).items() if v is not None}
    if seconds:
        total = sum(seconds.values()) or 1.0
        rows = [
            (_words(k), tag("span", _duration(v), tag("small", f" {v / total:.0%}")))
            for k, v in seconds.items()
        ]
        caption = f"{_duration(total)} of work; jobs that ran side by side overlap."
        blocks.append(draw.figure("Time", caption, _pairs(rows)))
    if results.get("flops"):
        rows = [(_words(k), f"{v:.3g}") for k, v in results["flops"].items()]
        caption = (
            "Floating-point operations of all that this run made or read, counted in the "
            "programs; evaluations are not in it."
        )
        blocks.append(draw.figure("Arithmetic", caption, _pairs(rows)))
    if results.get("bytes"):
        rows = [(_words(k), _bytes(v)) for k, v in results["bytes"].items()]
        caption = (
            "Files as they lie on disk; elsewhere an image is a byte for each value."
        )
        blocks.append(draw.figure("Storage", caption, _pairs(rows)))
    if not blocks:
        return None
    return tag(
        "section", tag("h2", "How it came about"), tag("div", *blocks, class_="pair")
    )


def _left_out(sets: Mapping) -> str:
    """Says which sets had gradients of guidance that were not finite, if any."""
    counts = {n: (about or {}).get("gradients_left_out") for n, about in sets.items()}
    counts = [f"{short_title(n, sets)} {count}" for n, count in counts.items() if count]
    if not counts:
        return ""
    return f" Gradients left out because they were not finite: {', '.join(counts)}."


def _curve(name: str, curve: Mapping) -> list[Html]:
    """One chart of the losses, and one of each other quantity recorded with them."""
    charts = []
    for i, (key, values) in enumerate((k, v) for k, v in curve.items() if k != "step"):
        steps = curve.get("step") or range(len(values))
        line = (_words(key), steps, values, draw.color(i))
        chart = draw.line_chart([line], x_label="step", y_label=_words(key))
        charts.append(draw.figure(f"{_words(name).capitalize()} training", "", chart))
    return charts


def _teachers(teachers: Sequence[Mapping], labelling: int | None) -> Html:
    def percent(value):
        return "" if value is None else f"{100 * value:.1f}"

    body = [
        tag(
            "tr",
            tag("td", t.get("name", "")),
            tag("td", percent(t.get("validation_accuracy"))),
            tag("td", percent(t.get("test_accuracy"))),
        )
        for t in teachers
    ]
    heads = [tag("th", h) for h in ("Teacher", "Validation, %", "Test, %")]
    table = tag(
        "table", tag("thead", tag("tr", *heads)), tag("tbody", *body), class_="plain"
    )
    caption = ""
    if labelling and labelling < len(teachers):
        caption = (
            f"The first {'one writes' if labelling == 1 else f'{labelling} write'} "
        )
        caption += "the method's labels."
    return draw.figure("Teachers of the soft labels", caption, table)


def _provenance(results: dict) -> Html:
    blocks = []
    if results.get("command"):
        blocks.append(tag("pre", results["command"], class_="card"))
    for title, key in (("Configuration", "config"), ("Versions", "versions")):
        flat = list(_flatten(results.get(key) or {}))
        if flat:
            rows = [(tag("code", k), tag("code", v)) for k, v in flat]
            blocks.append(
                tag("details", tag("summary", title), _pairs(rows), class_="card")
            )
    if not blocks:
        return Html("")
    return tag("section", tag("h2", "To run it again"), *blocks)


def _pairs(rows) -> Html:
    lines = [tag("tr", tag("td", key), tag("td", value)) for key, value in rows]
    return tag("table", tag("tbody", *lines), class_="plain")


def _flatten(tree: Mapping, prefix: str = ""):
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _words(name) -> str:
    return str(name).replace("_", " ")


def _percents(shares: Mapping) -> str:
    return ", ".join(f"{_words(k)} {100 * v:.1f} %" for k, v in shares.items())


def _value(value) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(k)} {_value(v)}" for k, v in value.items())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _decimals(largest: float) -> int:
    """Decimals that give a column's largest value three digits."""
    if not largest > 0:
        return 1
    return max(0, 2 - math.floor(math.log10(largest)))


def _bytes(count: float) -> str:
    if not isinstance(count, int | float):
        return str(count)
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
