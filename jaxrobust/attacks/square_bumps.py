r"""How large Square's windows are, and the bumps that fill them in l2 and l1: constants of a traced search.

A half bump is a pyramid: at Chebyshev distance d from its middle it is :math:`\sum_{k > d} k^{-q}`, nested rectangles
of weight :math:`k^{-q}` around the middle, with q = 2 in l2 and 4 in l1. A bump is one half up and one half down. Both
are divided by their norms.

An image of one row or one column is a segment: its windows have a share p of its length, where those of other images
are squares of a share p of the area.

Reference: Andriushchenko, Croce, Flammarion and Hein, "Square Attack: a Query-Efficient Black-Box Adversarial Attack
via Random Search", https://arxiv.org/abs/1912.00049, 2020 (section 4, algorithm 3); Croce and Hein, "Mind the Box:
l1-APGD for Sparse Adversarial Attacks on Image Classifiers", https://arxiv.org/abs/2103.01208, 2021 (l1).
"""

import numpy as np

from jaxrobust.typing import Shape

# The share is halved after each of these questions, of 10,000.
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
LONGEST = 10_000


def shares(questions: int, first_share: float, rescaled: bool) -> np.ndarray:
    """Share of the image that a window covers, at every question of a run.

    Args:
      questions: how many there are.
      first_share: at the first ones.
      rescaled: whether the halvings are spread over the run as they are over 10,000 questions.

    Returns:
      `[questions]`, falling.

    Example:
      >>> from jaxrobust.attacks.square_bumps import shares
      >>> shares(5000, 0.8, rescaled=False)[[0, 10, 11, 4999]].tolist()
      [0.8, 0.8, 0.4, 0.00625]
    """
    question = np.arange(questions)
    halvings = np.searchsorted(HALVED_AFTER, question * LONGEST // questions if rescaled else question)
    return first_share / 2.0**halvings


def sides(share: np.ndarray, shape: Shape, bumps: bool) -> np.ndarray:
    """Sides of the windows: at least 1 pixel, of bumps at least 3 and odd, and never more than the image's side.

    Args:
      share: of the image, in (0, 1].
      shape: of the image, `(rows, columns, ...)`.
      bumps: whether bumps fill the windows.

    Returns:
      Whole numbers, of share's shape.

    Example:
      >>> import numpy as np
      >>> from jaxrobust.attacks.square_bumps import sides
      >>> sides(np.array([0.8, 0.00625]), (8, 8, 1), bumps=True).tolist()
      [7, 3]
    """
    rows, columns = shape[:2]
    segment = min(rows, columns) == 1
    side = np.rint((share * rows * columns) ** (1 if segment else 0.5)).astype(np.int32)
    if bumps:
        side = np.maximum(side, 3) // 2 * 2 + 1
    return np.clip(side, 1, max(rows, columns) if segment else min(rows, columns))


def half_bump(rows: int, columns: int, exponent: int) -> np.ndarray:
    """A pyramid whose middle is at `(rows // 2, columns // 2)`.

    Args:
      rows: its height.
      columns: its width.
      exponent: of the norm that it is divided by, 2 or 1.

    Returns:
      `[rows, columns]` float64 of norm 1, positive.

    Example:
      >>> from jaxrobust.attacks.square_bumps import half_bump
      >>> (19 * half_bump(1, 3, 1)).round().tolist()
      [[1.0, 17.0, 1.0]]
    """
    across, along = (np.abs(np.arange(side) - side // 2) for side in (rows, columns))
    weights = 1 / np.arange(1, max(rows, columns) // 2 + 2) ** {2: 2, 1: 4}[exponent]
    beyond = np.cumsum(weights[::-1])[::-1]
    return _unit(beyond[np.maximum(across[:, None], along[None, :])], exponent)


def bump(rows: int, columns: int, exponent: int) -> np.ndarray:
    """Up in the upper half and down in the lower; of one row, up in the left half and down in the right.

    Args:
      rows: its height; of an odd one the lower half has the middle row.
      columns: its width.
      exponent: of the norm that it is divided by, 2 or 1.

    Returns:
      `[rows, columns]` float64 of norm 1; of one pixel, -1.

    Example:
      >>> from jaxrobust.attacks.square_bumps import bump
      >>> bump(2, 1, 1).tolist()
      [[0.5], [-0.5]]
    """
    if rows == 1 < columns:
        return bump(columns, 1, exponent).T
    upper = [half_bump(rows // 2, columns, exponent)] if rows > 1 else []
    return _unit(np.concatenate([*upper, -half_bump(rows - rows // 2, columns, exponent)]), exponent)


def bumps_in_corner(side: np.ndarray, shape: Shape, exponent: int) -> np.ndarray:
    """Bumps of several sides, each in the first rows and columns of an image that is 0 elsewhere.

    Args:
      side: `[sizes]`.
      shape: of the image, `(rows, columns, ...)`.
      exponent: 2 or 1.

    Returns:
      `[sizes, 2, rows, columns]` float64; the second of a pair is turned by a quarter, but for segments.
    """
    rows, columns = shape[:2]
    found = np.zeros((len(side), 2, rows, columns))
    for number, each in enumerate(side):
        height, width = min(each, rows), min(each, columns)
        tile = bump(height, width, exponent)
        found[number, :, :height, :width] = tile, tile.T if height == width else tile
    return found


def grid_of_bumps(shape: Shape, exponent: int) -> tuple[np.ndarray, np.ndarray]:
    """Bumps side by side, of a fifth of the image's side each; the border cuts what does not fit.

    Five of them are centered and more follow to the right and below, as in the authors' code; an image whose side is
    below 5 is filled with single pixels.

    Args:
      shape: of the image, `(rows, columns, ...)`.
      exponent: 2 or 1.

    Returns:
      `[2, rows, columns]` float64, the second with each bump turned by a quarter, but for segments; and the number of
      every pixel's bump, `[rows, columns]`.
    """
    rows, columns = shape[:2]
    length = max(rows, columns) if min(rows, columns) == 1 else min(rows, columns)
    side = max(length // 5, 1)
    first = max((length - 5 * side) // 2, 0)
    # A segment has no margin along its other axis.
    starts = [first if size > 1 else 0 for size in (rows, columns)]
    tile = bump(min(side, rows), min(side, columns), exponent)
    down, right = (np.arange(size) - start for size, start in zip((rows, columns), starts, strict=True))
    inside = (down >= 0)[:, None] & (right >= 0)[None, :]
    both = [
        np.where(inside, each[down[:, None] % len(each), right[None, :] % each.shape[1]], 0)
        for each in (tile, tile.T if tile.shape[0] == tile.shape[1] else tile)
    ]
    across = -(-(columns - starts[1]) // tile.shape[1])
    number = np.maximum(down, 0)[:, None] // tile.shape[0] * across + np.maximum(right, 0)[None, :] // tile.shape[1]
    return np.stack(both), number


def _unit(x: np.ndarray, exponent: int) -> np.ndarray:
    return x / np.sum(np.abs(x) ** exponent) ** (1 / exponent)
