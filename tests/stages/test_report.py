"""The report: statistics by hand, escaping, standing alone, and how it looks."""

import base64
import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy import stats
from sklearn.datasets import load_digits

from configs import digits
from docs import picture
from ot_dd.stages import _figures, _html, report, summary
from ot_dd.stages.results import full_data
from ot_dd.stages.summary import (
    compare,
    difference,
    label_robust_score,
    robustness,
    share_seeds,
    spread,
)

SETS = {  # title, hard, soft, OT distance, bytes of images
    "ot_dd": ("ot-dd: full method", 94.5, 95.6, 1.04, 6400),
    "random": ("random real images", 91.2, 93.0, 1.52, 6400),
    "random_decoded": (
        "random real images through the autoencoder",
        90.6,
        92.4,
        1.55,
        6400,
    ),
    "kmeans": ("k-means centroids", 94.1, 95.0, 0.91, 6400),
    "diffusion": ("plain diffusion samples", 89.3, 92.2, 1.31, 6400),
    "no_otg": ("ot-dd without transport guidance", 93.9, 95.1, 1.22, 6400),
}


def record(name, accuracy, *, set_seed=0, student_seed=0, **changes):
    defaults = {"variant": "", "labels": "hard", "student": "convnet3", "ipc": 10}
    seeds = {"set_seed": set_seed, "student_seed": student_seed}
    return {"set": name, "accuracy": accuracy, **seeds, **defaults, **changes}


def make_results():
    """A run on digits as it could be: five sets, three set seeds, two students each."""
    rng = np.random.default_rng(0)
    records = []
    for name, (_, hard, soft, _, _) in SETS.items():
        spread = 1.6 if name.startswith("random") else 0.5
        runs = [(name, "", "hard", hard), (name, "", "soft", soft)]
        if name == "ot_dd":
            for variant, loss in (("no_lia", 0.9), ("no_otm", 0.2)):
                runs.append((name, variant, "soft", soft - loss))
            runs.append((name, "identity_plan", "soft", soft - 0.1))
        for set_seed in range(3):
            effect = rng.normal(0, spread)
            for which, variant, labels, mean in runs:
                for student_seed in range(2):
                    value = (mean + effect + rng.normal(0, 0.3)) / 100
                    records.append(
                        record(
                            which,
                            value,
                            set_seed=set_seed,
                            labels=labels,
                            student_seed=student_seed,
                            variant=variant,
                            best_accuracy=value + 0.004,
                        )
                    )
    steps = np.arange(0, 2000, 20)
    loss = {
        "autoencoder": 0.4 * np.exp(-steps / 150) + 0.002,
        "diffusion": 0.9 * np.exp(-steps / 200) + 0.12,
    }
    curves = {
        k: {
            "step": steps.tolist(),
            "loss": (v * rng.lognormal(0, 0.05, len(steps))).tolist(),
        }
        for k, v in loss.items()
    }
    return {
        "name": "digits",
        "config": {
            "data": {"source": "digits", "seed": 0},
            "ipc": 10,
            "guidance": {"strength": 0.2, "from": 0.5},
        },
        "records": records,
        "sets": {
            name: {
                "title": title,
                "transport": {
                    "mean": w,
                    "per_seed": (w + rng.normal(0, 0.03, 3)).tolist(),
                    "per_class": (w * rng.uniform(0.6, 1.4, 10)).tolist(),
                },
                "bound": {"images": w, "labels": w / 9, "logits": w / 40},
                "gradients_left_out": 3 if name == "diffusion" else 0,
                "bytes": {"images": size, "soft_labels": 32000},
            }
            for name, (title, _, _, w, size) in SETS.items()
        },
        "full_data": {"accuracy": 0.979, "student": "convnet3"},
        "teachers": [
            {"name": "convnet3", "validation_accuracy": 0.985, "test_accuracy": 0.979},
            {"name": "resnet10", "validation_accuracy": 0.989, "test_accuracy": 0.981},
        ],
        "autoencoder": {"parameters": 182_340, "validation_l1": 0.0213, "psnr": 27.4},
        "seconds": {
            "autoencoder": 31.0,
            "diffusion": 107.2,
            "teachers": 12.4,
            "sample": 9.1,
            "students": 64.0,
        },
        "bytes": {"training images": 68_992, "distilled images": 6400},
        "curves": curves,
        "versions": {"python": "3.11", "jax": "0.10.2", "flax": "0.12"},
        "command": "python -m ot_dd.distill --config=configs/digits.py",
    }


