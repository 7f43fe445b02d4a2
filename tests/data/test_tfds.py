import io
import itertools
import shutil
import sys

import jax
import numpy as np
import pytest
import tensorflow_datasets
from etils import epath
from PIL import Image

from jaxrobust import data

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 6, 5, 3), np.uint8)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


class Tiles(tensorflow_datasets.core.GeneratorBasedBuilder):
    """Random PNG images, under names of their own."""

    VERSION = tensorflow_datasets.core.Version("2.0.0")
    code_path = epath.Path(__file__)

    def _info(self):
        features = tensorflow_datasets.features
        return tensorflow_datasets.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "tile": features.Image(shape=(None, None, 3)),
                    "kind": features.ClassLabel(num_classes=4),
                    "number": features.Scalar(np.int64),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        splits = {"train": range(24), "test": range(24, 30), "uneven": range(2)}
        return {name: self._generate_examples(name, numbers) for name, numbers in splits.items()}

    def _generate_examples(self, name, numbers):
        for i in numbers:
            image = IMAGES[i, : 6 - i] if name == "uneven" else IMAGES[i]
            yield i, {"tile": io.BytesIO(png(image)), "kind": i % 4, "number": i}


NAMES = {"image": "tile", "label": "kind"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("prepared")
    data.prepare("tiles", path)
    return path


def rows(images, labels):
    return sorted(zip(map(bytes, images), labels.tolist(), strict=True))


def held(source):
    state = source.init(jax.random.key(0))
    return rows(np.asarray(state.images), np.asarray(state.labels))


def test_a_builder_with_png_images_is_read_without_tensorflow(folder):
    assert "tensorflow" not in sys.modules
    splits = data.tfds("tiles", data_dir=folder, **NAMES)
    assert held(splits.train) == rows(IMAGES[:24], np.arange(24) % 4)
    assert held(splits.test) == rows(IMAGES[24:], np.arange(24, 30) % 4)
    assert held(splits.train) != rows(IMAGES[:24, ..., ::-1], np.arange(24) % 4)
    assert "tensorflow" not in sys.modules


def test_files_are_in_array_records_and_prepared_once(folder):
    files = {path.name: path.stat().st_mtime_ns for path in (folder / "tiles" / "2.0.0").iterdir()}
    assert "tiles-train.array_record-00000-of-00001" in files
    data.prepare("tiles", folder)
    assert files == {path.name: path.stat().st_mtime_ns for path in (folder / "tiles" / "2.0.0").iterdir()}


def test_slices_versions_and_number_labels(folder):
    splits = data.tfds(
        "tiles:2.0.0",
        data_dir=folder,
        train_split="train[:50%]",
        test_split="train[50%:]",
        image="tile",
        label="number",
    )
    assert (splits.train.size, splits.test.size) == (12, 12)
    both = np.concatenate([each.init(jax.random.key(0)).labels for each in splits])
    assert sorted(both) == list(range(24))


def test_streamed_from_disk_it_has_the_same_examples(folder):
    splits = data.tfds("tiles", data_dir=folder, in_memory=False, **NAMES)
    batches = list(itertools.islice(splits.train.batches(0, 0, 8, 0, 1), 3))
    found = rows(np.concatenate([b.inputs for b in batches]), np.concatenate([b.targets for b in batches]))
    assert found == rows(IMAGES[:24], np.arange(24) % 4)
    assert splits.test.size == 6
    part = data.tfds("tiles", data_dir=folder, in_memory=False, train_split="train[:8]", **NAMES).train
    assert part.size == 8
    assert part.fingerprint != splits.train.fingerprint


def test_public_sets_are_read_as_they_are_declared():
    with tensorflow_datasets.testing.mock_data(num_examples=7):
        mocked = tensorflow_datasets.data_source("mnist", split="train")
        # Mocked sources cannot give several examples at once.
        examples = [mocked[i] for i in range(len(mocked))]
        stream = data.stream(examples, classes=10)
        batch = next(stream.batches(0, 0, 7, 0, 1))
    assert batch.inputs.shape == (7, 28, 28, 1)
    assert sorted(batch.index.tolist()) == list(range(7))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("mnits", {}, "no TFDS data set 'mnits': did you mean 'mnist'?"),
        ("tils", {}, "did you mean 'tiles'?"),
        ("mnist", {}, "mnist is not prepared in {folder}: run `jaxrobust data prepare mnist`"),
        ("tiles", {}, "tiles has no feature 'image': it has kind, number, tile"),
        ("tiles", {"image": "tile"}, "tiles has no feature 'label'"),
        (
            "tiles",
            {**NAMES, "train_split": "training"},
            "no examples in split 'training' of tiles: it has train, test, uneven",
        ),
        ("tiles", {**NAMES, "train_split": "train[:0]"}, "no examples in split 'train[:0]' of tiles: it has"),
        (
            "tiles",
            {**NAMES, "train_split": "uneven"},
            "images of tiles must be of one shape, got (5, 5, 3) and (6, 5, 3)",
        ),
    ],
)
def test_what_is_not_there_is_named_in_one_line(folder, name, options, said):
    with pytest.raises(ValueError, match=r"\S") as caught:
        data.tfds(name, data_dir=folder, **options)
    assert said.format(folder=folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_of_another_format_are_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    info = tmp_path / "tiles" / "2.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(
        ValueError, match="is not in ArrayRecord files: move it away and run `jaxrobust data prepare tiles`"
    ):
        data.tfds("tiles", data_dir=tmp_path, **NAMES)


def failing(monkeypatch, error):
    def fail(self, dl_manager):
        raise error

    monkeypatch.setattr(Tiles, "_split_generators", fail)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("no", name="tensorflow.io"), "the module tensorflow.io: pip install 'jaxrobust[prepare]'"),
        (ModuleNotFoundError("no", name="pandas"), "the module pandas: pip install 'jaxrobust[prepare]' pandas"),
        (ConnectionError("no route to host\nat all"), "tiles could not be prepared: no route to host"),
    ],
)
def test_why_a_set_cannot_be_prepared_is_said_in_one_line(monkeypatch, tmp_path, error, said):
    failing(monkeypatch, error)
    with pytest.raises(ValueError, match=r"\S") as caught:
        data.prepare("tiles", tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_is_not_prepared(tmp_path):
    with pytest.raises(ValueError, match=r"no TFDS data set 'cifra10': did you mean 'cifar10'\?"):
        data.prepare("cifra10", tmp_path)


def test_the_digits_are_prepared_by_name(tmp_path):
    data.prepare("digits", tmp_path)
    found = data.tfds("digits", data_dir=tmp_path)
    assert found.train.fingerprint == data.digits(data_dir=tmp_path).train.fingerprint
