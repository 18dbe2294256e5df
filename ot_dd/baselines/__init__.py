"""Image sets to compare with: rows of the training set, or images made from it."""

from ot_dd.baselines.collage import collages
from ot_dd.baselines.minimax import minimax_loss, remember
from ot_dd.baselines.selection import (
    easiest_rows,
    el2n_scores,
    forgetting_scores,
    herding_rows,
    kcenter_rows,
    kmeans_rows,
    quantise,
    random_rows,
)

__all__ = [
    "collages",
    "easiest_rows",
    "el2n_scores",
    "forgetting_scores",
    "herding_rows",
    "kcenter_rows",
    "kmeans_rows",
    "minimax_loss",
    "quantise",
    "random_rows",
    "remember",
]
