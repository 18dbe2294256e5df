"""Any sets of images, students trained on them under one protocol, and their records."""

import ast
import copy
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from ot_dd import models
from ot_dd.config import ConfigError, nearest, to_dict
from ot_dd.parallel import data_mesh, side_by_side
from ot_dd.stages import vocabulary
from ot_dd.stages.folders import read_image_set
from ot_dd.stages.prepare import (
    MISFITS,
    check_ipc,
    load_data,
    prepare,
    prepare_teachers,
)
from ot_dd.stages.relabel import relabel, teachers_for
from ot_dd.stages.results import command, versions
from ot_dd.stages.sets import make_sets
from ot_dd.stages.study import changes_nothing, variant_of
from ot_dd.stages.train import recipe_of, train
from ot_dd.training.protocols import apply_protocol, get_protocol
from ot_dd.validation import validate
from ot_dd.workdir import WorkDir


def parse_student(text: str) -> tuple[str, dict]:
    """Returns name and options of `name[:option=value...]`, such as `convnet3:width=32`.

    Values are numbers, `true`, `false` or words.

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
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = {"true": True, "false": False}.get(value.lower(), value)
    return name, options


def parse_sets(texts: Sequence[str], reserved: Sequence[str]) -> list[tuple]:
    """Returns `(name, seed, directory)` of each `[name=]DIR`.

    Folders of one name are sets of one method, numbered in their order. Without a name a
    folder is called after itself (`distilled/` after the folder above it).

    Raises:
      ConfigError: for a name that a set of ours has, or two folders called alike.
    """
    found: list[tuple] = []
    for text in texts:
        name, equals, directory = text.partition("=")
        equals = "" if Path(text).is_dir() else equals  # A sign of the path's own.
        path = Path(directory if equals else text)
        if not equals:
            parts = [p for p in path.absolute().parts[-2:] if p != "distilled"]
            name = (parts or ["distilled"])[-1]
        name = re.sub(r"[^\w.-]+", "-", name)
        if name in reserved:
            raise ConfigError(
                f"--distilled has {text!r}: {name!r} is the name of a set made here; "
                f"give another as --distilled=name={path}"
            )
        count = sum(name == other for other, _, _ in found)
        if count and not equals:
            raise ConfigError(
                f"--distilled has two folders called {name!r}: give each a name as "
                "name=DIR, or both the same name if they are sets of one method"
            )
        found.append((name, count, path))
    return found


def check_sets(names: Sequence[str], flag: str) -> None:
    """Raises ConfigError, which begins with the flag, unless all sets are known."""
    for name in names:
        if name not in vocabulary.TITLES:
            raise ConfigError(
                f"{flag} has {name!r}{nearest(name, vocabulary.TITLES)}; known are "
                f"{', '.join(vocabulary.TITLES)}"
            )


def evaluate(
    config,
    workdir: Path,
    *,
    protocol: str,
    distilled: tuple[str, ...] = (),
    baselines: tuple[str, ...] = (),
    sets: int = 1,
    students: tuple[str, ...] = (),
    seeds: int = 5,
    epochs: int = 0,
    split: str = "test",
) -> dict:
    """Trains students on sets of images and returns what they reached.

    Args:
      config: a config; its `ipc` is that of the baselines where no folder is judged.
      workdir: where teachers, baselines and records are kept.
      protocol: a name of `PROTOCOLS`.
      distilled: folders of images to judge, as `parse_sets` reads.
      baselines: sets to make: names of `vocabulary.TITLES`. Those of
        `vocabulary.VARIANTS` are the full method's sets, learned from otherwise; a
        protocol that fixes its labels and its loss has none.
      sets: how many of each baseline.
      students: as `parse_student` reads; default the protocol's.
      seeds: students of each set.
      epochs: passes instead of the protocol's; 0 keeps the protocol's.
      split: "test", or "validation" for choosing.

    Returns:
      The protocol, the recipe that it came to, and a record for each student.

    Raises:
      ConfigError: for names that are not known, or nothing to judge.
      ValueError: for folders that do not fit the data.
    """
    chosen = get_protocol(protocol)
    students = students or chosen.students
    check_sets(baselines, "--baselines")
    variants = [name for name in baselines if name in vocabulary.VARIANTS]
    baselines = tuple(name for name in baselines if name not in variants)
    if variants and "ot_dd" not in baselines:
        raise ConfigError(
            f"--baselines has {variants[0]!r}, which is learned from the images of "
            "ot_dd: name ot_dd as well"
        )
    if not distilled and not baselines:
        raise ConfigError("nothing to judge: give --distilled=DIR or --baselines=NAME")
    given = parse_sets(distilled, tuple(vocabulary.TITLES))
    validate(config)
    work = WorkDir(workdir)
    loaded = load_data(config)
    dataset = loaded[0]
    _check_students(students, dataset)
    image_sets = []
    for name, seed, folder in given:
        image_set, note = read_image_set(folder, dataset, name=name, seed=seed)
        work.metrics.say(f"  {name}, {folder}: {note}")
        image_sets.append(image_set)
    ipcs = sorted({made.images.shape[1] for made in image_sets}) or [config.ipc]
    if baselines:  # As many images as the folders have.
        check_ipc(
            ipcs[-1], dataset, "the images per class of a folder, and of baselines,"
        )
    sized = []
    for ipc in ipcs if baselines else ():
        sized.append(config.copy_and_resolve_references())
        sized[-1].ipc = ipc
        validate(sized[-1])
    if set(baselines) <= set(vocabulary.WITHOUT_GENERATOR):
        count = max(_teachers(config, chosen, ipc) for ipc in ipcs)
        if set(baselines) - {"random"}:
            count = max(1, count)
        prepared = prepare_teachers(config, work, count, loaded)
    else:
        prepared = prepare(config, work, loaded)
    for one in sized:
        made = make_sets(one, work, prepared, baselines, sets, data_mesh())
        image_sets += [own for several in made.values() for own in several]
    if variants and not chosen.ours:
        work.metrics.say(
            f"  {', '.join(variants)}: left out, {protocol} fixes labels and loss"
        )
        variants = []
    if epochs:
        work.metrics.say(f"  {epochs} passes instead of the protocol's")
    records = []
    for student in students:
        for ipc in sorted({made.images.shape[1] for made in image_sets}):
            alike = [made for made in image_sets if made.images.shape[1] == ipc]
            learn = partial(
                _train, config, work, prepared, student=student, protocol=protocol,
                teachers=_teachers(config, chosen, ipc), seeds=seeds, epochs=epochs,
                split=split,
            )  # fmt: skip
            records += learn(alike)
            own = [made for made in alike if made.name == "ot_dd"]
            for variant in variants if own else ():
                if not changes_nothing(config, variant, _teachers(config, chosen, ipc)):
                    records += learn(own, variant=variant)
    titles = {
        r["set"]: {"title": vocabulary.TITLES.get(r["set"], r["set"])} for r in records
    }
    return {
        "protocol": protocol,
        "protocol_source": chosen.source,
        "protocol_epochs": {
            str(ipc): chosen.epochs_for(ipc)
            for ipc in sorted({r["ipc"] for r in records})
        },
        "epochs_changed_to": epochs or None,
        "command": command(),
        "config": to_dict(config),
        "recipes": {
            str(ipc): _recipe(config, chosen, protocol, ipc, dataset, epochs)
            for ipc in sorted({r["ipc"] for r in records})
        },
        "data": {"name": prepared.dataset.name, "split": split},
        "teachers": {
            str(ipc): [
                t.name for t in prepared.teachers[: _teachers(config, chosen, ipc)]
            ]
            for ipc in sorted({r["ipc"] for r in records})
        },
        "sets": titles,
        "records": records,
        "versions": versions(),
    }


def _check_students(students, dataset):
    """Builds every student on the data's shape, so that none fails after hours."""
    names = models.names("classifier")
    shape = dataset.train.images.shape[1:]
    image = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    for text in students:
        name, options = parse_student(text)
        if name not in names:
            raise ConfigError(
                f"--students names {name!r}, which is no registered classifier"
                f"{nearest(name, names)}; the registry has {', '.join(names)}"
            )
        try:
            module = models.create(
                name, num_classes=len(dataset.class_names), **options
            )
            jax.eval_shape(
                lambda x, m=module: m.init(jax.random.key(0), x, train=True), image
            )
        except MISFITS as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"--students has {text!r}, which does not fit images of {shape}: {reason}"
            ) from error


