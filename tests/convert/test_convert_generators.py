"""Converted DiTs and autoencoders compute what Diffusers' compute, in every spelling."""

import re

import jax
import numpy as np
import peers  # before diffusers: see there
import pytest
import torch
from safetensors.torch import save_file

from ot_dd import convert, models


def close(ours, theirs, tolerance=1e-4):
    theirs = theirs.detach().numpy().transpose(0, 2, 3, 1)
    assert np.abs(theirs - ours).max() <= tolerance * np.abs(theirs).max()


def load(tmp_path, model, state):
    state = {key: value.contiguous() for key, value in state.items()}
    save_file(state, tmp_path / "weights.safetensors")
    convert.convert(model, tmp_path / "weights.safetensors", tmp_path / "ours")
    return models.load(tmp_path / "ours")


def make_dit(heads, head_dim, depth, classes=20):
    from diffusers import DiTTransformer2DModel

    peer = DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=head_dim, in_channels=4,
        out_channels=8, num_layers=depth, sample_size=16, patch_size=2,
        num_embeds_ada_norm=classes,
    )  # fmt: skip
    # Diffusers divides the exponents of the time frequencies by 127, the original by
    # 128: with the released weights only the latter is right.
    for block in peer.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    peers.randomise(peer)
    embedder = peer.transformer_blocks[0].norm1.emb.state_dict()
    for block in peer.transformer_blocks:
        block.norm1.emb.load_state_dict(embedder)
    return peer


def official_names(state):
    """Renames Diffusers' DiT to the layout of the original release."""
    renamed, block = {}, r"transformer_blocks\.(\d+)\."
    table = {
        r"pos_embed\.proj": "x_embedder.proj",
        block + r"norm1\.linear": r"blocks.\1.adaLN_modulation.1",
        block + r"attn1\.to_out\.0": r"blocks.\1.attn.proj",
        block + r"ff\.net\.0\.proj": r"blocks.\1.mlp.fc1",
        block + r"ff\.net\.2": r"blocks.\1.mlp.fc2",
        "proj_out_1": "final_layer.adaLN_modulation.1",
        "proj_out_2": "final_layer.linear",
        r"transformer_blocks\.0\.norm1\.emb\.timestep_embedder\.linear_1":
            "t_embedder.mlp.0",
        r"transformer_blocks\.0\.norm1\.emb\.timestep_embedder\.linear_2":
            "t_embedder.mlp.2",
        r"transformer_blocks\.0\.norm1\.emb\.class_embedder\.embedding_table":
            "y_embedder.embedding_table",
    }  # fmt: skip
    for key, value in state.items():
        module, leaf = key.rsplit(".", 1)
        for pattern, target in table.items():
            if found := re.fullmatch(pattern, module):
                renamed[f"{found.expand(target)}.{leaf}"] = value
        if found := re.fullmatch(block + r"attn1\.to_q", module):
            parts = [state[key.replace("to_q", f"to_{p}")] for p in "qkv"]
            renamed[f"blocks.{found[1]}.attn.qkv.{leaf}"] = torch.cat(parts)
    side = 8
    dim = renamed["x_embedder.proj.bias"].numel()
    table = models.dit.sincos_positions(side, side, dim)
    renamed["pos_embed"] = torch.tensor(table)[None]
    return renamed


@pytest.mark.parametrize("layout", ["diffusers", "dit"])
@pytest.mark.parametrize(
    ("name", "heads", "head_dim", "depth"),
    [("dit", 6, 64, 2), ("dit_s_2", 6, 64, 2), ("dit_xl_2", 16, 72, 1)],
)
def test_dit(layout, name, heads, head_dim, depth, tmp_path):
    peer = make_dit(heads, head_dim, depth)
    state = peer.state_dict()
    loaded = load(
        tmp_path, name, state if layout == "diffusers" else official_names(state)
    )
    assert loaded.note["layout"] == layout
    assert loaded.module.depth == depth and loaded.module.num_classes == 20
    z = np.random.default_rng(0).normal(size=(2, 16, 16, 4)).astype("f4")
    t, y = np.array([3, 977]), np.array([4, 20])
    with torch.no_grad():
        theirs = peer(
            torch.tensor(z.transpose(0, 3, 1, 2)), torch.tensor(t), torch.tensor(y)
        ).sample
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(loaded.module.apply)(loaded.variables, z, t.astype("f4"), y)
    close(ours, theirs)


