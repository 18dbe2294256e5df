"""Compares settings on the validation split, never on the test set.

    python -m benchmarks.tune --config=configs/digits.py --workdir=out/digits \
        --json=docs/tuning_digits.json --trial="ot_dd" \
        --trial="no_refine guidance.transport.strength=0.6" --labels=hard

Each trial is the name of a set and changes of config fields; networks come from the
work directory. Set seeds start at 100, so that none of the reported sets was tuned on.
"""

import ast
import json
import re
from pathlib import Path

import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

import ot_dd.environment  # noqa: F401 - before JAX
from ot_dd.checkpoint import write_json
from ot_dd.parallel import data_mesh, side_by_side
from ot_dd.stages.prepare import prepare
from ot_dd.stages.relabel import relabel, teachers_for
from ot_dd.stages.sets import make_set
from ot_dd.stages.train import train
from ot_dd.validation import validate
from ot_dd.workdir import WorkDir

_CONFIG = config_flags.DEFINE_config_file("config", "configs/digits.py")
_WORKDIR = flags.DEFINE_string("workdir", "out/digits", "Where the networks are.")
_TRIALS = flags.DEFINE_multi_string("trial", [], "A set's name and field=value pairs.")
_LABELS = flags.DEFINE_list("labels", ["hard"], "hard, soft or both.")
_SETS = flags.DEFINE_integer("sets", 2, "Sets of each trial.")
_STUDENTS = flags.DEFINE_integer("students", 2, "Students of each set.")
_JSON = flags.DEFINE_string(
    "json",
    "",
    "Writes each trial's result into this file, in place of one of the same words.",
)


def changed(config, trial: str):
    """Returns the set's name and a copy of the config with the trial's changes."""
    name, *changes = re.split(r"\s+(?=[\w.]+=)", trial.strip())  # Tuples have spaces.
    config = config.copy_and_resolve_references()
    for change in changes:
        field, value = change.split("=", 1)
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            pass  # a word: a string field
        config.update_from_flattened_dict({field: value})
    validate(config)
    return name, config


def main(_):
    """Runs the trials in order and prints a line for each."""
    logging.set_verbosity(logging.WARNING)
    work = WorkDir(Path(_WORKDIR.value))
    mesh = data_mesh()
    for trial in _TRIALS.value:
        name, config = changed(_CONFIG.value, trial)
        prepared = prepare(config, work)
        row = {"trial": trial}
        with side_by_side(work.metrics.stop) as submit:
            jobs = [
                submit(make_set, config, work, prepared, name, 100 + number, mesh)
                for number in range(_SETS.value)
            ]
            sets = [job.result() for job in jobs]
        for labels in _LABELS.value:
            count = teachers_for(config, config.ipc)
            runs = [
                (
                    made,
                    relabel(config, work, prepared, made, teachers=count)
                    if labels == "soft"
                    else None,
                )
                for made in sets
            ]
            records = train(
                config, work, prepared, runs, split="validation",
                students=_STUDENTS.value,
            )  # fmt: skip
            scores = [record["accuracy"] for record in records]
            deviation = float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0
            row[labels] = {
                "mean": float(np.mean(scores)), "std": deviation, "runs": len(scores),
                # Of each set its students': seeds are those of every trial.
                "scores": np.reshape(scores, (len(sets), -1)).round(5).tolist(),
            }  # fmt: skip
            print(
                f"{labels} {100 * np.mean(scores):5.1f} ± {100 * deviation:.1f}  {trial}",
                flush=True,
            )
        if _JSON.value:
            path = Path(_JSON.value)
            rows = json.loads(path.read_text()) if path.exists() else []
            write_json(path, [r for r in rows if r["trial"] != trial] + [row])


if __name__ == "__main__":
    app.run(main)
