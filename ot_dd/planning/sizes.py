"""Sizes of the data that a run will read, where it need not be here."""

import math

from ot_dd import data
from ot_dd.config import ConfigError, options
from ot_dd.planning.programs import Sizes

# Training images, test images and classes. ImageNette and ImageWoof are ten of
# ImageNet-1K's classes, of some 1,300 images each and 50 to test on.
_KNOWN = {
    "imagenet1k": (1_281_167, 50_000, 1000),
    "imagenette": (13_000, 500, 10),
    "imagewoof": (13_000, 500, 10),
    "cifar100": (50_000, 10_000, 100),
}


def sizes_of(config, images: int = 0, test: int = 0, classes: int = 0) -> Sizes:
    """Returns the sizes of a config's data: as given, as known, or as read.

    Args:
      config: the whole config.
      images: training images, validation included; 0 where not given.
      test: images to evaluate on.
      classes: number of classes.

    Raises:
      ConfigError: when the data set is not here and its sizes are not known.
    """
    known = _KNOWN.get(config.name, (0, 0, 0))
    images, test, classes = (a or b for a, b in zip((images, test, classes), known))
    side = config.data.image_size
    if images and test and classes and side:
        if config.data.max_per_class:  # Of which validation is cut.
            images = min(images, classes * config.data.max_per_class)
        kept = math.floor(images * (1 - config.data.validation_fraction))
        return Sizes(kept, test, classes, (side, side, 3))
    fields = {k: v for k, v in options(config.data).items() if k != "augment"}
    try:
        dataset = data.load(fields.pop("source"), **fields)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the data of config.data.source are not here ({error}): give --images, "
            "--test_images, --classes and --config.data.image_size"
        ) from error
    train, test_split = dataset.train.images, dataset.test.images
    return Sizes(
        len(train), len(test_split), len(dataset.class_names), tuple(train.shape[1:])
    )
