r"""ImageNet-1K at the paper's settings, ResNet-18 students.

Published (Cui et al.): IPC 10: 52.9 (300 epochs), 58.6 (1,000); IPC 50: 61.9, 64.2.
Not reproduced here: needs pretrained DiT-XL/2 and autoencoder weights (docs/weights.md
says how to convert them; without them both are trained) and a pod.
Data: a TFDS directory prepared as ArrayRecord, or an image folder. Switches: `debug`
(generated images, minutes on a CPU), `ipc1`, `ipc50`.

COMMAND: python -m ot_dd.distill --config=configs/imagenet1k.py \
    --config.data.source=tfds:/data/imagenet2012/5.1.0 \
    --config.autoencoder.weights=weights/sd_vae --config.denoiser.weights=weights/dit
"""

from configs import paper
from ot_dd.config import parse_arg


def get_config(arg=None):
    """Returns the config."""
    switches = parse_arg(arg, "debug", "ipc1", "ipc50")
    config = paper.base("imagenet1k", num_classes=1000)
    config.data.source = "tfds:imagenet2012"
    # Batches that a slice of up to 256 chips divides, its parameters split over them.
    config.autoencoder.batch_size = config.surrogate.batch_size = 256
    config.surrogate.steps = 50 * 1300 * 1000 // 256
    config.parallel.strategy = "fsdp"
    # Labels of every view would take terabytes: they are made as students train.
    config.lia.mode = "online"
    if switches & {"ipc1", "ipc50"}:
        config.ipc = 50 if "ipc50" in switches else 1
    return paper.shrink(config) if "debug" in switches else config
