"""Every set under the same protocols: accuracies, geometry, and what goes with what.

    python -m benchmarks.table --config=configs/digits.py --workdir=out/digits \
        --ipc=1,10 --protocols=dc_hard,edc_soft --students=convnet:width=32:depth=2 \
        --json=docs/results/table_digits.json

Sets, networks and trained students stay in the work directory: the same command again
makes what is missing. `python docs/tables.py` prints the JSON as Markdown.
"""

import copy
from pathlib import Path

import numpy as np
from absl import app, flags, logging
from scipy import stats

import ot_dd.environment  # noqa: F401 - before JAX
from ot_dd import geometry
from ot_dd.checkpoint import write_json
from ot_dd.command import config_flag, exit_code, json_flag, parse_flags
from ot_dd.config import fingerprint
from ot_dd.parallel import data_mesh
from ot_dd.stages import vocabulary
from ot_dd.stages.batched import in_batches
from ot_dd.stages.evaluation import check_sets, evaluate
from ot_dd.stages.prepare import prepare
from ot_dd.stages.relabel import teachers_for
from ot_dd.stages.sets import class_features, make_set, make_sets
from ot_dd.stages.study import label_gap
from ot_dd.training.protocols import get_protocol
from ot_dd.validation import validate
from ot_dd.workdir import WorkDir

OURS = ("ot_dd", *vocabulary.CHANGES)
_CONFIG = config_flag("The config whose sets are compared.")
_WORKDIR = flags.DEFINE_string("workdir", "out/digits", "Where everything is kept.")
_IPC = flags.DEFINE_list("ipc", ["10"], "Images per class.")
_PROTOCOLS = flags.DEFINE_list("protocols", ["dc_hard", "edc_soft"], "Their names.")
_STUDENTS = flags.DEFINE_list("students", [], "Networks; default the protocol's.")
_NAMES = flags.DEFINE_list(
    "names", [*OURS, *vocabulary.VARIANTS, *vocabulary.BASELINES], "Sets to compare."
)
_SETS = flags.DEFINE_integer("sets", 3, "Sets of each kind.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Students of each set.")
_EPOCHS = flags.DEFINE_integer("epochs", 0, "Passes instead of the protocols'.")
_JSON = json_flag("Where the table is written.")


def real_features(prepared) -> list[np.ndarray]:
    """Returns the first teacher's features of held-out images, `[n, d]` of each class."""
    images, labels = prepared.dataset.test
    features = in_batches(class_features, (prepared.teachers[0],), images)
    return [features[labels == c] for c in range(len(prepared.dataset.class_names))]


