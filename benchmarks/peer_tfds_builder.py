"""The ingest job's conversion as a TFDS builder whose split is a Beam transform."""

from pathlib import Path

import apache_beam as beam
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


class Lyft(tfds.core.GeneratorBasedBuilder):
    """Image and mask at 96x128, nearest neighbour, class ids from the mask's red channel."""

    VERSION = tfds.core.Version("1.0.0")
    source = ""

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(96, 128, 3), encoding_format="png"),
                    "mask": tfds.features.Image(shape=(96, 128, 1), encoding_format="png"),
                }
            ),
        )

    def _split_generators(self, dl_manager):  # noqa: ARG002
        return {"train": self._generate_examples(self.source)}

    def _generate_examples(self, source):
        names = sorted(path.name for path in Path(source, "CameraRGB").iterdir())
        return beam.Create(names) | beam.Map(convert, source)


def convert(name, source):
    """Reads one pair; TFDS encodes the arrays as PNG."""
    image = np.asarray(nearest(Image.open(Path(source, "CameraRGB", name))))
    mask = nearest(Image.open(Path(source, "CameraSeg", name)).getchannel("R"))
    return name, {"image": image, "mask": np.asarray(mask)[..., None]}


def nearest(image):
    """Resizes with Pillow's nearest neighbour."""
    return image.resize((128, 96), Image.Resampling.NEAREST)
