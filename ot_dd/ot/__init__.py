"""Optimal transport in JAX: Sinkhorn distances that jit, vmap, shard and differentiate.

`solve` takes a cost matrix, `solve_sample` points (in `O(n + m)` memory with a
`block_size`), `solve_sample_sharded` points split over a mesh; `sinkhorn_divergence`
is the debiased distance, `exact` small problems without regularisation.
"""

from ot_dd.ot._costs import COST_NAMES, CostFn, cost_matrix
from ot_dd.ot._divergence import sinkhorn_divergence
from ot_dd.ot._exact import exact
from ot_dd.ot._sharded import solve_sample_sharded
from ot_dd.ot._sinkhorn import OTResult, solve, solve_sample

__all__ = [
    "COST_NAMES",
    "CostFn",
    "OTResult",
    "cost_matrix",
    "exact",
    "sinkhorn_divergence",
    "solve",
    "solve_sample",
    "solve_sample_sharded",
]