def make_figures(class_names=tuple("0123456789")):
    data = load_digits()
    images = (data.images * 255 / 16).astype(np.uint8)[..., None]
    by_class = [np.flatnonzero(data.target == c) for c in range(10)]
    rng = np.random.default_rng(1)
    flat = data.data - data.data.mean(0)
    axes = np.linalg.svd(flat, full_matrices=False)[2][:2]
    points = flat @ axes.T
    chosen = {n: np.stack([rng.choice(i, 10) for i in by_class]) for n in SETS}
    own = points[chosen["ot_dd"][3]]
    near = points[by_class[3]][:60]
    nearest = ((near[:, None] - own[None]) ** 2).sum(-1).argmin(1)
    steps = np.arange(49, -1, -1)
    return report.Figures(
        class_names=class_names,
        real=np.stack([images[i[:10]] for i in by_class]),
        sets={n: images[i] for n, i in chosen.items()},
        latents_real=points,
        latents_real_labels=data.target,
        latents_synthetic={n: points[i.ravel()] for n, i in chosen.items()},
        latents_synthetic_labels={n: np.arange(10).repeat(10) for n in SETS},
        transport_lines=np.concatenate([near, own[nearest]], axis=1),
        guidance_trace={
            "step": steps.tolist(),
            "with": (1 + 9 * (steps / 49) ** 2).tolist(),
            "without": (1.4 + 8.6 * (steps / 49) ** 2).tolist(),
        },
    )


def test_summarise_matches_hand_computation():
    records = [
        record("random", 0.90, set_seed=0),
        record("ot_dd", 0.92, set_seed=0),
        record("random", 0.92, set_seed=1),
        record("ot_dd", 0.95, set_seed=1),
        record("random", 0.94, set_seed=2),
        record("ot_dd", 0.98, set_seed=2),
    ]
    random, method = summary.summarise(records)
    assert (random.set, method.set) == ("random", "ot_dd")
    assert random.hard.difference is None and random.soft is None
    np.testing.assert_allclose(random.hard.accuracy[:3], (92.0, 2.0, 3))
    np.testing.assert_allclose(method.hard.accuracy[:3], (95.0, 3.0, 3))
    # Unpaired: variances 4 and 9 over 3 sets each, 2 (4 + 9)^2 / (16 + 81) = 3.485 degrees.
    apart = method.hard.difference
    error = np.sqrt(13 / 3)
    half = error * stats.t.ppf(0.975, 2 * 13**2 / 97)
    np.testing.assert_allclose(apart[:2], (3.0, error))
    np.testing.assert_allclose(apart[2:4], (3 - half, 3 + half), rtol=1e-6)
    assert apart.verdict == "no clear difference" and not apart.paired


def test_summarise_keeps_order_variants_students_and_sizes():
    records = [
        record("random", 0.5),
        record("ot_dd", 0.6),
        record("ot_dd", 0.6, labels="soft"),
        record("ot_dd", 0.5, labels="soft", variant="no_lia"),
        record("random", 0.4, student="resnet10"),
    ]
    sets = {
        "ot_dd": {
            "title": "ot-dd (full)",
            "transport": {"mean": 1.5},
            "bytes": {"images": 10, "soft_labels": 20},
        },
        "random": {"title": "random real"},
    }
    rows = summary.summarise(records, sets)
    assert [(r.student, r.set, r.variant) for r in rows] == [
        ("convnet3", "ot_dd", ""),
        ("convnet3", "ot_dd", "no_lia"),
        ("convnet3", "random", ""),
        ("resnet10", "random", ""),
    ]
    assert rows[0].title == "ot-dd (full)" and rows[1].title == "ot-dd, without LIA"
    assert rows[0][-3:] == (1.5, 10, 20) and rows[3][-3:] == (None, None, None)
    assert rows[0].hard.accuracy.std is None and rows[1].hard is None
    [(student, _, labels, difference)] = compare(
        records, ("ot_dd", "no_lia"), ("ot_dd", "")
    )
    assert (student, labels) == ("convnet3", "soft")
    np.testing.assert_allclose(difference.mean, -10.0)
    assert difference.low is None and difference.verdict == "no clear difference"


