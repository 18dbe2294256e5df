"""Stage report: `config.json`, `results.json`, and the figures behind `report.html`."""

import shlex
import sys
from importlib import metadata

import jax.numpy as jnp
import numpy as np

from ot_dd import ot
from ot_dd.checkpoint import read_json, write_json
from ot_dd.config import options, to_dict
from ot_dd.parallel import is_leader
from ot_dd.stages.artifacts import Prepared
from ot_dd.stages.relabel import SoftLabels
from ot_dd.stages.report import Figures, print_table, write_report
from ot_dd.stages.study import Study
from ot_dd.stages.summary import find_reference, robustness, summarise
from ot_dd.stages.vocabulary import TITLES
from ot_dd.workdir import WorkDir

_PACKAGES = (
    "ot-dd", "jax", "jaxlib", "flax", "optax", "ott-jax", "orbax-checkpoint", "numpy",
    "scikit-learn",
)  # fmt: skip


def command() -> str:
    """Returns the command line of this run, without the machine's paths."""
    main = sys.modules["__main__"].__spec__
    name = main.name if main else "ot_dd.distill"
    return shlex.join(["python", "-m", name, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Returns the versions of the packages that matter to the numbers."""
    found = {"python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_config(workdir: WorkDir, config: dict) -> None:
    """Writes the resolved config with versions and the command."""
    note = {"command": command(), "versions": versions(), "config": config}
    write_json(workdir.path / "config.json", note)


def write_results(
    config, workdir: WorkDir, prepared: Prepared, study: Study, soft: SoftLabels
) -> dict:
    """Writes `results.json` and `report.html`, and prints the table.

    Args:
      config: the whole config.
      workdir: where both are written.
      prepared: facts on the networks.
      study: records and sets.
      soft: the product's labels.

    Returns:
      What `results.json` holds.
    """
    stored = read_json(workdir.path / "distilled" / "dataset.json")
    facts = prepared.facts
    results = {
        "name": config.name,
        "product": {k: stored["provenance"][k] for k in ("recipe", "labels")},
        "command": command(),
        "versions": versions(),
        "config": to_dict(config),
        "data": prepared.dataset.facts(),
        "records": study.records,
        "sets": {
            name: {
                "title": TITLES[name],
                "transport": study.transport[name],
                "bound": _bound(study, name),
                "gradients_left_out": sum(one.left_out for one in made),
                "bytes": {
                    "images": int(np.prod(made[0].images.shape)),
                    "soft_labels": soft.bytes(),
                },
            }
            for name, made in study.sets.items()
        },
        "full_data": full_data(config, facts["teachers"]),
        "teachers": [
            {k: v for k, v in note.items() if k != "curve"}
            for note in facts["teachers"]
        ],
        "label_teachers": study.teachers,
        "autoencoder": facts["autoencoder"],
        "surrogate": facts["surrogate"],
        "weights": facts["weights"],
        "seconds": by_stage(workdir.seconds()),
        "flops": by_stage(workdir.flops())
        | {"students": sum(record["flops"] for record in study.records)},
        "bytes": stored["bytes"],
        "curves": {k: v for k, v in facts["curves"].items() if v},
    }
    rows = summarise(results["records"], results["sets"])
    full = (results["full_data"] or {}).get("accuracy")
    results["label_robust_score"] = robustness(rows, full)
    write_json(workdir.path / "results.json", results)
    figures = make_figures(config, prepared, study)
    path = write_report(workdir.path, results, figures)
    if is_leader():
        reference = find_reference(row.set for row in rows)
        print_table(rows, against=reference or "random")
        print(f"report: {path}")
    return results


def _bound(study: Study, name: str) -> dict[str, float | None]:
    """Returns the three distances that the method's stages lower, of one set.

    They stand for the terms of the paper's bound on the distance between real data and
    a student, without its constants: `images` to unseen images (OTG), `labels` to the
    labels of those (LIA), `logits` of students to their labels at the end (OTM).
    """
    logits = [
        record["logit_transport"]
        for record in study.records
        if (record["set"], record["labels"], record["variant"]) == (name, "soft", "")
    ]
    return {
        "images": study.transport[name]["mean"],
        "labels": study.label_gaps.get(name),
        "logits": float(np.mean(logits)) if logits else None,
    }


def full_data(config, teachers: list[dict]) -> dict | None:
    """Returns the test accuracy of the student's network trained on all images.

    That is the teacher of the same architecture and options, under the teachers' own
    recipe and steps, which are None for weights that were read; None when there is none.
    """
    name, own = config.student.model, options(config.student.options)
    theirs = config.teachers.options
    same = name in theirs and options(theirs[name]) == own
    for note in teachers:
        if note["name"] == name and (same or (name not in theirs and not own)):
            read = name in config.teachers.weights
            return {
                "student": name, "accuracy": note["test_accuracy"],
                "steps": None if read else config.teachers.steps,
            }  # fmt: skip
    return None


# What people call that whose names in a work directory begin so.
_STAGES = {
    "label": "distances", "transport": "distances", "test": "distances",
    "latent": "latents", "student": "students",
}  # fmt: skip


def by_stage(numbers: dict[str, float]) -> dict[str, float]:
    """Sums a work directory's numbers by the first word of each name; one of teachers."""
    stages: dict[str, float] = {}
    for name, value in numbers.items():
        stage = name.split("-")[0]
        stage = "teachers" if stage.startswith("teacher") else stage
        stage = _STAGES.get(stage, stage)
        stages[stage] = stages.get(stage, 0.0) + value
    return {stage: round(total, 1) for stage, total in stages.items()}


def make_figures(config, prepared: Prepared, study: Study) -> Figures:
    """Gathers the arrays behind the report's pictures.

    The 2-D view is a PCA of real latents of all classes; the lines are the strongest
    entries of the plan from the full method's latents to real ones, for one class.
    """
    images, labels = prepared.dataset.train
    num_classes = len(prepared.dataset.class_names)
    shown = min(config.ipc, 10)
    rows = np.stack([np.flatnonzero(labels == c)[:shown] for c in range(num_classes)])
    latents = prepared.latents
    per_class = max(1, 1500 // num_classes)
    some = np.concatenate(
        [np.flatnonzero(labels == c)[:per_class] for c in range(num_classes)]
    )
    cloud = np.asarray(latents[some]).reshape(len(some), -1)
    center = cloud.mean(0)
    _, _, axes = np.linalg.svd(cloud - center, full_matrices=False)

    def project(points):
        return (points.reshape(len(points), -1) - center) @ axes[:2].T

    synthetic, synthetic_labels = {}, {}
    for name, made in study.sets.items():
        if made[0].latents is not None:
            flat = np.asarray(made[0].latents)
            synthetic[name] = project(flat.reshape(-1, *flat.shape[2:]))
            synthetic_labels[name] = np.repeat(np.arange(num_classes), flat.shape[1])
    own = np.asarray(study.sets["ot_dd"][0].latents)[0].reshape(config.ipc, -1)
    real = np.asarray(latents[np.flatnonzero(labels == 0)[: 8 * config.ipc]])
    real = real.reshape(len(real), -1)
    cost = ot.cost_matrix(jnp.asarray(own), jnp.asarray(real), "sqeuclidean")
    plan = ot.solve(cost, epsilon=0.02 * float(cost.mean()), num_iters=200).plan
    source = np.asarray(plan).argmax(0)
    lines = np.concatenate([project(own[source]), project(real)], axis=1)
    return Figures(
        class_names=prepared.dataset.class_names,
        real=images[rows],
        sets={name: made[0].images for name, made in study.sets.items()},
        latents_real=project(cloud),
        latents_real_labels=labels[some],
        latents_synthetic=synthetic,
        latents_synthetic_labels=synthetic_labels,
        transport_lines=lines,
        guidance_trace=_guidance_trace(config, study),
    )


def _guidance_trace(config, study: Study) -> dict | None:
    """The transport term's distance while the first set was sampled, and without it.

    Mean over classes and groups, at the steps where the term acts.
    """
    steps = np.arange(config.sampler.num_steps - 1, -1, -1)
    low, high = config.guidance.transport.window
    acts = (steps >= low) & (steps <= high)
    trace = {"step": steps[acts].tolist()}
    for line, name in (("with", "ot_dd"), ("without", "diffusion")):
        made = study.sets.get(name, (None,))[0]
        if made is not None and made.distances is not None:
            values = np.asarray(made.distances).mean(0)[acts]
            if np.isfinite(values).all():
                trace[line] = values.tolist()
    return trace if "with" in trace else None
