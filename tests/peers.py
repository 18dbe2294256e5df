"""PyTorch's versions of our networks, with random weights that use every layer."""

import contextlib

import torch

# torchvision's wheel has compiled operators that do not load beside a CPU build of
# PyTorch. Its networks need none of them, but its import (and so timm's and Diffusers')
# needs these two to be declared, for as long as this lives.
_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    _LIBRARY.define(
        f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    )


@contextlib.contextmanager
def undrawn():
    """Leaves weights unset that `randomise` sets next: PyTorch draws them for long."""
    names = "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_"
    kept = {name: getattr(torch.nn.init, name) for name in names}
    try:
        for name in names:
            setattr(torch.nn.init, name, lambda tensor, *args, **options: tensor)
        yield
    finally:
        for name, draw in kept.items():
            setattr(torch.nn.init, name, draw)


def from_torchvision(name, **options):
    import torchvision

    return getattr(torchvision.models, name)(weights=None, **options)


def from_timm(name, **options):
    import timm

    return timm.create_model(name, pretrained=False, **options)


def from_lite(number):
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name(f"efficientnet-lite{number}")


def randomise(module, seed=0, gain=1.0):
    """Gives every stored parameter and statistic a value that matters to the output."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, scale):
        return scale * torch.randn(tensor.shape, generator=generator)

    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point() or name == "pos_embed":
                continue
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif name.endswith(("running_mean", "bias")):
                tensor.copy_(normal(tensor, 0.1))
            elif tensor.ndim >= 2 and "layer_scale" not in name:
                fan = tensor[0].numel()
                tensor.copy_(normal(tensor, gain * fan**-0.5))
            else:
                tensor.copy_(1 + normal(tensor, 0.2))
    return module.eval()
