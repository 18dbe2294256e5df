"""From one record per trained student to means, spreads and differences.

A set differs from another by its own seed (which images, which sampling noise) and each
student by its initialisation. Two students trained on one set are not two independent
observations of the method, nor are two sets from which equally initialised students
learn: intervals count the spread of both, see `difference`.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from ot_dd.stages.vocabulary import CHANGES, VARIANTS

METHOD = "ot_dd"
LABELS = ("hard", "soft")


class Statistic(NamedTuple):
    """Mean and sample deviation (n - 1; None for one run), accuracies in percent.

    `between` is the deviation of the means of sets, `within` that of students of one
    set (pooled); None where there are not two of them.
    """

    mean: float
    std: float | None
    count: int
    between: float | None = None
    within: float | None = None

    def __str__(self):
        """Returns "94.1 ± 0.9 / 0.6", sets and students apart, or what there is of it."""
        if self.std is None:
            return f"{self.mean:.1f}"
        if self.between is None and self.within is None:
            return f"{self.mean:.1f} ± {self.std:.1f}"
        apart = ("–" if v is None else f"{v:.1f}" for v in (self.between, self.within))
        return f"{self.mean:.1f} ± {' / '.join(apart)}"


class Difference(NamedTuple):
    """A difference of accuracies in percentage points, see `difference`.

    `low` and `high` bound its 95 % interval; like `standard_error` they are None when a
    side is a single run, or nothing deviates. `unit` says what the interval generalises
    over. `bootstrap` is the 95 % percentile interval over resampled sets and students,
    which is too narrow for a handful of them (it leaves the tails out), and so decides
    nothing. `p_value` is of no difference, two-sided, by the same error and its t
    distribution; below 0.05 where the interval excludes zero.
    """

    mean: float
    standard_error: float | None
    low: float | None
    high: float | None
    paired: bool
    unit: str
    bootstrap: tuple[float, float] | None = None
    p_value: float | None = None

    @property
    def verdict(self) -> str:
        """Better or worse only where the 95 % interval excludes zero."""
        if self.low is not None and self.low > 0:
            return "better"
        if self.high is not None and self.high < 0:
            return "worse"
        return "no clear difference"

    def __str__(self):
        """Returns "+6.5 (+1.7 to +11.4)": points, and their 95 % interval."""
        if self.low is None:
            return signed(self.mean)
        return f"{signed(self.mean)} ({signed(self.low)} to {signed(self.high)})"


class Outcome(NamedTuple):
    """What the students of one set reached with one kind of labels."""

    accuracy: Statistic
    best: Statistic | None
    runs: tuple[float, ...]
    difference: Difference | None  # from the reference set, None for itself


class Row(NamedTuple):
    """One line of the results table."""

    set: str
    variant: str
    title: str
    student: str
    ipc: int
    hard: Outcome | None
    soft: Outcome | None
    transport: float | None
    image_bytes: int | None
    soft_label_bytes: int | None


class Headline(NamedTuple):
    """The outcome in one sentence, what supports it, and the verdict in two words."""

    text: str
    details: tuple[str, ...]
    verdict: str


def is_ablation(name: str) -> bool:
    """Tells sets of the method less one part from baselines."""
    return name in CHANGES


def ordered(names: Iterable[str]) -> list[str]:
    """Returns sets in their order, but the method's ablations right after it."""
    names = list(names)
    if METHOD not in names:
        return names
    own = [n for n in names if is_ablation(n)]
    others = [n for n in names if n not in own]
    after = others.index(METHOD) + 1
    return others[:after] + own + others[after:]


def signed(points: float) -> str:
    """Formats a difference in points with a typographic sign."""
    text = f"{points:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def statistic(values: Iterable[float]) -> Statistic | None:
    """Summarises finite values; None when there are none."""
    values = [float(v) for v in values if v is not None and math.isfinite(v)]
    if not values:
        return None
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Statistic(float(np.mean(values)), std, len(values))


