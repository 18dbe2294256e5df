"""A run on converted weights: autoencoder, DiT and teacher are loaded, not trained."""

import json
import shutil
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import peers  # before diffusers: see there
import pytest
import torch
from safetensors.torch import save_file

from configs import imagenette, imagewoof
from ot_dd import convert, models
from ot_dd.config import ConfigError
from ot_dd.distill import run
from ot_dd.stages import pretrained
from ot_dd.stages.networks import denoising_loss


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Tiny networks of Diffusers and torchvision, converted."""
    folder = tmp_path_factory.mktemp("weights")
    from diffusers import AutoencoderKL, DiTTransformer2DModel

    networks = {
        "autoencoder_kl": AutoencoderKL(
            block_out_channels=(32,) * 4, layers_per_block=1, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        ),
        "dit_s_2": DiTTransformer2DModel(
            num_attention_heads=6, attention_head_dim=4, in_channels=4, out_channels=8,
            num_layers=2, sample_size=8, patch_size=2, num_embeds_ada_norm=9,
        ),
        "resnet18": peers.from_torchvision("resnet18", num_classes=4),
    }  # fmt: skip
    for name, network in networks.items():
        torch.manual_seed(0)
        save_file(network.state_dict(), folder / f"{name}.safetensors")
        convert.convert(name, folder / f"{name}.safetensors", folder / name)
    return folder


def tiny(weights):
    config = imagenette.get_config("debug")
    config.data.source, config.data.image_size = "synthetic:classes=4,size=64,n=12", 64
    config.autoencoder.weights = str(weights / "autoencoder_kl")
    config.denoiser.weights = str(weights / "dit_s_2")
    config.denoiser.class_ids = (7, 0, 3, 8)
    config.teachers.weights = {"resnet18": str(weights / "resnet18")}
    return config


def test_runs_on_converted_weights(weights, tmp_path):
    config = tiny(weights)
    config.denoiser.dtype = "bfloat16"
    config.autoencoder.options.slices = 3
    config.guidance.terms = ("deviation", "transport")
    run(config, tmp_path, ("prepare", "sample", "relabel"))
    trained = {p.name.split("-")[0] for p in (tmp_path / "checkpoints").iterdir()}
    assert trained == {"surrogate", "teacher_convnet3"}
    latents = np.load(next((tmp_path / "cache").glob("latents-*.npz")))["latents"]
    assert latents.shape[1:] == (8, 8, 4)
    dataset = json.loads((tmp_path / "distilled" / "dataset.json").read_text())
    used = {w["model"]: w for w in dataset["provenance"]["weights"]}
    assert set(used) == {"autoencoder_kl", "dit_s_2", "resnet18"}
    assert "CC-BY-NC" in used["dit_s_2"]["licence"] and used["resnet18"]["sha256"]


@pytest.mark.parametrize(
    ("part", "fields"),
    [("preprocess", {"mean": [0.1, 0.1, 0.1]}), ("options", {"stem": "imagenet"})],
)
def test_an_edited_note_is_another_network(weights, tmp_path, part, fields):
    shutil.copytree(weights / "resnet18", tmp_path / "edited")

    def key(folder):
        settings = imagenette.get_config("debug").teachers
        settings.weights = {"resnet18": str(folder)}
        return pretrained.classifier(settings, "resnet18", 4)[2]

    before = key(weights / "resnet18")
    assert key(tmp_path / "edited") == before
    path = tmp_path / "edited" / "model.json"
    note = json.loads(path.read_text())
    note[part] = {**note[part], **fields}
    path.write_text(json.dumps(note))
    assert key(tmp_path / "edited") != before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("part", ["model.json", "arrays"])
def test_damaged_weights_are_to_be_converted_again(weights, tmp_path, part):
    copy = tmp_path / "copy"
    shutil.copytree(weights / "dit_s_2", copy)
    path = copy / "model.json"
    if part == "arrays":
        files = [path for path in copy.rglob("*") if path.is_file()]
        path = max(files, key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"is damaged .*: convert the weights again$"):
        models.load(copy)


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_fine_tuning_sees_the_networks_own_classes(weights, dropout):
    config = tiny(weights)
    config.denoiser.label_dropout = dropout
    denoiser, _, _ = pretrained.denoiser(config.denoiser, 4)
    x0, classes = (
        jax.random.normal(jax.random.key(0), (3, 8, 8, 4)),
        jnp.array([0, 1, 2]),
    )
    keys = jax.random.split(jax.random.key(1), 3)
    mapped, plain = (
        denoising_loss(config.denoiser, denoiser.module, *arguments)
        for arguments in ((4, denoiser.class_ids), (9,))
    )
    found = mapped(denoiser.params, keys, x0, classes)
    same = plain(denoiser.params, keys, x0, jnp.array([7, 0, 3]))
    other = plain(denoiser.params, keys, x0, jnp.array([0, 1, 2]))
    np.testing.assert_array_equal(found[0], same[0])
    assert (found[0] != other[0]).any() == (dropout == 0.0)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("denoiser.class_ids", (), "knows 9 classes and the data has 4"),
        ("denoiser.class_ids", (0, 1, 2, 9), "knows 9 classes"),
        ("denoiser.class_ids", (0, 1, 2, -1), "knows 9 classes"),
        ("denoiser.weights", "autoencoder_kl", "AutoencoderKL: a DiT is needed"),
        ("autoencoder.weights", "resnet18", "ResNet: a AutoencoderKL is needed"),
        ("autoencoder.model", "identity", "no use for config.autoencoder.weights"),
        ("teachers.weights", {"resnet81": ""}, "did you mean 'resnet18'"),
        ("denoiser.weights", "nowhere", "nowhere.*model.json"),
        ("teachers.weights", {"convnet3": "RESNET"}, "a ConvNet of 4 is needed"),
    ],
)
def test_unfit_weights_are_refused(weights, field, value, message, tmp_path):
    config = tiny(weights)
    if isinstance(value, str) and (weights / value).exists():
        value = str(weights / value)
    if isinstance(value, dict):
        value = {k: str(weights / "resnet18") for k in value}
    section, name = field.split(".")
    config[section][name] = value
    with pytest.raises(ConfigError, match=message):
        run(config, tmp_path, ("prepare",))


@pytest.mark.parametrize(
    ("module", "wnids"),
    [
        (imagenette, "n01440764 n02102040 n02979186 n03000684 n03028079 n03394916 "
                     "n03417042 n03425413 n03445777 n03888257"),
        (imagewoof, "n02086240 n02087394 n02088364 n02089973 n02093754 n02096294 "
                    "n02099601 n02105641 n02111889 n02115641"),
    ],
)  # fmt: skip
def test_class_ids_are_those_of_the_wnids(module, wnids):
    synsets = (resources.files("timm") / "data/_info/imagenet_synsets.txt").read_text()
    order = synsets.split()
    expected = tuple(order.index(wnid) for wnid in wnids.split())
    assert module.get_config().denoiser.class_ids == expected
