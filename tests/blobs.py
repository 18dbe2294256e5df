"""A small TFDS data set of random images, as `tfds build` writes it."""

import io

import numpy as np
import pytest
from PIL import Image


def png(label, i):
    pixels = np.random.default_rng([label, i]).integers(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    file.seek(0)
    return pixels, file


def prepare_tfds(root, splits, file_format="array_record"):
    """Prepares a real TFDS directory; encoded images need no TensorFlow to write."""
    tfds = pytest.importorskip("tensorflow_datasets")

    builder = _builder(tfds, splits)(data_dir=str(root), file_format=file_format)
    builder.download_and_prepare()
    return builder.data_path


def _builder(tfds, splits):
    class Blobs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Random images of two classes."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {
                split: self._generate_examples(*how) for split, how in splits.items()
            }

        def _generate_examples(self, count, labelled):
            for i in range(count):
                label = i % 2
                image = png(label, i)[1]
                yield i, {"image": image, "label": label if labelled else -1}

    return Blobs
