"""The embedded data set: scikit-learn's handwritten digits, prepared as the TFDS data set `digits` on first use.

Neither the network nor TensorFlow is needed. 1797 images `[8, 8, 1]` of ten classes; each value is a count of 0 to 16
divided by 16, exactly. Every fifth image (numbers 4, 9, 14, ... in scikit-learn's order) is a test image: 1438 are to
train on, 359 to test.

Reference: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", https://doi.org/10.24432/C50P49, 1998.
"""

import contextlib
import io
from pathlib import Path
from typing import Any

from jaxrobust.data.arrays import Splits


def digits(*, data_dir: str | Path | None = None) -> Splits:
    """The handwritten digits, held in device memory.

    Args:
      data_dir: where TFDS keeps its data sets; `TFDS_DATA_DIR` or `~/tensorflow_datasets` by default.

    Returns:
      `Splits` of 1438 and 359 examples: images `[8, 8, 1]` float32, labels 0 to 9.

    Raises:
      ValueError: if data_dir cannot be written.

    Example:
      >>> from jaxrobust import data
      >>> splits = data.digits()
      >>> splits.train.size, splits.test.size
      (1438, 359)
    """
    from jaxrobust.data.tfds import read

    builder = prepared_digits(data_dir)
    train, test = (read(builder, split, "image", "label", split == "train") for split in ("train", "test"))
    return Splits(train, test)


def prepared_digits(data_dir: str | Path | None) -> Any:
    """The builder, its files written; several processes may do this at once, and the first one's files stay."""
    from jaxrobust.data.digits_builder import Digits

    def build() -> Any:
        return Digits(data_dir=None if data_dir is None else str(data_dir), file_format="array_record")

    builder = build()
    if builder.data_path.exists():
        return builder
    try:
        # TFDS writes into a directory of its own, then renames it. Its progress bars say nothing about a second's work.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            builder.download_and_prepare()
    except OSError as error:
        builder = build()
        if not builder.data_path.exists():
            raise ValueError(
                f"the digits cannot be written to {builder.data_dir}: set TFDS_DATA_DIR to a directory that can be "
                f"({error})"
            ) from error
    return builder
