"""What a run would cost on a TPU slice, before anyone rents it.

    python -m ot_dd.plan --config=configs/imagenet1k.py:ipc50 --topology=v5e:16x16
                         [--topologies=v5e:2x4,v5e:16x16] [--stages=sample] [--json=FILE]

Compiles every program of the run with the real TPU compiler, for chips that are not
here: memory a chip, operations and bytes, messages between chips, and from the
compiler's own estimates the hours of each stage. Exits with 1 when something does not
fit, and says which config field to change. Compiled programs' facts are kept in --cache:
the same command again is quick, and an interrupted one goes on.

Needs the compiler: `pip install "ot-dd[plan]"`.

The estimates assume: programs run at the compiler's cycles or at peak operations,
whichever takes longer, and never wait for data; messages move at full link speed and
hide behind nothing; the slice does one stage after another; compilation, checkpoints,
the exact transport of the report, the fine-tuning of the baseline `minimax` and memory
that other stages still hold are not counted.
"""

import os

os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["JAX_PLATFORMS"] = "cpu"

from pathlib import Path

from absl import app, flags, logging

from ot_dd.command import config_flag, exit_code, json_flag, parse_flags

_CONFIG = config_flag("The run's config; `file.py:switch` passes a switch.")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "The slice, as version:AxB[xC].")
_TOPOLOGIES = flags.DEFINE_list("topologies", [], "Several slices, to compare.")
_STAGES = flags.DEFINE_list("stages", [], "Only these stages; default all.")
_IMAGES = flags.DEFINE_integer(
    "images", 0, "Training images, where the data set is not here to be read."
)
_TEST_IMAGES = flags.DEFINE_integer("test_images", 0, "Images to evaluate on.")
_CLASSES = flags.DEFINE_integer("classes", 0, "Number of classes.")
_CACHE = flags.DEFINE_string("cache", "out/plan", "Where compiled programs' facts are.")
_JSON = json_flag("Where to write everything as JSON.")


def main(_):
    """Parses the flags, compiles and prints; 1 when something does not fit."""
    logging.set_verbosity(logging.ERROR)
    found = {}

    def work():
        from ot_dd.checkpoint import write_json
        from ot_dd.planning.estimate import estimate, print_comparison, print_plan
        from ot_dd.planning.sizes import sizes_of
        from ot_dd.validation import validate

        config = _CONFIG.value
        validate(config)
        sizes = sizes_of(config, _IMAGES.value, _TEST_IMAGES.value, _CLASSES.value)
        for topology in _TOPOLOGIES.value or [_TOPOLOGY.value]:
            found[topology] = estimate(
                config, sizes, topology, _STAGES.value, Path(_CACHE.value)
            )
            print_plan(found[topology])
        if len(found) > 1:
            print_comparison(found)
        if _JSON.value:
            write_json(Path(_JSON.value), found)

    code = exit_code(work, saves=False)
    return code or int(not all(plan["fits"] for plan in found.values()))


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
