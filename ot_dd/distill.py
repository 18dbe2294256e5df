"""The whole pipeline: real images to a distilled set, trained students and a report.

    python -m ot_dd.distill [--config=configs/digits.py] [--workdir=DIR]
                            [--stages=sample,relabel] [--config.ipc=10]

The stages, in their order:
    prepare  reads the data; trains, or restores, autoencoder, denoiser, teachers and
             the surrogate of influence guidance
    sample   generates each class by diffusion, steered by transport to real latents
    refine   moves the latents to lower a Sinkhorn divergence between features
    relabel  writes soft labels by the teacher ensemble, and the product, `distilled/`
    train    trains students on the set, its ablations and the baselines
    report   writes results.json and report.html

Every stage keeps what it makes in the work directory; the same command again goes on
where it stopped, and a changed field makes only what depends on it. Results, report and
`distilled/` are those of the last run: copy the directory first to keep both.

--config=FILE.py[:switch] is a Python file such as those in configs/ (:debug shrinks it);
its fields are explained in configs/common.py, and --config.field=value changes one.
"""

import time
from pathlib import Path

from absl import app, flags, logging

import ot_dd.environment  # noqa: F401 - before JAX
from ot_dd.command import config_flag, exit_code, parse_flags
from ot_dd.config import ConfigError, fingerprint, to_dict

_CONFIG = config_flag(
    "The run's config; `file.py:switch` passes a switch, such as :debug."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "Where everything is kept; default out/<name of the config>."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "host:port of the first of several processes, or auto."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "How many there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Which one this is, from 0.")
_TENSORBOARD = flags.DEFINE_bool(
    "tensorboard",
    False,
    "Losses also as TensorBoard's events, in <workdir>/tensorboard.",
)
_STAGES = flags.DEFINE_list(
    "stages",
    [],
    "Stop after the last of these; what is there is restored. Default all.",
)


def run(
    config, workdir: Path, stages: tuple[str, ...] = (), *, tensorboard: bool = False
) -> dict:
    """Runs the pipeline.

    Args:
      config: a locked config.
      workdir: the work directory.
      stages: names from `vocabulary.STAGES`: the run ends after the last of them; empty
        is all. What earlier stages made is restored, or made.
      tensorboard: whether losses go to TensorBoard's event files as well.

    Returns:
      What `results.json` holds; nothing from a run that ends before the report.

    Raises:
      ConfigError: for a config or stage name that cannot be.
    """
    from ot_dd.parallel import check_alike, data_mesh
    from ot_dd.stages import vocabulary
    from ot_dd.stages.distilled import write_distilled
    from ot_dd.stages.prepare import load_data, prepare
    from ot_dd.stages.results import write_config, write_results
    from ot_dd.stages.sets import distil
    from ot_dd.stages.study import run_study
    from ot_dd.validation import validate
    from ot_dd.workdir import WorkDir

    for stage in stages:
        if stage not in vocabulary.STAGES:
            raise ConfigError(
                f"--stages names {stage!r}; the stages are {', '.join(vocabulary.STAGES)}"
            )
    validate(config)
    last = max(
        (vocabulary.STAGES.index(stage) for stage in stages),
        default=len(vocabulary.STAGES),
    )
    work = WorkDir(workdir, tensorboard=tensorboard)
    banner = _Banner(work)
    if last < vocabulary.STAGES.index("report"):
        banner.ends_after(vocabulary.STAGES[last])

    banner("prepare", "data, autoencoder, denoiser, teachers, surrogate")
    loaded = load_data(config)
    check_alike(fingerprint(config, loaded[-1]))
    work.metrics.say(
        "  {train:,} training, {validation:,} validation and {test:,} test images of "
        "{classes:,} classes, {image[0]} x {image[1]} pixels ({source})".format(
            **loaded[0].facts()
        )
    )
    write_config(work, to_dict(config))
    prepared = prepare(config, work, loaded)
    if last < vocabulary.STAGES.index("sample"):
        return {}
    mesh = data_mesh()
    banner("sample, refine", "latents steered, then moved, by optimal transport")
    product = distil(config, work, prepared, seed=0, mesh=mesh, refined=last > 1)
    if last < vocabulary.STAGES.index("relabel"):
        return {}
    banner("relabel", "soft labels by the teacher ensemble; writes distilled/")
    labels = write_distilled(config, work, prepared, product)
    if last < vocabulary.STAGES.index("train"):
        return {}
    banner("train", "students of this set, its ablations and the baselines")
    study = run_study(config, work, prepared, mesh)
    if last < vocabulary.STAGES.index("report"):
        return {}
    banner("report", "results.json and report.html")
    results = write_results(config, work, prepared, study, labels)
    banner.end()
    return results


class _Banner:
    """Says which stage begins, and at the end how long all took."""

    def __init__(self, work):
        self._work, self._start = work, time.monotonic()

    def ends_after(self, stage):
        text = f"up to {stage}; what is there is restored"
        if (self._work.path / "results.json").exists():
            text += "; results.json and report.html stay an earlier run's"
        self._work.metrics.say(text)

    def __call__(self, stage, what):
        elapsed = time.monotonic() - self._start
        self._work.metrics.say(f"[{elapsed:6.1f} s] {stage}: {what}")

    def end(self):
        elapsed = time.monotonic() - self._start
        self._work.metrics.say(f"[{elapsed:6.1f} s] done")


def main(_):
    """Parses the flags and runs; a wrong config is one line and exit code 2."""
    logging.set_verbosity(logging.WARNING)
    config = _CONFIG.value
    workdir = Path(_WORKDIR.value or Path("out") / config.name)

    def work():
        from ot_dd.parallel import start_processes

        start_processes(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        stages = tuple(_STAGES.value)
        run(config, workdir, stages, tensorboard=_TENSORBOARD.value)

    return exit_code(work)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
