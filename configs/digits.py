r"""Digits (scikit-learn, 8 x 8, 1,797 images), IPC 10: the whole method in minutes.

Pixel space: at 64 values an image needs no autoencoder. Two cores, no accelerator,
two to five minutes. Switches: `debug`.

COMMAND: python -m ot_dd.distill --config=configs/digits.py --workdir=out/digits
"""

from configs import common
from ot_dd.config import parse_arg


def get_config(arg=None):
    """Returns the config."""
    switches = parse_arg(arg, "debug")
    config = common.base("digits")
    augment = config.data.augment
    augment.flip, augment.cutmix, augment.shift = False, 0.5, 1
    config.data.validation_fraction = 0.2
    config.autoencoder.model = "identity"
    config.denoiser.options = dict(patch=2, dim=64, depth=3, heads=4)
    config.denoiser.steps, config.denoiser.ema, config.denoiser.batch_size = (
        1000,
        0.99,
        48,
    )
    config.denoiser.learning_rate = 2e-3
    config.teachers.models = ("resnet10", "convnet", "mlp", "vit")
    config.teachers.options = dict(
        resnet10=dict(width=16, norm="batch", stem="cifar"),
        convnet=dict(width=32, depth=2),
        vit=dict(patch=4, dim=64, depth=2, heads=4),
        mlp=dict(),
    )
    config.teachers.steps, config.teachers.learning_rate = 200, 3e-3
    config.lia.teachers_by_ipc = ((1, 1), (10, 2), (50, 4))
    config.sampler.num_steps = 20
    for term in ("influence", "deviation", "transport"):
        config.guidance[term].window = (10, 19)
    config.guidance.terms = ("transport",)
    config.guidance.influence.strength = 5.0
    config.guidance.deviation.strength = 0.5
    config.guidance.transport.strength, config.guidance.transport.window = 0.5, (6, 19)
    config.surrogate.model = config.student.model = "convnet"
    config.surrogate.options = dict(width=32, depth=2)
    config.study.baselines = ("random", "kmeans", "diffusion", "igd")
    config.student.steps, config.student.batch_size, config.lia.views = 200, 50, 25
    config.student.evaluations = 2
    config.refine.learning_rate, config.refine.steps = 0.02, 120
    config.student.options = dict(width=32, depth=2)
    config.refine.depth = 2
    config.refine.features = ("fresh:convnet",)
    return common.shrink(config) if "debug" in switches else config
