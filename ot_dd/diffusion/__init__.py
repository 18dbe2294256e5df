"""Diffusion processes, samplers, and the guidance that steers them (JAX only)."""

from ot_dd.diffusion.guidance import (
    NORMALISATIONS,
    SPACES,
    Moment,
    Transport,
    deviation,
    influence,
    normalise,
    transport,
)
from ot_dd.diffusion.process import (
    Prediction,
    Process,
    add_noise,
    classifier_free_guidance,
    ddpm_process,
    flow_process,
    predict,
)
from ot_dd.diffusion.samplers import SAMPLERS, ddim_step, ddpm_step, flow_step
from ot_dd.diffusion.steering import Term, sample_classes

__all__ = [
    "NORMALISATIONS",
    "SAMPLERS",
    "SPACES",
    "Moment",
    "Prediction",
    "Process",
    "Term",
    "Transport",
    "add_noise",
    "classifier_free_guidance",
    "ddim_step",
    "ddpm_process",
    "ddpm_step",
    "deviation",
    "flow_process",
    "flow_step",
    "influence",
    "normalise",
    "predict",
    "sample_classes",
    "transport",
]
