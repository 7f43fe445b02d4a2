import base64
import io

import numpy as np
import pytest
from PIL import Image

from jaxrobust.report import pixels
from jaxrobust.typing import Gallery


def decode(address):
    kind, data = address.split(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def gallery(largest=0.03, count=4, channels=3):
    rng = np.random.default_rng(0)
    images = rng.uniform(0.2, 0.8, (count, 5, 7, channels)).astype(np.float32)
    change = rng.uniform(-1, 1, images.shape)
    change *= largest / np.abs(change).max()
    labels = np.arange(count)
    return Gallery(images, (images + change).astype(np.float32), labels, labels, labels[::-1])


@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_the_image(channels):
    image = gallery(channels=channels).images[0]
    found = decode(pixels.address(pixels.bytes_of(image)))
    expected = np.round(255 * image).astype(np.uint8)
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)
    # The negative control: rounding down is another image.
    assert (found.reshape(expected.shape) != np.floor(255 * image)).any()


def test_every_byte_has_its_share():
    np.testing.assert_array_equal(pixels.bytes_of(np.arange(256) / 255), np.arange(256))
    assert pixels.bytes_of(np.array([-0.01, 1.01])).tolist() == [0, 255]


@pytest.mark.parametrize(
    ("largest", "scale"), [(0.03, 10), (8 / 255, 10), (0.1001, 2), (0.0999, 5), (0.3, 1), (0.9, 1), (1e-4, 2000)]
)
def test_change_is_magnified_as_far_as_it_fits(largest, scale):
    assert pixels.magnification(gallery(largest)) == scale


def test_change_is_drawn_around_mid_gray():
    case = gallery(0.03)
    exhibit = pixels.exhibits(case)[1]
    assert [picture.kind for picture in exhibit.pictures] == ["clean", "change", "adversarial"]
    assert "10" in exhibit.pictures[1].caption
    expected = np.rint(255 * (0.5 + 10 * (case.adversarial[1] - case.images[1])))
    np.testing.assert_array_equal(decode(exhibit.pictures[1].address), expected)
    assert 100 < expected.mean() < 155


def test_no_change_is_gray_and_empty_gallery_has_no_exhibit():
    case = gallery()
    still = case._replace(adversarial=case.images)
    assert pixels.magnification(still) == 1
    assert set(decode(pixels.exhibits(still)[0].pictures[1].address).ravel()) == {128}
    assert pixels.exhibits(Gallery(*(part[:0] for part in case))) == []


def test_verdicts():
    case = gallery(count=3)._replace(
        labels=np.array([1, 1, 1]), clean=np.array([1, 1, 2]), attacked=np.array([1, 2, 2])
    )
    assert [exhibit.verdict for exhibit in pixels.exhibits(case)] == ["withstood", "fooled", "wrong before"]


def test_page_stays_small():
    assert len(pixels.exhibits(gallery(count=pixels.SHOWN + 5))) == pixels.SHOWN
