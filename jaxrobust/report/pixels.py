"""Images as data addresses, pixel for pixel: `round(255 x)` for x in [0, 1].

A change d = x' - x is drawn around mid-gray, `1/2 + scale d`, with one scale for all images of a gallery.
"""

import base64
import io
from typing import NamedTuple

import numpy as np

from jaxrobust.typing import Gallery

SHOWN = 48
"""How many examples of a gallery a page shows; more would be megabytes of images nobody scrolls through."""


class Picture(NamedTuple):
    """One image of a page.

    Attributes:
      kind: `clean`, `change` or `adversarial`.
      caption: what is said under it.
      address: the PNG as a data address.
    """

    kind: str
    caption: str
    address: str


class Exhibit(NamedTuple):
    """One example of a gallery.

    Attributes:
      index: its number in the gallery.
      label: its true class.
      verdict: `fooled`, `withstood` or `wrong before`.
      pictures: the image, its change and the attacked image.
    """

    index: int
    label: int
    verdict: str
    pictures: tuple[Picture, ...]


def bytes_of(images: np.ndarray) -> np.ndarray:
    """`round(255 x)` as uint8, for x in [0, 1].

    >>> bytes_of(np.array([0.0, 0.5, 1.0])).tolist()
    [0, 128, 255]
    """
    return np.clip(np.rint(255 * images), 0, 255).astype(np.uint8)


def address(pixels: np.ndarray) -> str:
    """uint8 pixels `[height, width, 1 or 3]` as the data address of a PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def magnification(gallery: Gallery) -> float:
    """The scale that draws a gallery's changes: the largest of 1, 2, 5, 10, ... that keeps them all in [0, 1]."""
    largest = float(np.max(np.abs(gallery.adversarial - gallery.images), initial=0.0))
    if largest == 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(0.5 / largest))
    return max(1.0, float(max(step * power for step in (1, 2, 5) if step * power * largest <= 0.5)))


def exhibits(gallery: Gallery) -> list[Exhibit]:
    """What a page shows of a gallery: at most the first `SHOWN` examples."""
    scale = magnification(gallery)
    changes = 0.5 + scale * (gallery.adversarial - gallery.images)
    found = []
    for index in range(min(len(gallery.labels), SHOWN)):
        label, clean, attacked = (int(part[index]) for part in (gallery.labels, gallery.clean, gallery.attacked))
        verdict = "wrong before" if clean != label else "withstood" if attacked == label else "fooled"
        kinds = (
            ("clean", f"taken for {clean}", gallery.images),
            ("change", f"change \N{MULTIPLICATION SIGN} {scale:g}", changes),
            ("adversarial", f"taken for {attacked}", gallery.adversarial),
        )
        pictures = tuple(Picture(kind, caption, address(bytes_of(part[index]))) for kind, caption, part in kinds)
        found.append(Exhibit(index, label, verdict, pictures))
    return found
