"""Judges any distilled set, or a baseline, under one named protocol.

    python -m ot_dd.evaluate --distilled=DIR[,DIR] --protocol=edc_soft
        [--students=convnet3:width=32,resnet18:stem=cifar] [--seeds=5]
        [--baselines=random,kmeans] [--sets=3]
        [--config=configs/fashion_mnist.py] [--workdir=DIR] [--json=FILE]

DIR is a `distilled/` folder, or an image folder made by anybody else: one folder for each
class. The config says which data to test on and which teachers label; with the work
directory of a `distill` run its teachers and networks are there already. Protocols are in
`ot_dd/training/protocols.py`. What was trained is kept: the same command again goes on.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")

import copy
import sys
from functools import partial
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from ot_dd.config import ConfigError, nearest, validate

_ROOT = Path(__file__).resolve().parent.parent


def parse_student(text: str) -> tuple[str, dict]:
    """Returns name and options of `name[:option=value...]`, such as `convnet3:width=32`.

    Raises:
      ConfigError: for an option without a value.
    """
    name, *pairs = text.split(":")
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not value:
            raise ConfigError(
                f"--students has {text!r}: options are written name:option=value"
            )
        options[key] = int(value) if value.lstrip("-").isdigit() else value
    return name, options


def run(
    config,
    workdir: Path,
    *,
    protocol: str,
    distilled: tuple[Path, ...] = (),
    baselines: tuple[str, ...] = (),
    sets: int = 1,
    students: tuple[str, ...] = (),
    seeds: int = 5,
    epochs: int = 0,
    split: str = "test",
) -> dict:
    """Trains students on sets of images and returns what they reached.

    Args:
      config: a config; its `ipc` is the baselines'.
      workdir: where teachers, baselines and records are kept.
      protocol: a name of `PROTOCOLS`.
      distilled: folders of images to judge.
      baselines: sets to make: names of `plan.BASELINES`, or `ot_dd`.
      sets: how many of each baseline.
      students: as `parse_student` reads; default the protocol's.
      seeds: students of each set.
      epochs: passes instead of the protocol's; 0 keeps the protocol's.
      split: "test", or "validation" for choosing.

    Returns:
      Protocol, records, and a summary for each set, student and IPC.

    Raises:
      ConfigError: for names that are not known, or nothing to judge.
      ValueError: for folders that do not fit the data.
    """
    from ot_dd.parallel import data_mesh
    from ot_dd.stages import plan
    from ot_dd.stages.folders import read_image_set
    from ot_dd.stages.prepare import prepare, prepare_teachers
    from ot_dd.stages.results import versions
    from ot_dd.stages.study import make_set
    from ot_dd.training.protocols import get_protocol
    from ot_dd.workdir import WorkDir

    chosen = get_protocol(protocol)
    students = students or chosen.students
    _check_students(students)
    known = (*plan.BASELINES, "ot_dd")
    for name in baselines:
        if name not in known:
            raise ConfigError(
                f"--baselines has {name!r}{nearest(name, known)}; known are "
                f"{', '.join(known)}"
            )
    if not distilled and not baselines:
        raise ConfigError("nothing to judge: give --distilled=DIR or --baselines=NAME")
    validate(config)
    work = WorkDir(workdir)
    teachers = _teachers(config, chosen) if chosen.labels == "soft" else 0
    if baselines:
        prepared = prepare(config, work)
    else:
        prepared = prepare_teachers(config, work, teachers)
    image_sets = []
    for seed, folder in enumerate(distilled):
        image_set, note = read_image_set(folder, prepared.dataset, seed=seed)
        work.metrics.say(f"  {folder}: {note}")
        image_sets.append(image_set)
    mesh = data_mesh() if baselines else None
    for name in baselines:
        for seed in range(sets):
            image_sets.append(make_set(config, work, prepared, name, seed, mesh))
    records = []
    for student in students:
        for ipc in sorted({made.images.shape[1] for made in image_sets}):
            alike = [made for made in image_sets if made.images.shape[1] == ipc]
            records += _train(
                config, work, prepared, alike, student, protocol=protocol,
                teachers=teachers, seeds=seeds, epochs=epochs, split=split,
            )  # fmt: skip
    titles = {r["set"]: {"title": plan.TITLES.get(r["set"], r["set"])} for r in records}
    return {
        "protocol": protocol,
        "protocol_source": chosen.source,
        "protocol_epochs": {
            str(ipc): chosen.epochs_for(ipc) for ipc in {r["ipc"] for r in records}
        },
        "epochs_changed_to": epochs or None,
        "data": {"name": prepared.dataset.name, "split": split},
        "teachers": [t["name"] for t in prepared.facts["teachers"][:teachers]],
        "sets": titles,
        "records": records,
        "versions": versions(),
    }


def _check_students(students):
    from ot_dd import models

    names = models.names()
    for text in students:
        name, _ = parse_student(text)
        if name not in names:
            raise ConfigError(
                f"--students names {name!r}, which is no registered model"
                f"{nearest(name, names)}; the registry has {', '.join(names)}"
            )


def _teachers(config, protocol) -> int:
    """Returns how many of the config's teachers label under a protocol."""
    from ot_dd.stages.relabel import teachers_for

    return min(
        protocol.teachers or teachers_for(config, config.ipc),
        len(config.teachers.models),
    )


