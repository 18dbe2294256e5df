r"""Fashion-MNIST (28 x 28), IPC 10: autoencoder, latent diffusion and all the rest.

Two cores, no accelerator, under 40 minutes from nothing. Debian's package
`dataset-fashion-mnist` installs the data. Switches: `debug`.

COMMAND: python -m ot_dd.distill --config=configs/fashion_mnist.py
"""

from configs import common
from ot_dd.config import parse_arg


def get_config(arg=None):
    """Returns the config."""
    switches = parse_arg(arg, "debug")
    config = common.base("fashion_mnist")
    augment = config.data.augment
    augment.cutmix, augment.shift = 0.0, 2
    config.autoencoder.options = dict(patch=4, channels=(64,), latent_channels=12)
    config.autoencoder.padded_size = 32
    config.autoencoder.steps, config.autoencoder.learning_rate = 3000, 2e-3
    config.autoencoder.feature_weight = 0.5
    config.denoiser.options = dict(patch=2, dim=128, depth=3, heads=4)
    config.denoiser.steps, config.denoiser.ema = 2000, 0.998
    config.denoiser.plain_guidance_scale = 4.0
    config.teachers.models = ("convnet3", "resnet10", "alexnet", "vit")
    config.teachers.options = dict(
        convnet3=dict(width=32),
        resnet10=dict(width=32, norm="batch", stem="imagenet"),
        alexnet=dict(width=16, stem="cifar"),
        vit=dict(patch=7, dim=96, depth=3, heads=4),
    )
    config.teachers.steps, config.teachers.learning_rate = 1500, 3e-3
    config.surrogate.options = dict(width=32)
    config.student.options = dict(width=32)
    config.refine.features = ("surrogate", "fresh:convnet")
    config.refine.steps, config.refine.views = 300, 3
    config.refine.class_weight_by_ipc = ((1, 2.0), (10, 0.5), (11, 0.0))
    config.refine.epsilon, config.refine.tau = 0.5, 0.2
    config.student.ce_weight, config.student.evaluations = 0.1, 2
    config.student.ot_weight = 2.0
    config.student.steps, config.student.batch_size = 200, 50
    config.student.learning_rate, config.lia.views = 4e-3, 100
    config.lia.teachers_by_ipc = ((1, 1),)
    config.guidance.influence.window = config.guidance.deviation.window = (12, 19)
    # Best where refinement follows; without it (12, 19) is (docs/tuning.md, "When to guide").
    config.guidance.transport.window = (0, 11)
    config.guidance.terms = ("transport",)
    config.guidance.influence.strength = 50.0
    config.guidance.deviation.strength = 30.0
    config.guidance.transport.strength = 0.5
    config.study.ablations += ("mean_matching",)
    return common.shrink(config) if "debug" in switches else config
