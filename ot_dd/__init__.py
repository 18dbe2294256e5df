"""ot-dd: generative dataset distillation by optimal transport, in JAX.

Rooms, each usable alone: `ot` (Sinkhorn distances), `losses`, `diffusion` (processes,
samplers, guidance), `models` (linen), `data`, `baselines`, and `stages`, which
`ot_dd.distill` calls in order.
"""

__version__ = "0.1.0"