def test_ablations_stand_beside_the_method():
    names = ["random", "ot_dd", "kmeans", "no_otg"]
    rows = summary.summarise([record(n, 0.5) for n in names], {n: {} for n in names})
    assert [r.set for r in rows] == ["random", "ot_dd", "no_otg", "kmeans"]
    records = [record("random", 0.5), record("ot_dd", 0.6), record("no_otg", 0.9)]
    assert "no otg" not in " ".join(summary.headline(records).details)


def test_students_of_one_set_do_not_count_as_independent():
    first = {(0, 0): 92.0, (0, 1): 94.0, (1, 0): 95.0, (1, 1): 95.0}
    second = {(0, 0): 90.0, (0, 1): 90.0, (1, 0): 90.0, (1, 1): 90.0, (2, 0): 0.0}
    # The pairs differ by 2, 4 and by 5, 5: sets by 3 and 5, students by 3.5 and 4.5, and
    # what is left is 0.5 in each of four: 1 + 0.25 - 0.25.
    found = difference(first, second, paired=True)
    assert (found.mean, found.standard_error) == (4.0, 1.0)
    assert found.unit == "sets and students"
    assert found.verdict == "no clear difference"
    one_set = {key: value for key, value in first.items() if key[0] == 0}
    found = difference(one_set, second, paired=True)  # set 0: by 2 and 4
    assert (found.mean, found.unit) == (3.0, "students of one set")
    assert difference(first, {(7, 7): 1.0}, paired=True) is None
    assert difference(first, {}, paired=False) is None
    assert difference(first, {(7, 7): 1.0}, paired=False).low is None


def test_sets_that_share_no_seeds_are_compared_by_welch():
    """Against SciPy, where sets or students alone are many."""

    def agree(found, peer):
        interval = peer.confidence_interval()
        np.testing.assert_allclose([found.low, found.high], interval)
        np.testing.assert_allclose(found.p_value, peer.pvalue)

    rng = np.random.default_rng(0)
    ones = [{(s, 0): rng.normal(80, sigma) for s in range(5)} for sigma in (1, 3)]
    values = [list(one.values()) for one in ones]
    found = difference(*ones, paired=False)
    agree(found, stats.ttest_ind(*values, equal_var=False))
    assert found.unit == "sets" and not found.paired
    agree(difference(*ones, paired=True), stats.ttest_rel(*values))
    lone = [{(0, k): rng.normal(80, sigma) for k in range(5)} for sigma in (1, 3)]
    found = difference(*lone, paired=False)  # Students of one seed start alike.
    agree(found, stats.ttest_rel(*(list(one.values()) for one in lone)))
    assert found.unit == "students of one set"
    many = {(s, k): rng.normal(80 + s, 1) for s in range(5) for k in range(3)}
    found, back = (difference(*pair, paired=False) for pair in
                   ((many, lone[0]), (lone[0], many)))  # fmt: skip
    assert found.unit == "sets and students against students of one set"
    np.testing.assert_allclose([back.mean, back.low], [-found.mean, -found.high])
    other = {(0, 7 + k): value for (_, k), value in lone[0].items()}
    means = [np.mean([many[s, k] for k in range(3)]) for s in range(5)]
    found = difference(many, other, paired=False)  # No student on both sides.
    agree(found, stats.ttest_ind(means, list(other.values()), equal_var=False))
    assert found.unit == "sets against students of one set"
    ragged = {key: value for key, value in many.items() if key != (4, 2)}
    found = difference(ragged, lone[0], paired=False)
    expected = np.mean(list(ragged.values())) - np.mean(list(lone[0].values()))
    np.testing.assert_allclose(found.mean, expected)
    flat = {key: 80.0 for key in many}
    assert difference(flat, flat, paired=True).low is None  # No spread, no interval.


@pytest.mark.parametrize("noise", [(0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0.5)])
@pytest.mark.parametrize("sets", [(5, 5), (3, 3), (5, 1)])
def test_intervals_hold_what_they_promise(noise, sets):
    """Two equal methods: at most some 5 % are called different, whatever deviates.

    `noise` is the deviation of sets, of how a method suits an initialisation, and of
    runs. Where the second is all that sets have in common, Welch's test of sets alone
    is wrong far more often.
    """
    rng = np.random.default_rng(0)

    def runs(count, start):
        of_set, suits, of_run = noise
        grid = start + rng.normal(0, suits, 5) + rng.normal(0, of_run, (count, 5))
        if count > 1:
            grid += rng.normal(0, of_set, (count, 1))
        return dict(np.ndenumerate(grid))

    wrong = of_sets = 0
    for _ in range(300):
        start = rng.normal(80, 1, 5)
        one, two = (runs(count, start) for count in sets)
        wrong += difference(one, two, paired=False).verdict != "no clear difference"
        if sets == (5, 5):
            means = [
                np.reshape(list(side.values()), (5, 5)).mean(1) for side in (one, two)
            ]
            of_sets += stats.ttest_ind(*means, equal_var=False).pvalue < 0.05
    assert wrong < 0.09 * 300
    if sets == (5, 5) and noise[0] == 0:
        assert of_sets > 0.2 * 300
    assert share_seeds("ot_dd", "no_otg") and share_seeds("ot_dd", "ot_dd")
    assert not share_seeds("ot_dd", "random") and not share_seeds("random", "kmeans")


