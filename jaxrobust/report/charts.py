"""Charts as plain geometry, in percent of the plot's width and height; a template draws them as inline SVG.

A point (x, y) is drawn at `100 (x - x0) / (x1 - x0)` from the left and `100 (y1 - y) / (y1 - y0)` from the top, and
keeps x and y as they were measured. Percentages stretch with the page while text and marks keep their size.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from jaxrobust.report.wording import label, number, percent

LIMIT = 2000
"""Points of one series that are drawn; of more, the lowest and the highest of each stretch."""
HEIGHT = 220
"""Pixels of a plot's height."""
SIZES = ((40, 3.5), (120, 2.2), (400, 1.4))
"""Radius in pixels of a series' marks, for at most so many of them."""
MARKS = ("circle", "square", "diamond", "ring")

Pairs: TypeAlias = Sequence[tuple[float, float | None]]
"""(x, y) in order of x; y is None where it was not finite."""


class Point(NamedTuple):
    """A mark: its place in percent, and its numbers exactly as JSON says them."""

    left: float
    top: float
    x: str
    value: str
    said: str


class Tick(NamedTuple):
    """A grid line: its place in percent, and its text."""

    place: float
    text: str


class Series(NamedTuple):
    """A line of a chart.

    Attributes:
      name: the metric.
      label: its words; empty where the title says them.
      color: number of a color of the page.
      mark: one of `MARKS`.
      size: radius of a mark in pixels; the more marks, the smaller.
      lines: stretches without a gap, each the points of an SVG polyline in percent.
      points: the marks.
      last: the words of the last value; empty where x is not time.
      beside: where its label stands at the right edge, in percent from the top.
    """

    name: str
    label: str
    color: int
    mark: str
    size: float
    lines: list[str]
    points: list[Point]
    last: str
    beside: float


class Chart(NamedTuple):
    """A chart.

    Attributes:
      title: what is measured.
      along: `step` or `radius`.
      x_ticks: along the lower edge.
      y_ticks: along the left edge.
      series: at least one.
      gutter: pixels that the labels at the right edge need.
      notes: what a reader must know to read it right.
    """

    title: str
    along: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    series: list[Series]
    gutter: int
    notes: list[str]


def chart(
    title: str, measured: Mapping[str, Pairs], *, along: str = "step", shares: bool = False, color: int = 0
) -> Chart | None:
    """Lay a chart out.

    Args:
      title: what is measured.
      measured: name -> pairs.
      along: what x is.
      shares: whether values are shares in [0, 1], which are shown from 0 to 100%.
      color: the first series' color.

    Returns:
      The chart, None where there is no finite value.
    """
    finite = {name: [(x, y) for x, y in pairs if y is not None] for name, pairs in measured.items()}
    values = [y for pairs in finite.values() for _, y in pairs]
    if not values:
        return None
    right = max(x for pairs in finite.values() for x, _ in pairs)
    x_ticks = [tick for tick in ticks(0, right) if tick <= right]
    x_range = (0.0, right or 1.0)
    lowest, highest = min(values), max(values)
    # A range that begins near zero begins at zero, so that heights compare.
    y_ticks = [0, 0.25, 0.5, 0.75, 1] if shares else ticks(0 if 0 <= lowest < highest / 2 else lowest, highest)
    y_range = (y_ticks[0], y_ticks[-1])
    say = percent if shares else number
    series = [
        _series(name, measured[name], x_range, y_range, say, color + order)
        for order, name in enumerate(finite)
        if finite[name]
    ]
    if along != "step":
        series = [line._replace(last="") for line in series]
    elif len(series) == 1:
        # The title names it.
        series = [series[0]._replace(label="")]
    series = [line._replace(beside=place) for line, place in zip(series, spread(series), strict=True)]
    return Chart(
        title,
        along,
        [Tick(_place(tick, x_range), number(tick)) for tick in x_ticks],
        [Tick(100 - _place(tick, y_range), f"{100 * tick:g}%" if shares else number(tick)) for tick in y_ticks],
        series,
        34 + 8 * max(max(len(line.label), len(line.last)) for line in series),
        _notes(measured, along),
    )