def describe_set(
    work, prepared, image_set, real: list[np.ndarray], teachers: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Returns the geometry of a set in the first teacher's features.

    Once as means over classes, with figures of the whole set, and once class by class.
    `transport` and `label_gap` estimate what the stages of the method are to lower: the
    distance of images, and of labels; `logit_gap`, beside them in the table, is that of
    a student's logits to its labels.
    """

    def make():
        shape = image_set.images.shape[:2]
        images, _ = image_set.flat()
        features = in_batches(class_features, (prepared.teachers[0],), images)
        own = features.reshape(*shape, -1)
        classes = [geometry.describe_class(r, s) for r, s in zip(real, own)]
        frechet = geometry.frechet_distance(np.concatenate(real), features)
        by_class = {k: [round(c[k], 4) for c in classes] for k in classes[0]}
        return {"by_class": by_class, "frechet": frechet}

    key = fingerprint(image_set.key, prepared.data_key, prepared.teacher_keys[0])
    name = f"class-geometry-{image_set.name}-{image_set.seed}-{key}"
    found = work.json(name, make)
    means = {k: float(np.mean(values)) for k, values in found["by_class"].items()}
    means["frechet"] = found["frechet"]
    means["label_gap"] = label_gap(work, prepared, image_set, teachers)
    return means, found["by_class"]


def set_cost(config, work, prepared, name: str, seeds) -> dict[str, float]:
    """Returns the mean seconds and operations of making a set, networks apart.

    They are those of whatever the set is made from: samples and prototypes as well.
    """
    used: list[str] = []
    for seed in seeds:
        with work.uses() as names:  # All of it is there: it is only read.
            make_set(config, work, prepared, name, seed, data_mesh())
        used += set(names)
    seconds, operations = work.seconds(), work.flops()
    return {
        "seconds": round(sum(seconds.get(part, 0) for part in used) / len(seeds), 1),
        "flops": sum(operations.get(part, 0) for part in used) / len(seeds),
    }


def correlations(rows: list[dict]) -> dict[str, dict[str, float | None]]:
    """Returns Spearman's correlation of each geometry figure with each accuracy.

    Sets that differ in their seed alone are one observation, their mean, and so are
    those of several names with the same images. There is none (None) with a figure that
    is the same for all, such as the diversity of lone images.

    Args:
      rows: `{"set": name, "ipc": count, "geometry": {...}, "accuracy": {column: value}}`
        of each set.
    """
    parts = {part: tuple(rows[0][part]) for part in ("geometry", "accuracy")}

    def mean(several: list[dict]) -> dict:
        return {
            part: {name: float(np.mean([one[part][name] for one in several]))
                   for name in names}
            for part, names in parts.items()
        }  # fmt: skip

    kinds: dict = {}
    for row in rows:
        kinds.setdefault((row["set"], row["ipc"]), []).append(row)
    alike: dict = {}
    for kind in map(mean, kinds.values()):  # A student's gap is not the images' own.
        images = tuple(v for k, v in kind["geometry"].items() if k != "logit_gap")
        alike.setdefault(images, []).append(kind)
    seen = [mean(several) for several in alike.values()]
    found: dict = {}
    for column in parts["accuracy"]:
        reached = [one["accuracy"][column] for one in seen]
        for name in parts["geometry"]:
            values = [one["geometry"][name] for one in seen]
            rank = None
            if np.ptp(values) and np.ptp(reached):
                rank = round(float(stats.spearmanr(values, reached).statistic), 3)
            found.setdefault(name, {})[column] = rank
    return found


def _run():
    """Runs every protocol, then writes records, geometry and correlations."""
    work = WorkDir(Path(_WORKDIR.value))
    report: dict = {"table": [], "geometry": [], "protocols": {}}
    every: list[dict] = []
    check_sets(_NAMES.value, "--names")
    for protocol in _PROTOCOLS.value:
        get_protocol(protocol)  # Unknown ones end the run here and not after hours.
    configs = []
    for ipc in map(int, _IPC.value):
        configs.append(copy.deepcopy(_CONFIG.value))
        configs[-1].ipc = ipc
        validate(configs[-1])
    for config in configs:
        ipc = config.ipc
        prepared = prepare(config, work)
        real, teachers = real_features(prepared), teachers_for(config, ipc)
        records = []
        for protocol in _PROTOCOLS.value:
            found = evaluate(
                config, work.path, protocol=protocol, baselines=tuple(_NAMES.value),
                sets=_SETS.value, students=tuple(_STUDENTS.value), seeds=_SEEDS.value,
                epochs=_EPOCHS.value,
            )  # fmt: skip
            records += found["records"]
            about = report["protocols"].setdefault(
                protocol, {"protocol_source": found["protocol_source"]}
            )
            for k in ("protocol_epochs", "teachers", "recipes"):
                about.setdefault(k, {}).update(found[k])
            report |= {k: found[k] for k in ("versions", "command")}
            report.setdefault("config", {})[str(ipc)] = found["config"]
        for record in records:  # A variant is a row of its own.
            record["set"] = record["variant"] or record["set"]
        rows: list[dict] = []
        made_of = [name for name in _NAMES.value if name not in vocabulary.VARIANTS]
        sets = make_sets(config, work, prepared, made_of, _SETS.value, data_mesh())
        for name, several in sets.items():
            for seed, made in enumerate(several):
                own = [r for r in records if (r["set"], r["set_seed"]) == (name, seed)]
                reached: dict = {}
                for r in own:
                    column = f"{r['protocol']} {r['student']}"
                    reached.setdefault(column, []).append(r["accuracy"])
                described, by_class = describe_set(work, prepared, made, real, teachers)
                gaps = [r["logit_transport"] for r in own if r["labels"] == "soft"]
                if gaps:
                    described["logit_gap"] = float(np.mean(gaps))
                rows.append(
                    {
                        "set": name, "set_seed": seed, "ipc": ipc, "geometry": described,
                        "accuracy": {k: float(np.mean(v)) for k, v in reached.items()},
                        "by_class": by_class,
                    }
                )  # fmt: skip
        every += rows
        part = {"ipc": ipc, "sets": rows, "correlations": correlations(rows)}
        part["cost"] = {
            name: set_cost(config, work, prepared, name, [s.seed for s in several])
            for name, several in sets.items()
        }
        report["geometry"].append(part)
        report["table"] += [
            {k: v for k, v in record.items() if k != "curve"} for record in records
        ]
        report |= {
            "correlations_of_all": correlations(every),
            "epochs_changed_to": _EPOCHS.value or None,
            "classes": list(prepared.dataset.class_names),
            "titles": {name: vocabulary.TITLES[name] for name in _NAMES.value},
        }
        if _JSON.value:  # What there is so far: the next size may take hours.
            write_json(Path(_JSON.value), report)


def main(_):
    """Parses the flags and runs; a mistake is one line and exit code 2."""
    logging.set_verbosity(logging.WARNING)
    return exit_code(_run)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
