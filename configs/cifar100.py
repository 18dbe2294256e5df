r"""CIFAR-100 at 32 x 32, ConvNet-3 students.

Published (Cui et al.): IPC 10, ConvNet-3 50.7 (DiT-IGD 45.8); which generator they
used is not stated. Here the autoencoder and a DiT-B/2 are trained on CIFAR itself.
Data: a TFDS directory prepared as ArrayRecord, or an image folder. Switches: `debug`.

COMMAND: python -m ot_dd.distill --config=configs/cifar100.py \
    --config.data.source=tfds:/data/cifar100/3.0.2
"""

from configs import paper
from ot_dd.config import parse_arg


def get_config(arg=None):
    """Returns the config."""
    switches = parse_arg(arg, "debug")
    config = paper.base("cifar100", num_classes=100)
    config.data.source, config.data.image_size = "tfds:cifar100", 32
    config.autoencoder.model = "autoencoder_small"
    config.autoencoder.options = dict(patch=1, channels=(64, 128, 128), blocks=2)
    config.autoencoder.steps = 50_000
    config.denoiser.model = "dit_b_2"
    config.denoiser.guidance_scale, config.denoiser.cfg_channels = 1.5, 0
    # EDC's for CIFAR, but for its WRN-16-2.
    names = ("resnet18", "convnet3", "mobilenet_v2", "shufflenet_v2_x0_5")
    config.teachers.models = names
    config.teachers.options = {
        name: dict(stem="cifar") for name in names if name != "convnet3"
    }
    config.surrogate.model = config.student.model = "convnet3"
    # EDC's for CIFAR; its SGD, RandAugment and online teachers are not taken.
    config.student.batch_size = 50
    paper.train_for(config, 1000, num_classes=100)
    return paper.shrink(config) if "debug" in switches else config
