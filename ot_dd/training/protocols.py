"""Named protocols: how students are trained on a set, as data.

Accuracies compare within one protocol only: the choice of labels, loss, epochs and batch
size moves them by more than most methods do (RD3, arXiv 2509.19743; Hard Truths, arXiv
2604.18811). A protocol sets the fields of `config.student` and `config.data.augment`
that it names; the rest, such as whether images may be mirrored, stays the config's.
"""

import math
from typing import Any, NamedTuple

from ot_dd.config import ConfigError, nearest
from ot_dd.training.views import batches_per_epoch


class Protocol(NamedTuple):
    """One recipe for students.

    Attributes:
      labels: "hard" or "soft".
      epochs: `(most images per class, passes)` pairs, ascending; the last pair serves
        everything above.
      student: fields of `config.student`.
      augment: fields of `config.data.augment`.
      students: the networks that it is reported with.
      teachers: how many of the config's teachers label, 0 for as many as the config's
        LIA takes.
      source: where it is from, and how this differs from it.
    """

    labels: str
    epochs: tuple[tuple[int, int], ...]
    student: dict[str, Any]
    augment: dict[str, Any]
    students: tuple[str, ...]
    teachers: int
    source: str

    @property
    def ours(self) -> bool:
        """Whether labels and loss are the config's: its LIA and its OTM."""
        return (
            self.labels == "soft"
            and not self.teachers
            and "ot_weight" not in self.student
        )

    def epochs_for(self, ipc: int) -> int:
        """Returns the passes over a set with `ipc` images per class."""
        fitting = [epochs for most, epochs in self.epochs if ipc <= most]
        return fitting[0] if fitting else self.epochs[-1][1]


_ANY = 10**9
_ADAMW = {
    "optimiser": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01, "decays": (),
    "zeta": 2.0, "batch_size": 50,
}  # fmt: skip
_DC = {
    "optimiser": "sgd", "learning_rate": 0.01, "weight_decay": 5e-4,
    "decays": ((0.5, 0.1),), "batch_size": 256, "ema": 0.0, "dsa": False,
}  # fmt: skip
_KL = _ADAMW | {
    "ema": 0.0, "ce_weight": 0.0, "mse_weight": 0.0, "ot_weight": 0.0, "kl_weight": 1.0,
    "kl_temperature": 20.0,
}  # fmt: skip
_RANDOM_CROP = {"crop_scale": (0.5, 1.0), "shift": 0, "jitter": 0.0}

_AS_IT_IS = {
    "cutmix": 0.0, "jitter": 0.0, "shift": 0, "flip": False, "crop_scale": (1.0, 1.0),
    "crop_ratio": (1.0, 1.0),
}  # fmt: skip