def spread(runs: Mapping[tuple, float]) -> Statistic | None:
    """Summarises runs by (set seed, student seed), sets and students kept apart."""
    whole = statistic(runs.values())
    if whole is None:
        return None
    by_set: dict[int, list[float]] = {}
    for (set_seed, _), value in runs.items():
        by_set.setdefault(set_seed, []).append(value)
    means = [np.mean(v) for v in by_set.values()]
    freedom = len(runs) - len(by_set)
    residual = sum(float(np.sum((v - np.mean(v)) ** 2)) for v in by_set.values())
    return whole._replace(
        between=float(np.std(means, ddof=1)) if len(means) > 1 else None,
        within=math.sqrt(residual / freedom) if freedom else None,
    )


def label_robust_score(
    *, full_hard: float, hard: float, random: float, soft: float, weight: float = 0.5
) -> float:
    """Returns DD-Ranking's label-robust score, in percent (Li et al., 2024).

    `(e^s - e^-1) / (e - e^-1)` with `s = w (soft - random) - (1 - w) (full_hard -
    hard)`: the improvement over random images of the same protocol, less what hard
    labels fail to recover.

    Args:
      full_hard: accuracy of training on all the data, in 0..1, as all that follow.
      hard: of the set with hard labels.
      random: of random real images under the soft-label protocol.
      soft: of the set under the same protocol.
      weight: of the improvement.
    """
    score = weight * (soft - random) - (1 - weight) * (full_hard - hard)
    return 100 * (math.exp(score) - math.exp(-1)) / (math.e - math.exp(-1))


def robustness(rows: Iterable["Row"], full_hard: float | None) -> float | None:
    """Returns the method's label-robust score, None where a number for it is missing.

    Args:
      rows: of `summarise`; those of the first student count.
      full_hard: what its network reaches on all the data, in 0..1.
    """
    found = {(row.set, row.variant): row for row in reversed(list(rows))}
    method, random = found.get((METHOD, "")), found.get(("random", ""))
    if not (full_hard and method and random and method.hard and method.soft):
        return None
    if not random.soft or (method.student, method.ipc) != (random.student, random.ipc):
        return None
    hard, soft, random_soft = (
        outcome.accuracy.mean / 100
        for outcome in (method.hard, method.soft, random.soft)
    )
    if hard > full_hard:  # Trained too briefly on all the data to be its bound.
        return None
    return label_robust_score(
        full_hard=full_hard, hard=hard, random=random_soft, soft=soft
    )


def find_reference(names: Iterable[str]) -> str | None:
    """Returns the set of random real images: `random`, else `random_decoded`, if any."""
    names = set(names)
    return next((n for n in ("random", "random_decoded") if n in names), None)


def short_title(name: str, sets: Mapping | None = None) -> str:
    """Returns a set's title up to its parenthesis or colon, or its name in words."""
    title = str((sets or {}).get(name, {}).get("title") or "")
    fallback = "ot-dd" if name == METHOD else name.replace("_", " ")
    return re.split(r" \(|: ", title)[0] or fallback


def share_seeds(first: str, second: str) -> bool:
    """Tells whether sets of two names are alike but for what their names say.

    The method and its ablations draw the same noise and the same real images for one set
    seed, so they are compared pair by pair. A baseline is not: those that are sampled
    begin from the same noise, but end elsewhere, and the others share nothing. Intervals
    that leave out what two sets share are too wide, if anything.
    """
    own = (METHOD, *CHANGES, *VARIANTS)
    return first == second or (first in own and second in own)


