"""The TFDS builder `digits`; importing this module registers it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

TEST_EVERY = 5
"""Images 4, 9, 14, ... in scikit-learn's order are the test set: 359 of 1797, and 1438 are left to train on."""


class Digits(tfds.core.GeneratorBasedBuilder):
    """1797 handwritten digits, `[8, 8, 1]` float32: scikit-learn's counts of 0 to 16 divided by 16, exactly."""

    VERSION = tfds.core.Version("1.0.0")
    # TFDS finds it by itself only with a package that it does not depend on (importlib_resources).
    code_path = epath.Path(__file__)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of 43 people, 8 x 8 gray images from scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    # A tensor and not an image: images are encoded by TensorFlow.
                    "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.float32),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.24432/C50P49",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager
        return {"train": self._generate_examples(test=False), "test": self._generate_examples(test=True)}

    def _generate_examples(self, test: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        images = (digits.images[..., None] / 16).astype(np.float32)
        for number, (image, label) in enumerate(zip(images, digits.target, strict=True)):
            if (number % TEST_EVERY == TEST_EVERY - 1) == test:
                yield number, {"image": image, "label": int(label)}
