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

import ot_dd.environment  # noqa: F401 - before JAX
from ot_dd.checkpoint import write_json
from ot_dd.command import config_flag, exit_code, json_flag, parse_flags
from ot_dd.config import ConfigError
from ot_dd.parallel import data_mesh, side_by_side
from ot_dd.stages import vocabulary
from ot_dd.stages.evaluation import check_sets
from ot_dd.stages.prepare import prepare
from ot_dd.stages.relabel import relabel, teachers_for
from ot_dd.stages.sets import make_set
from ot_dd.stages.train import train
from ot_dd.validation import validate
from ot_dd.workdir import WorkDir

_CONFIG = config_flag("The config that trials change.")
_WORKDIR = flags.DEFINE_string("workdir", "out/digits", "Where the networks are.")
_TRIALS = flags.DEFINE_multi_string("trial", [], "A set's name and field=value pairs.")
_LABELS = flags.DEFINE_list("labels", ["hard"], "hard, soft or both.")
_SETS = flags.DEFINE_integer("sets", 2, "Sets of each trial.")
_STUDENTS = flags.DEFINE_integer("students", 2, "Students of each set.")
_JSON = json_flag(
    "Writes each trial's result into this file, in place of one of the same words."
)


def changed(config, trial: str):
    """Returns the set's name and a copy of the config with the trial's changes.

    Raises:
      ConfigError: for a set or a field that is not known, or a value that cannot be.
    """
    name, *changes = re.split(r"\s+(?=[\w.]+=)", trial.strip())  # Tuples have spaces.
    config = config.copy_and_resolve_references()
    for change in changes:
        field, value = change.split("=", 1)
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            pass  # a word: a string field
        try:
            config.update_from_flattened_dict({field: value})
        except (AttributeError, KeyError) as error:
            near = re.search(r'Did you mean "([\w.]+)"', str(error))
            hint = f" (did you mean {near[1]!r}?)" if near else ""
            raise ConfigError(
                f"--trial has {field}, which the config has not{hint}"
            ) from error
        except TypeError as error:
            raise ConfigError(f"--trial has {change}: {error}") from error
    check_sets([name], "--trial")
    if name in vocabulary.VARIANTS:
        raise ConfigError(f"--trial has {name!r}: it is learned otherwise, and no set")
    validate(config)
    return name, config


def _run():
    """Runs the trials in order and prints a line for each."""
    if not _TRIALS.value:
        raise ConfigError("nothing to try: give --trial='ot_dd' or more")
    for labels in _LABELS.value:
        if labels not in ("hard", "soft"):
            raise ConfigError(f"--labels has {labels!r}: must be hard, soft or both")
    trials = [(trial, *changed(_CONFIG.value, trial)) for trial in _TRIALS.value]
    work = WorkDir(Path(_WORKDIR.value))
    mesh = data_mesh()
    for trial, name, config in trials:
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


def main(_):
    """Parses the flags and runs; a mistake is one line and exit code 2."""
    logging.set_verbosity(logging.WARNING)
    return exit_code(_run)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