def difference(
    first: Mapping[tuple, float], second: Mapping[tuple, float], *, paired: bool
) -> Difference | None:
    """Compares the runs of two sets, `first - second`.

    Students of one seed start alike in every set, so that sets and students are crossed,
    and the error of the mean is that of both (two-way clustering: Cameron, Gelbach and
    Miller, 2011): the spread of sets, each its students averaged, and the spread of
    students, each its sets averaged, less what is left in both, and no less than either
    by itself. The degrees of freedom are Satterthwaite's. What comes once (a folder, a
    selection without chance) has no spread of sets; with one student each, or others on
    either side, sets count alone, or the students of a lone set. There is no interval
    where a side is a single run or nothing deviates. The mean is that of all runs.

    Args:
      first: accuracy in percent by (set seed, student seed).
      second: the same for what it is compared with.
      paired: whether sets of equal seeds belong together, see `share_seeds`.

    Returns:
      The difference, or None when a side is empty or pairs share no seeds.
    """
    if paired:
        shared = first.keys() & second.keys()
        sides: list = [{k: first[k] - second[k] for k in shared}]
    else:
        sides = [first, {k: -v for k, v in second.items()}]
    if not all(sides):
        return None
    grids, crossed = _grids(sides)
    mean = float(sum(np.mean(list(side.values())) for side in sides))
    several = "sets and students" if crossed else "sets"
    units = [several if len(grid) > 1 else "students of one set" for grid in grids]
    unit = " against ".join(dict.fromkeys(units))
    variance, freedom = _variance(grids, crossed)
    if not variance:
        return Difference(mean, None, None, None, paired, unit)
    error = math.sqrt(variance)
    half = error * float(special.stdtrit(freedom, 0.975))
    drawn = _resampled(grids, crossed) + mean
    low, high = (float(v) for v in np.quantile(drawn, (0.025, 0.975)))
    p_value = 2 * float(special.stdtr(freedom, -abs(mean) / error))
    interval = mean - half, mean + half
    return Difference(mean, error, *interval, paired, unit, (low, high), p_value)


def _grids(sides: Sequence[Mapping[tuple, float]]) -> tuple[list[np.ndarray], bool]:
    """Returns the runs of each side as `[sets, students]`, and whether they are crossed.

    They are where two students or more are in every set of every side: those are the
    columns. Where they are not, several sets are the means of their students,
    `[sets, 1]`, and a lone set is its own students, `[1, students]`.
    """
    by_set: list[dict] = []
    for side in sides:
        by_set.append({})
        for (seed, student), value in sorted(side.items()):
            by_set[-1].setdefault(seed, {})[student] = value
    shared = set.intersection(*(set(runs) for own in by_set for runs in own.values()))
    if len(shared) > 1:
        rows = [
            [[runs[student] for student in sorted(shared)] for runs in own.values()]
            for own in by_set
        ]
    else:
        rows = [
            [[np.mean(list(runs.values()))] for runs in own.values()]
            if len(own) > 1
            else [list(runs.values()) for runs in own.values()]
            for own in by_set
        ]
    return [np.array(grid, np.float64) for grid in rows], len(shared) > 1


def _variance(grids: Sequence[np.ndarray], crossed: bool) -> tuple[float, float]:
    """Returns the variance of the summed means and its degrees of freedom, or zeros."""
    if any(grid.size == 1 for grid in grids):
        return 0.0, 0.0
    of_sets, of_students, left = [], [], []
    for grid in grids:
        count, students = grid.shape
        if not crossed:
            of_sets.append((grid.var(ddof=1) / grid.size, grid.size - 1))
        elif count > 1:
            of_sets.append((grid.mean(1).var(ddof=1) / count, count - 1))
            freedom = (count - 1) * (students - 1)
            rest = grid - grid.mean(0) - grid.mean(1, keepdims=True) + grid.mean()
            left.append((-np.sum(rest**2) / freedom / grid.size, freedom))
    if crossed:
        column = sum(grid.mean(0) for grid in grids)
        of_students.append((column.var(ddof=1) / len(column), len(column) - 1))
    several = (of_sets, of_students, [*of_sets, *of_students, *left])
    terms = max(several, key=lambda terms: sum(v for v, _ in terms))
    variance = float(sum(v for v, _ in terms))
    return variance, variance**2 / sum(v**2 / f for v, f in terms) if variance else 0.0