PROTOCOLS = {
    "dc_plain": Protocol(
        labels="hard",
        epochs=((_ANY, 300),),
        student=_DC,
        augment=_AS_IT_IS,
        students=("convnet3",),
        teachers=0,
        source="DC (Zhao et al., ICLR 2021), what its repository evaluates all but MNIST "
        "by: SGD 0.01, a tenth after half of 300 epochs, batch 256, no augmentation",
    ),
    "dc_hard": Protocol(
        labels="hard",
        epochs=((_ANY, 1000),),
        student=_DC,
        augment={"cutmix": 0.0, "shift": 2, "jitter": 0.0},
        students=("convnet3",),
        teachers=0,
        source="between DC and DSA (Zhao & Bilen 2021): DSA's 1,000 epochs of SGD 0.01, "
        "a tenth after half, batch 256; every image flipped by chance and shifted by up "
        "to 2 pixels, where DC augments none and DSA draws one of six kinds for a batch",
    ),
    "dsa_hard": Protocol(
        labels="hard",
        epochs=((_ANY, 1000),),
        student=_DC | {"dsa": True},
        augment={},
        students=("convnet3",),
        teachers=0,
        source="DSA (Zhao & Bilen, ICML 2021): as dc_hard, with all of its augmentation; "
        "it fills by and adds brightness in units of the batch's mean and deviation",
    ),
    "minimax_hard": Protocol(
        labels="hard",
        epochs=((1, 3000), (10, 2000), (50, 1500), (200, 1000), (_ANY, 500)),
        student={
            "optimiser": "sgd", "learning_rate": 0.01, "weight_decay": 5e-4,
            "decays": ((2 / 3, 0.2), (5 / 6, 0.2)), "batch_size": 64, "ema": 0.0,
            "dsa": False,
        },
        augment=_RANDOM_CROP | {"jitter": 0.4, "cutmix": 1.0, "cutmix_alpha": 1.0},
        students=("convnet6", "resnet_ap10", "resnet18:norm=instance"),
        teachers=0,
        source="MinimaxDiffusion (Gu et al., CVPR 2024), as for ten classes (of 100 it "
        "trains two thirds as long, of more at rate 0.1, decay 1e-4, batch 128); without "
        "its colour lighting, and at the size of the images, where it crops 224 pixels; it "
        "reports the best test accuracy, which is recorded beside the final one",
    ),
    "edc_soft": Protocol(
        labels="soft",
        epochs=((_ANY, 300),),
        student=_ADAMW
        | {
            "ema": 0.99, "ce_weight": 0.025, "mse_weight": 1.0, "kl_weight": 0.0,
        },
        augment=_RANDOM_CROP | {"cutmix": 1.0, "cutmix_alpha": 1.0},
        students=("resnet18", "mobilenet_v2", "swin_t"),
        teachers=0,
        source="EDC (Shao et al., NeurIPS 2024) with the paper's LIA and OTM: CE 0.025, "
        "MSE, the config's transport weight; batch 50 as for ten classes (100 for 1,000), "
        "where EDC's cosine bends down to 0 in the last sixth and this one does not; the "
        "average of parameters begins with a shorter memory (see make_step)",
    ),
    "rded_soft": Protocol(
        labels="soft",
        epochs=((_ANY, 300),),
        student=_KL,
        augment=_RANDOM_CROP | {"cutmix": 1.0, "cutmix_alpha": 1.0},
        students=("resnet18",),
        teachers=1,
        source="RDED (Sun et al., CVPR 2024): KL at temperature 20 from one teacher; "
        "batch 50, as for IPC 10 and ten classes, one rate for all networks, and crops of "
        "half to all of an image at any size (theirs: of all of it where it is small)",
    ),
    "rd3": Protocol(
        labels="soft",
        epochs=((_ANY, 400),),
        student=_KL | {"optimiser": "adam", "weight_decay": 0.0},
        augment=_RANDOM_CROP | {"cutmix": 1.0, "cutmix_alpha": 1.0},
        students=("resnet18",),
        teachers=1,
        source="RD3 (arXiv 2509.19743): 400 epochs of batch 50, Adam, one teacher, KL; "
        "the one recipe under which it retrained its peers",
    ),
}  # fmt: skip


def get_protocol(name: str) -> Protocol:
    """Returns a protocol by name.

    Raises:
      ConfigError: for a name that is none.
    """
    if name not in PROTOCOLS:
        raise ConfigError(
            f"protocol {name!r} is unknown{nearest(name, PROTOCOLS)}; known are "
            f"{', '.join(PROTOCOLS)}"
        )
    return PROTOCOLS[name]


def apply_protocol(config, name: str, *, ipc: int, classes: int, epochs: int = 0):
    """Sets the fields of a config that a protocol names, for a set of a given size.

    Args:
      config: a config; changed in place.
      name: the protocol's name.
      ipc: images per class of the set.
      classes: its classes.
      epochs: passes over the set instead of the protocol's, for a shorter run; 0 keeps
        the protocol's.

    Returns:
      The protocol.
    """
    protocol = get_protocol(name)
    config.student.update(protocol.student)
    config.data.augment.update(protocol.augment)
    _, size = batches_per_epoch(ipc * classes, config.student.batch_size)
    # As many images as in that many passes: batches here are whole ones.
    images = (epochs or protocol.epochs_for(ipc)) * ipc * classes
    config.student.steps = math.ceil(images / size)
    config.student.evaluations = min(config.student.evaluations, config.student.steps)
    return protocol