def test_sets_and_students_are_counted_apart():
    found = spread({(0, 0): 92.0, (0, 1): 94.0, (1, 0): 95.0, (1, 1): 95.0})
    np.testing.assert_allclose(found.between, np.sqrt(2.0))  # of 93 and 95
    np.testing.assert_allclose(found.within, 1.0)  # 1 + 1 + 0 + 0 over 4 - 2
    assert spread({(0, 0): 92.0}) == (92.0, None, 1, None, None)
    one, two = {(s, 0): 1.0 + s for s in range(8)}, {(s, 0): 0.0 for s in range(8)}
    found = difference(one, two, paired=True)
    low, high = found.bootstrap
    assert found.low < low < found.mean < high < found.high


def test_label_robust_score_by_hand():
    """`ddranking` 0.2.0: alpha = lambda IOR - (1 - lambda) HLR."""
    level = {"full_hard": 0.9, "hard": 0.9, "random": 0.5, "soft": 0.5}
    np.testing.assert_allclose(
        label_robust_score(**level), 100 * (1 - 1 / np.e) / (np.e - 1 / np.e)
    )
    best = {"full_hard": 0.0, "hard": 1.0, "random": 0.0, "soft": 1.0}
    np.testing.assert_allclose(label_robust_score(**best), 100.0)
    assert label_robust_score(**(level | {"soft": 0.6})) > label_robust_score(**level)
    assert label_robust_score(**(level | {"hard": 0.8})) < label_robust_score(**level)


def test_the_score_of_a_run_is_of_its_means():
    """Of the first student; none where a number is missing."""
    records = [
        record("random", 0.50, labels="soft"), record("random", 0.10),
        record("ot_dd", 0.70), record("ot_dd", 0.80),
        record("ot_dd", 0.60, labels="soft"),
    ]  # fmt: skip
    records[3]["set_seed"] = 1
    rows = summary.summarise(records)
    wanted = label_robust_score(full_hard=0.9, hard=0.75, random=0.5, soft=0.6)
    np.testing.assert_allclose(robustness(rows, 0.9), wanted)
    assert robustness(rows, 0.7) is None  # below what the set alone teaches
    assert robustness(rows, None) is None and robustness(rows[:1], 0.9) is None


def test_values_that_are_missing_or_not_finite_are_left_out():
    records = [
        record("random", 0.5),
        record("random", None, set_seed=1),
        record("random", float("nan"), set_seed=2),
        record("random", 0.5),
    ]
    [row] = summary.summarise(records)
    assert row.hard.accuracy.count == 1 and row.hard.best is None


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ((0.03, 0.031, 0.035), "better"),
        ((-0.03, -0.031, -0.035), "worse"),
        ((0.05, -0.01, 0.02), "no clear difference"),
        ((0.05,), "no clear difference"),
    ],
)
def test_headline_claims_only_what_the_interval_allows(gains, expected):
    records = []
    for seed, gain in enumerate(gains):
        records.append(record("random", 0.9, set_seed=seed))
        records.append(record("ot_dd", 0.9 + gain, set_seed=seed))
    found = summary.headline(records, {"random": {"title": "random real (10 seeds)"}})
    assert found.verdict == expected and found.text.endswith(expected)
    assert found.text.startswith("ot-dd ") and " vs random real 90.0" in found.text
    assert ("clearly" in found.text) == (expected in ("better", "worse"))


def test_headline_gives_means_deviations_and_difference():
    found = summary.headline(make_results()["records"], make_results()["sets"])
    number = r"\d+\.\d ± \d+\.\d / \d+\.\d"
    expected = rf"ot-dd {number} vs random real images {number}: \+\d\.\d points, .*"
    assert re.fullmatch(expected, found.text)
    assert re.search(r"95 % interval .* over sets\b", found.details[0])
    assert any("k-means" in detail for detail in found.details)