def _resampled(grids, crossed: bool, draws: int = 10_000) -> np.ndarray:
    """Returns how far means of drawn sets and students (Owen, 2007) are off, `[draws]`."""
    rng = np.random.default_rng(0)

    def weights(count):
        return rng.multinomial(count, np.full(count, 1 / count), draws) / count

    total, students = np.zeros(draws), weights(grids[0].shape[1])
    for grid in grids:
        columns = students if crossed else weights(grid.shape[1])
        total += np.einsum(
            "ns,sk,nk->n", weights(len(grid)), grid - grid.mean(), columns
        )
    return total


def group_runs(records: Iterable[Mapping], field: str = "accuracy") -> dict:
    """Groups accuracies in percent, in the order in which they first appear.

    Returns:
      `{(student, ipc): {(set, variant): {labels: {(set_seed, student_seed): value}}}}`;
      a run that was repeated counts once, as its last record.
    """
    grouped: dict = {}
    for record in records:
        value = record.get(field)
        if value is None or not math.isfinite(value):
            continue
        sets = grouped.setdefault((record["student"], record["ipc"]), {})
        kinds = sets.setdefault((record["set"], record.get("variant") or ""), {})
        seeds = (record.get("set_seed", 0), record.get("student_seed", 0))
        kinds.setdefault(record["labels"], {})[seeds] = 100.0 * value
    return grouped


def summarise(
    records: Iterable[Mapping],
    sets: Mapping | None = None,
    *,
    reference: str | None = None,
) -> list[Row]:
    """Turns records of trained students into the rows of the results table.

    Args:
      records: mappings with `set`, `labels`, `variant`, `student`, `ipc`, `set_seed`,
        `student_seed`, `accuracy` in 0..1 and optionally `best_accuracy`.
      sets: optional titles, transport distances and bytes by set; its order is kept.
      reference: the set that differences are taken from, default random real images.

    Returns:
      Rows by student and IPC, then by set (ablations beside the method), then by
      variant.
    """
    records, sets = list(records), sets or {}
    reference = reference or find_reference(r["set"] for r in records)
    best = group_runs(records, "best_accuracy")
    order = {name: i for i, name in enumerate(ordered(sets))}
    rows = []
    for (student, ipc), runs in group_runs(records).items():
        base = runs.get((reference, ""), {})
        ranked = sorted(runs, key=lambda key: order.get(key[0], len(order)))
        for name, variant in ranked:
            outcomes = {}
            for labels, accuracies in runs[name, variant].items():
                own = (name, variant) == (reference, "")
                at_best = best.get((student, ipc), {}).get((name, variant), {})
                outcomes[labels] = Outcome(
                    spread(accuracies),
                    statistic(at_best.get(labels, {}).values()),
                    tuple(accuracies.values()),
                    None
                    if own
                    else difference(
                        accuracies,
                        base.get(labels, {}),
                        paired=share_seeds(name, reference or ""),
                    ),
                )
            about = sets.get(name) or {}
            title = str(about.get("title") or short_title(name))
            if variant:
                how = VARIANTS.get(variant, variant.replace("_", " "))
                title = f"{short_title(name, sets)}, {how}"
            size = about.get("bytes") or {}
            rows.append(
                Row(
                    set=name,
                    variant=variant,
                    title=title,
                    student=student,
                    ipc=ipc,
                    hard=outcomes.get("hard"),
                    soft=outcomes.get("soft"),
                    transport=(about.get("transport") or {}).get("mean"),
                    image_bytes=size.get("images"),
                    soft_label_bytes=size.get("soft_labels"),
                )
            )
    return rows


