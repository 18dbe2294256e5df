"""Converted classifiers give the logits that torchvision's and timm's give."""

import jax
import numpy as np
import peers
import pytest
import torch
from safetensors.torch import save_file

from ot_dd import convert, models

TORCHVISION = {  # name: (options of the peer, image size)
    "alexnet": ({}, 96),
    "convnext_tiny": ({}, 64),
    "densenet121": ({}, 64),
    "efficientnet_b0": ({}, 64),
    "mobilenet_v2": ({"num_classes": 7}, 64),
    "resnet18": ({"num_classes": 12}, 64),
    "resnet50": ({}, 64),
    "resnet101": ({}, 64),
    "shufflenet_v2_x0_5": ({}, 64),
    "shufflenet_v2_x1_0": ({}, 64),
    "swin_t": ({}, 96),
    "vit_b_16": ({"image_size": 64}, 64),
    "wide_resnet50_2": ({}, 64),
}
TIMM = {  # our name: (timm's, its options, image size)
    "convnext_tiny": ("convnext_tiny", {}, 64),
    "deit_tiny": ("deit_tiny_patch16_224", {"num_classes": 9}, 224),
    "efficientnet_b0": ("efficientnet_b0", {}, 64),
    "efficientnet_lite1": ("tf_efficientnet_lite1", {}, 65),
    "mobilenet_v2": ("mobilenetv2_100", {}, 64),
    "resnet18": ("resnet18", {}, 64),
    "resnet50": ("resnet50", {}, 64),
    "swin_t": ("swin_tiny_patch4_window7_224", {}, 224),
    "vit_b_16": ("vit_base_patch16_224", {"depth": 3}, 224),
}
CASES = [("torchvision", name) for name in TORCHVISION]
CASES += [("timm", name) for name in TIMM]
CASES += [("lite", f"efficientnet_lite{number}") for number in range(3)]


def peer_of(library, name):
    if library == "torchvision":
        options, size = TORCHVISION[name]
        return peers.from_torchvision(name, **options), size
    if library == "timm":
        theirs, options, size = TIMM[name]
        return peers.from_timm(theirs, **options), size
    # Its convolutions are padded for this size.
    return peers.from_lite(name[-1]), {"0": 224, "1": 240, "2": 260}[name[-1]]


def convert_peer(peer, name, folder):
    folder.mkdir(exist_ok=True)
    save_file(peer.state_dict(), folder / "weights.safetensors")
    convert.convert(name, folder / "weights.safetensors", folder / "ours")
    return models.load(folder / "ours")


@pytest.mark.parametrize(("library", "name"), CASES)
def test_logits_equal_the_peers(library, name, tmp_path):
    with peers.undrawn():
        peer, size = peer_of(library, name)
    # Squeeze-excitation halves what passes: without a gain nothing would be left.
    peers.randomise(peer, gain=2.0 if name == "efficientnet_b0" else 1.0)
    loaded = convert_peer(peer, name, tmp_path)
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype("f4")
    with torch.no_grad():
        theirs = peer(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(loaded.module.apply)(loaded.variables, images)
    assert np.abs(theirs - ours).max() <= 1e-4 * np.abs(theirs).max()
    assert np.abs(theirs[0] - theirs[1]).max() > 1e-2 * np.abs(theirs).max()
    parameters = sum(p.numel() for p in peer.parameters())
    assert loaded.note["parameters"] == parameters


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121"])
def test_batch_statistics_after_a_training_step(name, tmp_path):
    peer = peers.randomise(peers.from_torchvision(name))
    loaded = convert_peer(peer, name, tmp_path)
    images = np.random.default_rng(1).normal(size=(4, 64, 64, 3)).astype("f4")
    peer.train()
    for module in peer.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        theirs = peer(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
    ours, updated = jax.jit(
        lambda v, x: loaded.module.apply(v, x, train=True, mutable=["batch_stats"])
    )(loaded.variables, images)
    assert np.abs(theirs - ours).max() <= 1e-3 * np.abs(theirs).max()
    after = convert_peer(peer, name, tmp_path / "again")
    flat = jax.tree.leaves_with_path(updated["batch_stats"])
    for (path, mine), theirs in zip(
        flat, jax.tree.leaves(after.variables["batch_stats"]), strict=True
    ):
        # PyTorch keeps the unbiased variance, n / (n - 1) of the batch's.
        tolerance = 0.03 if path[-1].key == "var" else 1e-3
        np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance)