def test_headline_without_a_comparison():
    assert summary.headline([]).verdict == "no result"
    assert summary.headline([record("ot_dd", 0.9)]).verdict == "no comparison"
    assert summary.headline([record("random", 0.9)]).verdict == "no comparison"


def test_a_network_that_was_read_has_no_steps():
    config = digits.get_config()
    config.student.model = "resnet10"
    notes = [{"name": "resnet10", "test_accuracy": 0.9}]
    with config.unlocked():
        config.teachers.options = {}
        config.student.options = {}
    assert full_data(config, notes)["steps"] == config.teachers.steps
    config.teachers.weights = {"resnet10": "somewhere"}
    assert full_data(config, notes) == {
        "student": "resnet10", "accuracy": 0.9, "steps": None,
    }  # fmt: skip


def test_what_is_named_random_is_what_was_compared_with(tmp_path):
    results = make_results()
    results["records"] = [r for r in results["records"] if r["set"] != "random"]
    page = report.write_report(tmp_path, results, make_figures()).read_text()
    chip = re.search(r'class="chip [a-z]+">([^<]+)', page)[1]
    assert chip.endswith(report.short_title("random_decoded", results["sets"]))


def test_table_in_the_terminal():
    results, numbers = make_results(), {}
    for width in (80, 120):
        console = Console(file=io.StringIO(), width=width)
        rows = summary.summarise(results["records"], results["sets"])
        report.print_table(rows, console)
        text = console.file.getvalue()
        numbers[width] = re.findall(r"\d\d\.\d ± \d\.\d / \d\.\d  ", text)
    assert "ot-dd: full method" in text and "without OT matching" in text
    assert re.search(r"random real images\s+\d\d\.\d ± \d\.\d / \d\.\d  ", text)
    # A narrow terminal breaks names, not numbers.
    assert numbers[80] == numbers[120] and len(numbers[80]) > 5


def test_names_stay_where_numbers_are_wide():
    records = [
        record(name, value, set_seed=seed, student_seed=student, labels=labels)
        for name in ("theirs", "a_reference_of_2024")
        for labels in ("hard", "soft")
        for seed in range(2)
        for student in range(2)
        for value in [0.9 * (seed + student) / 2]
    ]
    rows = summary.summarise(records, reference="a_reference_of_2024")
    console = Console(file=io.StringIO(), width=60)
    report.print_table(rows, console, against="a_reference_of_2024")
    lines = console.file.getvalue().splitlines()
    assert any(line.strip().startswith("theirs ") for line in lines)


def test_columns_without_a_number_are_left_out():
    records = [record("theirs", 0.9), record("theirs", 0.8, set_seed=1)]
    console = Console(file=io.StringIO(), width=100)
    report.print_table(summary.summarise(records), console)
    text = console.file.getvalue()
    assert "hard" in text and "85.0" in text
    assert not re.search(r"soft|vs random|W\b|differences", text)


def test_page_is_standalone_and_complete(tmp_path):
    path = report.write_report(tmp_path / "run", make_results(), make_figures())
    assert path == tmp_path / "run" / "report.html"
    page = path.read_text("utf-8")
    assert (
        "http://" not in page
        and "https://" not in page
        and "//" not in re.sub(r"base64,[^\"]*", "", page)
    )
    assert "<script" not in page and "@import" not in page
    for target in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert target.startswith(("data:", "#"))
    for title in (
        "Test accuracy",
        "All numbers",
        "Guidance while sampling",
        "not finite: plain diffusion samples 3.",
        "The other two distances of the bound",
        "Logit matching",
        "Teachers",
    ):
        assert title in page
    assert "prefers-color-scheme: dark" in page
    assert len(page) < 3_000_000


def test_everything_from_outside_is_escaped(tmp_path):
    evil = "<script>alert('x')</script>\"onload=\"y"
    results = make_results()
    for item in results["records"]:
        item["student"] = evil
        item["set"] = evil if item["set"] == "kmeans" else item["set"]
    results |= {"name": evil, "command": evil, "config": {evil: {evil: evil}}}
    results |= {"versions": {evil: evil}, "teachers": [{"name": evil}]}
    results |= {"seconds": {evil: 1.0}, "autoencoder": {evil: evil}}
    results["sets"][evil] = results["sets"].pop("kmeans") | {"title": evil}
    results["curves"][evil] = {"step": [0, 1], "loss": [1.0, 0.5]}
    figures = make_figures((evil, *"123456789"))
    page = report.write_report(tmp_path, results, figures).read_text("utf-8")
    assert "&lt;script&gt;" in page
    assert "<script" not in page and '"onload="' not in page