def as_json(rows: Iterable[Row]) -> list[dict]:
    """Returns the rows of a table as plain objects, one for each kind of labels."""
    found = []
    for row in rows:
        for labels in LABELS:
            outcome = getattr(row, labels)
            if outcome is None:
                continue
            apart = outcome.difference
            found.append(
                {
                    "set": row.set, "variant": row.variant, "student": row.student,
                    "ipc": row.ipc, "labels": labels, **outcome.accuracy._asdict(),
                    "difference": apart and apart._asdict() | {"verdict": apart.verdict},
                }
            )  # fmt: skip
    return found


def compare(
    records: Iterable[Mapping], first: tuple[str, str], second: tuple[str, str]
) -> list[tuple[str, int, str, Difference]]:
    """Compares two (set, variant) wherever both were trained.

    Returns:
      (student, ipc, labels, difference) for each.
    """
    found = []
    for (student, ipc), runs in group_runs(records).items():
        for labels in LABELS:
            one = runs.get(first, {}).get(labels, {})
            two = runs.get(second, {}).get(labels, {})
            apart = difference(one, two, paired=share_seeds(first[0], second[0]))
            if apart is not None:
                found.append((student, ipc, labels, apart))
    return found


def headline(records: Iterable[Mapping], sets: Mapping | None = None) -> Headline:
    """States the outcome in words that the numbers allow.

    The sentence is about the first student and IPC, with hard labels when both sets
    have them, since there only the images differ.
    """
    records = list(records)
    rows = summarise(records, sets)
    if not rows:
        return Headline("No student has been trained yet.", (), "no result")
    student, ipc = rows[0].student, rows[0].ipc
    here = [r for r in rows if (r.student, r.ipc, r.variant) == (student, ipc, "")]
    reference = find_reference(r.set for r in here)
    others = [r for r in here if r.set != reference]
    method = next((r for r in others if r.set == METHOD), None)
    method = method or next(iter(others), (here or rows)[0])
    base = next((r for r in here if r.set == reference), None)
    name = short_title(method.set, sets)

    def sentence(other, labels):
        one, two = getattr(method, labels), getattr(other, labels)
        runs = group_runs(records)[student, ipc]
        apart = difference(
            runs[method.set, ""][labels],
            runs[other.set, ""][labels],
            paired=share_seeds(method.set, other.set),
        )
        text = f"{name} {one.accuracy} vs {short_title(other.set, sets)} {two.accuracy}"
        if apart is None:
            return f"{text}: no seeds in common, so no paired difference", None
        verdict = apart.verdict
        ending = verdict if verdict == "no clear difference" else f"clearly {verdict}"
        return f"{text}: {signed(apart.mean)} points, {ending}", apart

    def shared(other):
        return [k for k in LABELS if getattr(method, k) and getattr(other, k)]

    if base is None or base is method or not shared(base):
        labels = next(k for k in LABELS if getattr(method, k))
        reached = getattr(method, labels).accuracy
        text = f"{name} {reached} with {labels} labels, with nothing to compare it to"
        return Headline(text, (), "no comparison")
    labels = shared(base)[0]
    text, apart = sentence(base, labels)
    details = [f"{student}, {ipc} per class, {labels} labels. {_interval(apart)}"]
    for other in shared(base)[1:]:
        details.append(f"With {other} labels: {sentence(base, other)[0]}.")
    rivals = [
        r
        for r in others
        if r is not method and not is_ablation(r.set) and getattr(r, labels)
    ]
    if rivals:
        rival = max(rivals, key=lambda r: getattr(r, labels).accuracy.mean)
        details.append(f"Best other baseline: {sentence(rival, labels)[0]}.")
    verdict = apart.verdict if apart else "no comparison"
    return Headline(text, tuple(details), verdict)


def _interval(apart: Difference | None) -> str:
    if apart is None:
        return ""
    if apart.low is None:
        return "There is no interval."
    return (
        f"95 % interval {signed(apart.low)} to {signed(apart.high)} over {apart.unit}"
        f"{', paired by seeds' if apart.paired else ''}."
    )