def aligned(charts: Sequence[Chart]) -> list[Chart]:
    """Charts with one gutter, so that those below each other line up."""
    gutter = max((one.gutter for one in charts), default=0)
    return [one._replace(gutter=gutter) for one in charts]


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that span a range.

    >>> ticks(0, 2000), ticks(0.31, 2.3)
    ([0, 500, 1000, 1500, 2000], [0.0, 0.5, 1.0, 1.5, 2.0, 2.5])
    """
    if not high > low:
        low, high = low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1)
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * 5.001 >= high - low)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if step >= 1:
        return [count * round(step) for count in range(first, last + 1)]
    digits = -math.floor(math.log10(step))
    return [round(count * step, digits) for count in range(first, last + 1)]


def thin(pairs: Sequence[tuple[float, float]], limit: int = LIMIT) -> list[tuple[float, float]]:
    """At most `limit` pairs: the ends, and the lowest and the highest of each stretch: no spike is lost."""
    if len(pairs) <= limit:
        return list(pairs)
    stretches = limit // 2 - 1
    kept = {0, len(pairs) - 1}
    for stretch in range(stretches):
        indices = range(len(pairs) * stretch // stretches, len(pairs) * (stretch + 1) // stretches)
        kept |= {min(indices, key=lambda i: pairs[i][1]), max(indices, key=lambda i: pairs[i][1])}
    return [pairs[index] for index in sorted(kept)]


def spread(series: Sequence[Series], gap: float = 100 * 32 / HEIGHT) -> list[float]:
    """Places for labels near each series' last point, at least `gap` percent apart where there is room."""
    order = sorted(range(len(series)), key=lambda index: series[index].points[-1].top)
    places = [0.0] * len(series)
    lowest = 4.0
    for index in order:
        places[index] = max(series[index].points[-1].top, lowest)
        lowest = places[index] + gap
    highest = 100.0
    for index in reversed(order):
        places[index] = min(places[index], highest)
        highest = places[index] - gap
    return places


def _series(
    name: str,
    pairs: Pairs,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    say: Callable[[float], str],
    color: int,
) -> Series:
    stretches: list[list[tuple[float, float]]] = [[]]
    for x, y in pairs:
        if y is None:
            stretches.append([])
        else:
            stretches[-1].append((x, y))
    count = sum(map(len, stretches))
    drawn = [thin(stretch, max(2, LIMIT * len(stretch) // max(count, LIMIT))) for stretch in stretches if stretch]
    points = [
        Point(_place(x, x_range), round(100 - _place(y, y_range), 3), json.dumps(x), json.dumps(y), say(y))
        for stretch in drawn
        for x, y in stretch
    ]
    lines, first = [], 0
    for stretch in drawn:
        lines.append(" ".join(f"{point.left},{point.top}" for point in points[first : first + len(stretch)]))
        first += len(stretch)
    size = next((size for most, size in SIZES if len(points) <= most), 0.7)
    return Series(name, label(name), color % 6, MARKS[color % 4], size, lines, points, points[-1].said, 0.0)


def _place(value: float, bounds: tuple[float, float]) -> float:
    return round(100 * (value - bounds[0]) / (bounds[1] - bounds[0]), 3)


def _notes(measured: Mapping[str, Pairs], along: str) -> list[str]:
    notes = []
    for name, pairs in measured.items():
        missing = [x for x, y in pairs if y is None]
        if missing:
            where = number(missing[0]) if len(missing) == 1 else f"{number(missing[0])} to {number(missing[-1])}"
            notes.append(f"{label(name)}: {len(missing)} not finite, {along} {where}.")
        if len(pairs) - len(missing) > LIMIT:
            notes.append(f"{label(name)}: of {len(pairs):,} rows, the lowest and highest of each stretch are drawn.")
    return notes
