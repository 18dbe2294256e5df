"""Judges any distilled set, or a baseline, under one named protocol.

    python -m ot_dd.evaluate --distilled=[name=]DIR,... --protocol=edc_soft
        [--students=convnet3:width=32,resnet18:stem=cifar] [--seeds=5]
        [--baselines=random,kmeans] [--sets=3] [--reference=random]
        [--config=configs/fashion_mnist.py] [--workdir=DIR] [--json=FILE]

DIR is a `distilled/` folder, or an image folder made by anybody else: one folder for each
class. The config says which data to test on and which teachers label; with the work
directory of a `distill` run its teachers and networks are there already. Protocols are in
`ot_dd/training/protocols.py`. What was trained is kept: the same command again goes on.
"""

from pathlib import Path

from absl import app, flags, logging

import ot_dd.environment  # noqa: F401 - before JAX
from ot_dd.command import config_flag, exit_code, json_flag, parse_flags

_CONFIG = config_flag(
    "The data to test on and the teachers; `file.py:switch` passes a switch."
)
_DISTILLED = flags.DEFINE_list("distilled", [], "Folders to judge, as [name=]DIR.")
_PROTOCOL = flags.DEFINE_string(
    "protocol",
    "edc_soft",
    "dc_plain, dc_hard, dsa_hard, minimax_hard, edc_soft, rded_soft or rd3.",
)
_STUDENTS = flags.DEFINE_list(
    "students", [], "Networks, as name[:option=value...]; default the protocol's."
)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Students of each set.", lower_bound=1)
_BASELINES = flags.DEFINE_list(
    "baselines", [], "Sets to make and judge beside the folders, such as random."
)
_SETS = flags.DEFINE_integer("sets", 3, "Sets of each baseline.", lower_bound=1)
_REFERENCE = flags.DEFINE_string(
    "reference", "", "The set that differences are from; random real images, or ot_dd."
)
_EPOCHS = flags.DEFINE_integer(
    "epochs", 0, "Passes over a set instead of the protocol's; 0 keeps those.",
    lower_bound=0,
)  # fmt: skip
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "What is scored.")
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "Where all is kept; default out/<name of the config>."
)
_JSON = json_flag("Where to write everything that was found.")


def main(_):
    """Parses the flags and runs; a wrong one is one line and exit code 2."""
    logging.set_verbosity(logging.WARNING)
    return exit_code(_judge)


def _judge():
    from ot_dd.checkpoint import write_json
    from ot_dd.config import ConfigError, nearest
    from ot_dd.stages.evaluation import evaluate, parse_sets
    from ot_dd.stages.report import print_table
    from ot_dd.stages.summary import METHOD, as_json, find_reference, summarise
    from ot_dd.stages.vocabulary import VARIANTS

    config = _CONFIG.value
    judged = [name for name, _, _ in parse_sets(_DISTILLED.value, ())]
    # Of the variants' students the images are ot_dd's.
    judged += [name for name in _BASELINES.value if name not in VARIANTS]
    if _REFERENCE.value and _REFERENCE.value not in judged:
        raise ConfigError(
            f"--reference is {_REFERENCE.value!r}{nearest(_REFERENCE.value, judged)}; "
            f"sets that are judged are {', '.join(judged)}"
        )
    found = evaluate(
        config,
        Path(_WORKDIR.value or Path("out") / config.name),
        protocol=_PROTOCOL.value,
        distilled=tuple(_DISTILLED.value),
        baselines=tuple(_BASELINES.value),
        sets=_SETS.value,
        students=tuple(_STUDENTS.value),
        seeds=_SEEDS.value,
        epochs=_EPOCHS.value,
        split=_SPLIT.value,
    )
    names = [record["set"] for record in found["records"]]
    reference = _REFERENCE.value or find_reference(names) or METHOD
    rows = summarise(found["records"], found["sets"], reference=reference)
    print_table(rows, split=_SPLIT.value, against=reference)
    if _JSON.value:
        found["summary"] = {"reference": reference, "rows": as_json(rows)}
        write_json(Path(_JSON.value), found)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
