"""Training: state, schedules, the jitted and resumable loop, students."""

from ot_dd.training.loop import (
    TrainState,
    fit,
    make_state,
    make_step,
    restore,
    run_flops,
    trace_steps,
)
from ot_dd.training.schedules import smoothing_cosine, step_decay

__all__ = [
    "TrainState",
    "fit",
    "make_state",
    "make_step",
    "restore",
    "run_flops",
    "smoothing_cosine",
    "step_decay",
    "trace_steps",
]