def _teachers(config, protocol, ipc: int) -> int:
    """Returns how many of the config's teachers label a set, 0 with hard labels."""
    if protocol.labels == "hard":
        return 0
    wanted = protocol.teachers or teachers_for(config, ipc)
    return min(wanted, len(config.teachers.models))


def _recipe(config, chosen, protocol, ipc, dataset, epochs):
    """Returns everything that students of a size are trained by, protocol's or config's."""
    settings = copy.deepcopy(config)
    classes = len(dataset.class_names)
    apply_protocol(settings, protocol, ipc=ipc, classes=classes, epochs=epochs)
    recipe = recipe_of(settings, chosen.labels)
    return recipe._asdict() | {"augment": recipe.augment._asdict()}


def _train(
    config, work, prepared, image_sets, *, student, protocol, teachers, seeds, epochs,
    split, variant="",
):  # fmt: skip
    """Returns the records of the students of sets of one size."""
    classes, ipc = image_sets[0].images.shape[:2]
    settings = copy.deepcopy(config)
    with settings.unlocked():
        settings.student.model, options = parse_student(student)
        settings.student.options = options
        apply_protocol(settings, protocol, ipc=ipc, classes=classes, epochs=epochs)
    settings.lia.views = 0  # A view of its own for every pass.
    soft = [None] * len(image_sets)
    teachers, changes = variant_of(config, variant, teachers)
    if teachers:
        write = partial(relabel, settings, work, prepared, teachers=teachers)
        with side_by_side(work.metrics.stop) as submit:
            soft = [job.result() for job in [submit(write, s) for s in image_sets]]
    records = train(
        settings, work, prepared, list(zip(image_sets, soft)), students=seeds,
        split=split, variant=variant, **changes,
        progress=f"{protocol}, {student}, {ipc} per class {variant}".rstrip(),
    )  # fmt: skip
    for number, record in enumerate(records):
        number //= seeds
        record["student"] = student
        record["protocol"] = protocol
        record["images_seen"] = record["steps"] * record["batch_size"]
        record["image_bytes"] = int(image_sets[number].images.nbytes)
        record["soft_label_bytes"] = soft[number].bytes() if soft[number] else 0
    return records
