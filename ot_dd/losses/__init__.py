"""Losses as pure functions: logit matching, soft labels, guidance, diffusion."""

from ot_dd.losses.diffusion import (
    autoencoder_loss,
    epsilon_loss,
    flow_loss,
    kl_to_standard_normal,
)
from ot_dd.losses.influence import gradient_cosine_distance
from ot_dd.losses.students import (
    logit_matching,
    logit_mse,
    soft_label_kl,
    student_loss,
)
from ot_dd.losses.transport import transport_guidance

__all__ = [
    "autoencoder_loss",
    "epsilon_loss",
    "flow_loss",
    "gradient_cosine_distance",
    "kl_to_standard_normal",
    "logit_matching",
    "logit_mse",
    "soft_label_kl",
    "student_loss",
    "transport_guidance",
]
