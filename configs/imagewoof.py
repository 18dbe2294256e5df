r"""ImageWoof (10 ImageNet-1K classes, by wnid) at the paper's settings, ResNetAP-10.

No published figure of the method; IGD's repository has k = 5, gamma = 120 for it.
Data: class folders of ImageNet's own training images, not the smaller fast.ai
tarballs. Switches: `debug` (generated images, minutes on a CPU), `ipc50`.

COMMAND: python -m ot_dd.distill --config=configs/imagewoof.py \
    --config.data.source=image_folder:/data/imagewoof \
    --config.autoencoder.weights=weights/sd_vae --config.denoiser.weights=weights/dit
"""

from configs import paper
from ot_dd.config import parse_arg


def get_config(arg=None):
    """Returns the config."""
    switches = parse_arg(arg, "debug", "ipc50")
    config = paper.base("imagewoof", num_classes=10)
    # Places of the ten wnids, in order, among ImageNet-1K's: what DiT was trained on.
    config.denoiser.class_ids = (155, 159, 162, 167, 182, 193, 207, 229, 258, 273)
    config.data.source = "image_folder:imagewoof"
    if "ipc50" in switches:
        config.ipc = 50
    config.student.model = "resnet_ap10"
    config.student.batch_size = 50
    return paper.shrink(config) if "debug" in switches else config
