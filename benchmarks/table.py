"""Every set under the same protocols: accuracies, geometry, and what goes with what.

    python -m benchmarks.table --config=configs/digits.py --workdir=out/digits \
        --ipc=1,10 --protocols=dc_hard,edc_soft --students=convnet:width=32:depth=2 \
        --json=docs/results/table_digits.json

Sets, networks and trained students stay in the work directory: the same command again
makes what is missing. `python docs/tables.py` prints the JSON as Markdown.
"""

import copy
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")

import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags
from scipy import stats

from ot_dd import geometry
from ot_dd.checkpoint import write_json
from ot_dd.config import fingerprint
from ot_dd.parallel import data_mesh
from ot_dd.stages import plan
from ot_dd.stages.artifacts import to_float
from ot_dd.stages.evaluation import evaluate
from ot_dd.stages.prepare import in_batches, prepare
from ot_dd.stages.study import class_features, make_sets
from ot_dd.workdir import WorkDir

_CONFIG = config_flags.DEFINE_config_file("config", "configs/digits.py")
_WORKDIR = flags.DEFINE_string("workdir", "out/digits", "Where everything is kept.")
_IPC = flags.DEFINE_list("ipc", ["10"], "Images per class.")
_PROTOCOLS = flags.DEFINE_list("protocols", ["dc_hard", "edc_soft"], "Their names.")
_STUDENTS = flags.DEFINE_list("students", [], "Networks; default the protocol's.")
_NAMES = flags.DEFINE_list(
    "names", ["ot_dd", "no_otg", "no_refine", *plan.BASELINES], "Sets to compare."
)
_SETS = flags.DEFINE_integer("sets", 3, "Sets of each kind.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Students of each set.")
_EPOCHS = flags.DEFINE_integer("epochs", 0, "Passes instead of the protocols'.")
_JSON = flags.DEFINE_string("json", "", "Where the table is written.")


def describe_set(work, prepared, image_set, real) -> dict[str, float]:
    """Returns the geometry of a set in the first teacher's features, mean of classes."""

    def make():
        pixels, _ = image_set.flat()
        features = in_batches(
            class_features, (prepared.teachers[0],), to_float(jnp.asarray(pixels))
        )
        own = features.reshape(*image_set.images.shape[:2], -1)
        classes = [geometry.describe_class(r, s) for r, s in zip(real, own)]
        means = {k: float(np.mean([c[k] for c in classes])) for k in classes[0]}
        return means | {
            "frechet": geometry.frechet_distance(np.concatenate(real), features)
        }

    key = fingerprint(image_set.key, prepared.key)
    return work.json(f"geometry-{image_set.name}-{image_set.seed}-{key}", make)


def correlations(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Returns Spearman's correlation of each geometry figure with each accuracy.

    Args:
      rows: `{"geometry": {...}, "accuracy": {column: value}}` of each set.
    """
    found: dict = {}
    for column in rows[0]["accuracy"]:
        reached = [row["accuracy"][column] for row in rows]
        for name in rows[0]["geometry"]:
            values = [row["geometry"][name] for row in rows]
            rank = stats.spearmanr(values, reached).statistic
            found.setdefault(name, {})[column] = round(float(rank), 3)
    return found


def main(_):
    """Runs every protocol, then writes records, geometry and correlations."""
    logging.set_verbosity(logging.WARNING)
    work = WorkDir(Path(_WORKDIR.value))
    report: dict = {"table": [], "geometry": [], "protocols": {}}
    for ipc in map(int, _IPC.value):
        config = copy.deepcopy(_CONFIG.value)
        config.ipc = ipc
        prepared = prepare(config, work)
        features = in_batches(
            class_features,
            (prepared.teachers[0],),
            to_float(jnp.asarray(prepared.dataset.test.images)),
        )
        labels = prepared.dataset.test.labels
        classes = range(len(prepared.dataset.class_names))
        real = [features[labels == c] for c in classes]
        records = []
        for protocol in _PROTOCOLS.value:
            found = evaluate(
                config, work.path, protocol=protocol, baselines=tuple(_NAMES.value),
                sets=_SETS.value, students=tuple(_STUDENTS.value), seeds=_SEEDS.value,
                epochs=_EPOCHS.value,
            )  # fmt: skip
            records += found["records"]
            report["protocols"][protocol] = {
                k: found[k] for k in ("protocol_source", "protocol_epochs", "teachers")
            }
            report["versions"] = found["versions"]
        rows = []
        sets = make_sets(config, work, prepared, _NAMES.value, _SETS.value, data_mesh())
        for name, several in sets.items():
            for seed, made in enumerate(several):
                reached: dict = {}
                for r in records:
                    if (r["set"], r["set_seed"]) == (name, seed):
                        column = f"{r['protocol']} {r['student']}"
                        reached.setdefault(column, []).append(r["accuracy"])
                rows.append(
                    {
                        "set": name, "set_seed": seed, "ipc": ipc,
                        "geometry": describe_set(work, prepared, made, real),
                        "accuracy": {k: float(np.mean(v)) for k, v in reached.items()},
                    }
                )  # fmt: skip
        report["geometry"].append(
            {"ipc": ipc, "sets": rows, "correlations": correlations(rows)}
        )
        report["table"] += [
            {k: v for k, v in record.items() if k != "curve"} for record in records
        ]
    report |= {
        "epochs_changed_to": _EPOCHS.value or None,
        "titles": {name: plan.TITLES[name] for name in _NAMES.value},
    }
    if _JSON.value:
        write_json(Path(_JSON.value), report)


if __name__ == "__main__":
    app.run(main)
