"""Digits at debug size with one small teacher, for runs whose start is most of their time."""

from configs import digits


def get_config(arg=None):
    """Returns the config."""
    config = digits.get_config("debug")
    config.teachers.models, config.lia.teachers_by_ipc = ("mlp",), ((1, 1),)
    config.denoiser.options.depth, config.denoiser.steps = 1, 60
    config.denoiser.save_every = 25
    config.surrogate.model = config.student.model = "mlp"
    config.surrogate.options, config.student.options = {}, {}
    config.refine.features = ("fresh:mlp",)
    config.refine.width = config.refine.depth = 0
    config.study.baselines = ("random", "diffusion")
    config.study.ablations = ("no_refine", "no_otm")
    return config
