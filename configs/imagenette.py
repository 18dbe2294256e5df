r"""ImageNette (10 ImageNet-1K classes, by wnid) at the paper's settings, ResNetAP-10.

Published (Cui et al.), IPC 10, hard labels: ConvNet-6 67.0, ResNetAP-10 68.0,
ResNet-18 69.1; all terms with soft labels: 74.5, 77.8, 79.0. Students with hard labels
have 300 passes of the soft recipe here, where published figures are of 2,000: beside them
use `python -m ot_dd.evaluate --protocol=minimax_hard`.
Data: class folders of ImageNet's own training images, not the smaller fast.ai
tarballs. Switches: `debug` (generated images, minutes on a CPU), `ipc50`.

COMMAND: python -m ot_dd.distill --config=configs/imagenette.py \
    --config.data.source=image_folder:/data/imagenette \
    --config.autoencoder.weights=weights/sd_vae --config.denoiser.weights=weights/dit
"""

from configs import paper
from ot_dd.config import parse_arg


def get_config(arg=None):
    """Returns the config."""
    switches = parse_arg(arg, "debug", "ipc50")
    config = paper.base("imagenette", num_classes=10)
    # Places of the ten wnids, in order, among ImageNet-1K's: what DiT was trained on.
    config.denoiser.class_ids = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
    config.data.source = "image_folder:imagenette"
    if "ipc50" in switches:
        config.ipc = 50
    config.student.model = "resnet_ap10"
    config.student.batch_size = 50
    return paper.shrink(config) if "debug" in switches else config