def test_dit_refuses_other_positions(tmp_path):
    state = official_names(make_dit(6, 64, 1).state_dict())
    state["pos_embed"] = state["pos_embed"].roll(1, -1)
    with pytest.raises(convert.ConversionError, match="pos_embed"):
        load(tmp_path, "dit_s_2", state)
    assert not (tmp_path / "ours").exists()


def make_autoencoder():
    from diffusers import AutoencoderKL

    channels = (32, 64, 64, 96)
    return peers.randomise(
        AutoencoderKL(
            block_out_channels=channels, layers_per_block=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
    )  # fmt: skip


def old_names(state):
    """Renames the attention as Diffusers named it before 2023."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, before in old.items():
        state = {key.replace(new, before): value for key, value in state.items()}
    return state


def compvis_names(state):
    """Renames to Stable Diffusion's own names, with keys of its other networks."""
    attention = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
                 "group_norm": "norm"}  # fmt: skip
    renamed = {
        "betas": torch.zeros(3),
        "model.diffusion_model.out.weight": torch.zeros(3, 3),
        "cond_stage_model.transformer.weight": torch.zeros(2),
    }
    for key, value in state.items():
        for pattern, target in (
            (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
            (r"mid_block\.attentions\.0", lambda m: "mid.attn_1"),
            (r"down_blocks\.(\d)\.resnets", lambda m: f"down.{m[1]}.block"),
            (
                r"down_blocks\.(\d)\.downsamplers\.0",
                lambda m: f"down.{m[1]}.downsample",
            ),
            (r"up_blocks\.(\d)\.resnets", lambda m: f"up.{3 - int(m[1])}.block"),
            (
                r"up_blocks\.(\d)\.upsamplers\.0",
                lambda m: f"up.{3 - int(m[1])}.upsample",
            ),
            ("conv_shortcut", lambda m: "nin_shortcut"),
            ("conv_norm_out", lambda m: "norm_out"),
        ):
            key = re.sub(pattern, target, key)
        if "attn_1" in key:
            for new, before in attention.items():
                key = key.replace(f".{new}.", f".{before}.")
            if value.ndim == 2:
                value = value[:, :, None, None]
        renamed[f"first_stage_model.{key}"] = value
    return renamed


@pytest.mark.parametrize(
    ("spell", "layout"),
    [(dict, "diffusers"), (old_names, "diffusers"), (compvis_names, "compvis")],
)
def test_autoencoder_both_ways(spell, layout, tmp_path):
    peer = make_autoencoder()
    loaded = load(tmp_path, "autoencoder_kl", spell(peer.state_dict()))
    assert loaded.note["layout"] == layout
    assert loaded.module.channels == (32, 64, 64, 96)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 48, 3)).astype("f4")
    with torch.no_grad():
        posterior = peer.encode(torch.tensor(images.transpose(0, 3, 1, 2))).latent_dist
        decoded = peer.decode(posterior.mean).sample
    with jax.default_matmul_precision("highest"):
        mean, log_variance = jax.jit(
            lambda v, x: loaded.module.apply(v, x, method="encode")
        )(loaded.variables, images)
        ours = jax.jit(lambda v, z: loaded.module.apply(v, z, method="decode"))(
            loaded.variables, posterior.mean.numpy().transpose(0, 2, 3, 1)
        )
    close(mean, posterior.mean)
    close(log_variance, posterior.logvar)
    close(ours, decoded)


def test_slices_change_nothing():
    options = {"channels": (8, 8), "groups": 4, "blocks": 1}
    module = models.create("autoencoder_kl", **options)
    images = jax.random.uniform(jax.random.key(0), (5, 16, 16, 3))
    variables = jax.jit(module.init)(jax.random.key(1), images)
    sliced = models.create("autoencoder_kl", slices=2, **options)
    for a, b in zip(
        jax.jit(module.apply)(variables, images),
        jax.jit(sliced.apply)(variables, images),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