def test_page_of_an_unfinished_run(tmp_path):
    page = report.write_report(tmp_path, {"name": "x"}, report.Figures()).read_text()
    assert "No student has been trained yet." in page
    results = make_results()
    empty = {"full_data": None, "teachers": [], "seconds": {}, "curves": {}}
    results |= empty | {"sets": {n: {"title": n} for n in SETS}}
    curve = {"step": [0, 1], "loss": [float("nan"), None]}
    results["curves"] = {"autoencoder": curve}
    report.write_report(tmp_path, results, report.Figures(class_names=("a",)))
    nothing_learnt = {"full_data": {"student": "convnet3", "accuracy": 0.0}}
    report.write_report(tmp_path, make_results() | nothing_learnt, report.Figures())


def test_a_curve_of_one_point_and_facts_that_have_names_are_shown(tmp_path):
    results = make_results()
    results["curves"] = {"denoiser": {"step": [7], "loss": [0.25]}}
    results["autoencoder"] = {"weights": {"layout": "diffusers", "scaling": 0.5}}
    page = report.write_report(tmp_path, results, report.Figures()).read_text()
    dot = re.search(r"<circle[^>]*><title>[^<]*0.25 at 7</title></circle>", page)
    assert dot and 'cx="243' in dot[0]
    assert "layout diffusers, scaling 0.5" in page


def test_many_classes_large_colour_images(tmp_path):
    rng = np.random.default_rng(0)
    real = rng.integers(0, 256, (30, 2, 224, 224, 3), np.uint8)
    names = [f"a rather long class name {i}" for i in range(30)]
    figures = report.Figures(class_names=names, real=real, sets={"ot_dd": real[:, :1]})
    page = report.write_report(tmp_path, make_results(), figures).read_text()
    assert "20 of 30 classes" in page


def test_strip_keeps_pixels():
    images = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 3, 1)
    markup = _figures.strip(images, alt="a<b")
    assert 'alt="a&lt;b"' in markup
    data = base64.b64decode(re.search(r"base64,([^\"]*)", markup)[1])
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    scale = _figures.STRIP_PIXELS // 3
    assert pixels.shape[0] == 2 * scale
    np.testing.assert_array_equal(
        pixels[::scale, : 3 * scale : scale, 0], images[0, ..., 0]
    )
    assert set(np.unique(pixels[..., 3])) == {0, 255}


def test_ticks_are_round_and_inside():
    assert _figures.ticks(0.3, 9.7) == [2, 4, 6, 8]
    assert _figures.ticks(1.0, 1.0) == [1.0]
    np.testing.assert_allclose(_figures.log_ticks(0.02, 12), [0.1, 1, 10])
    assert _html.tag("a", "<", None, [_html.Html("<b>")]) == "<a>&lt;<b></a>"


needs_chromium = pytest.mark.skipif(
    not shutil.which(picture.CHROMIUM), reason="needs Debian's package chromium"
)


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1280])
def test_browser_shows_the_page(tmp_path, width, dark):
    path = report.write_report(tmp_path, make_results(), make_figures())
    shot = tmp_path / "page.png"
    said = picture.shoot(path, shot, width=width, height=900, dark=dark)
    assert "CONSOLE" not in said
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    assert pixels.shape[1] == width
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    assert (np.median(pixels) < 100) == dark


@needs_chromium
def test_the_browser_would_tell_of_errors(tmp_path):
    (tmp_path / "page.html").write_text("<script>nothing.here()</script>")
    said = picture.shoot(
        tmp_path / "page.html", tmp_path / "page.png", width=400, height=400
    )
    assert "CONSOLE" in said and "nothing is not defined" in said


@needs_chromium
def test_nothing_is_wider_than_a_phone(tmp_path):
    """A copy of the page measures itself, and says so on the console."""
    path = report.write_report(tmp_path, make_results(), make_figures())
    script = (
        "<script>console.log('width ' + document.documentElement.scrollWidth)</script>"
    )
    path.write_text(path.read_text().replace("</body>", f"{script}</body>"))
    said = picture.shoot(path, tmp_path / "page.png", width=500, height=900)
    assert int(re.search(r"width (\d+)", said)[1]) <= 500