def _train(
    config, work, prepared, image_sets, student, *, protocol, teachers, seeds, epochs,
    split,
):  # fmt: skip
    """Returns the records of the students of sets of one size."""
    from ot_dd.parallel import side_by_side
    from ot_dd.stages.relabel import relabel
    from ot_dd.stages.train import train
    from ot_dd.training.protocols import apply_protocol

    classes, ipc = image_sets[0].images.shape[:2]
    settings = copy.deepcopy(config)
    with settings.unlocked():
        settings.student.model, options = parse_student(student)
        settings.student.options = options
        apply_protocol(settings, protocol, ipc=ipc, classes=classes, epochs=epochs)
    settings.lia.views = 0  # A view of its own for every pass.
    soft = [None] * len(image_sets)
    if teachers:
        write = partial(relabel, settings, work, prepared, teachers=teachers)
        with side_by_side(work.metrics.stop) as submit:
            soft = [job.result() for job in [submit(write, s) for s in image_sets]]
    records = train(
        settings, work, prepared, list(zip(image_sets, soft)), students=seeds,
        split=split, progress=f"{protocol}, {student}, {ipc} per class",
    )  # fmt: skip
    for number, record in enumerate(records):
        number //= seeds
        record["student"] = student
        record["protocol"] = protocol
        record["images_seen"] = record["steps"] * record["batch_size"]
        record["image_bytes"] = int(image_sets[number].images.nbytes)
        record["soft_label_bytes"] = soft[number].bytes() if soft[number] else 0
    return records


_CONFIG = config_flags.DEFINE_config_file(
    "config",
    str(_ROOT / "configs" / "digits.py"),
    "The data to test on and the teachers; `file.py:switch` passes a switch.",
    lock_config=True,
)
_DISTILLED = flags.DEFINE_list("distilled", [], "Folders of images to judge.")
_PROTOCOL = flags.DEFINE_string(
    "protocol", "edc_soft", "dc_hard, minimax_hard, edc_soft, rded_soft or rd3."
)
_STUDENTS = flags.DEFINE_list(
    "students", [], "Networks, as name[:option=value...]; default the protocol's."
)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Students of each set.", lower_bound=1)
_BASELINES = flags.DEFINE_list(
    "baselines", [], "Sets to make and judge beside the folders, such as random."
)
_SETS = flags.DEFINE_integer("sets", 3, "Sets of each baseline.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer(
    "epochs", 0, "Passes over a set instead of the protocol's; 0 keeps those.",
    lower_bound=0,
)  # fmt: skip
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "What is scored.")
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "Where all is kept; default out/<name of the config>."
)
_JSON = flags.DEFINE_string("json", "", "Where to write everything that was found.")


def main(argv):
    """Parses the flags and runs; a wrong one is one line and exit code 2."""
    if len(argv) > 1:
        print(f"unexpected argument {argv[1]!r}: see --help", file=sys.stderr)
        return 2
    logging.set_verbosity(logging.WARNING)
    config = _CONFIG.value
    workdir = Path(_WORKDIR.value or Path("out") / config.name)
    try:
        found = run(
            config,
            workdir,
            protocol=_PROTOCOL.value,
            distilled=tuple(map(Path, _DISTILLED.value)),
            baselines=tuple(_BASELINES.value),
            sets=_SETS.value,
            students=tuple(_STUDENTS.value),
            seeds=_SEEDS.value,
            epochs=_EPOCHS.value,
            split=_SPLIT.value,
        )
    except (ValueError, FileNotFoundError) as error:
        if os.environ.get("OT_DD_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    from ot_dd.checkpoint import write_json
    from ot_dd.stages.report import print_table, summarise

    print_table(summarise(found["records"], found["sets"]))
    if _JSON.value:
        write_json(Path(_JSON.value), found)
    return 0


if __name__ == "__main__":
    app.run(main)
