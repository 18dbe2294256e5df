"""Times a sampling step of DiT-S/2 against the same network in Diffusers (PyTorch).

    python -m benchmarks.dit [--json=benchmarks/dit.json]

One evaluation of the denoiser with classifier-free guidance: 20 latents of 32 x 32 x 4,
so a batch of 40, float32, all cores, the same weights; outputs are compared first. Ours is
compiled with the options that the sampling stage uses.
"""

import argparse
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.timing import medians, row
from ot_dd import convert, models, platform
from tests import peers

BATCH = 20


def main() -> None:
    """Converts the peer's weights, compares, times and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    from diffusers import DiTTransformer2DModel

    peer = DiTTransformer2DModel(
        num_attention_heads=6, attention_head_dim=64, in_channels=4, out_channels=8,
        num_layers=12, sample_size=32, patch_size=2, num_embeds_ada_norm=1000,
    )  # fmt: skip
    for block in peer.transformer_blocks:  # As the original: see docs/weights.md.
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    peers.randomise(peer)
    embedder = peer.transformer_blocks[0].norm1.emb.state_dict()
    for block in peer.transformer_blocks:
        block.norm1.emb.load_state_dict(embedder)
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "w.safetensors"), Path(folder, "ours")
        save_file(peer.state_dict(), source)
        convert.convert("dit_s_2", source, output)
        loaded = models.load(output)

    z = np.random.default_rng(0).normal(size=(2 * BATCH, 32, 32, 4)).astype("f4")
    t = np.full(2 * BATCH, 500.0, "f4")
    y = np.concatenate([np.arange(BATCH), np.full(BATCH, 1000)])
    theirs = [torch.tensor(v) for v in (z.transpose(0, 3, 1, 2).copy(), t, y)]
    step = jax.jit(loaded.module.apply, compiler_options=platform.network_options())
    ours = jax.device_put((z, t, y))

    def run_ours():
        return jax.block_until_ready(step(loaded.variables, *ours))

    def run_theirs():
        with torch.inference_mode():
            return peer(*theirs).sample

    difference = np.abs(run_ours() - run_theirs().numpy().transpose(0, 2, 3, 1)).max()
    scale = np.abs(run_ours()).max()
    assert difference < 1e-3 * scale, (difference, scale)
    runs = {"ot_dd": run_ours, "diffusers": run_theirs}
    found = row("DiT-S/2, 20 latents with guidance", medians(runs, arguments.rounds))
    found["gigaflops"] = round(
        step.lower(loaded.variables, *ours).compile().cost_analysis()["flops"] / 1e9, 1
    )
    print(found)
    if arguments.json:
        report = {
            "cores": os.cpu_count(),
            "versions": {p: version(p) for p in ("jax", "torch", "diffusers")},
            "cases": [found],
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
