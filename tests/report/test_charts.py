import math

import numpy as np
import pytest

from jaxrobust.report import charts


def test_places_by_hand():
    drawn = charts.chart("loss", {"loss": [(0, 4.0), (50, 1.0), (100, 0.0)]})
    assert [(point.left, point.top) for point in drawn.series[0].points] == [(0, 0), (50, 75), (100, 100)]
    assert [(tick.place, tick.text) for tick in drawn.y_ticks][::4] == [(100, "0"), (0, "4")]
    assert [(point.x, point.value) for point in drawn.series[0].points] == [("0", "4.0"), ("50", "1.0"), ("100", "0.0")]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 7), (0.31, 2.3), (-3, 5), (1e-9, 3e-9), (0, 123456), (5, 5), (0, 0), (-2.5, -2.5)]
)
def test_ticks_are_round_and_span_the_range(low, high):
    found = charts.ticks(low, high)
    assert 3 <= len(found) <= 7
    assert found[0] <= low <= high <= found[-1]
    gaps = np.diff(found)
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-9)
    mantissa = gaps[0] / 10 ** math.floor(math.log10(gaps[0]) + 1e-9)
    assert min(abs(mantissa - round_one) for round_one in (1, 2, 5)) < 1e-6


def test_no_spike_is_lost_by_thinning():
    values = np.sin(np.arange(30_000) / 500)
    values[12_346], values[20_001] = 9.0, -9.0
    pairs = list(enumerate(values.tolist()))
    kept = charts.thin(pairs)
    assert len(kept) <= charts.LIMIT
    assert {(12_346, 9.0), (20_001, -9.0)} <= set(kept) <= set(pairs)
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (pairs[0], pairs[-1])
    # The negative control: every k-th pair loses both.
    assert not {(12_346, 9.0), (20_001, -9.0)} & set(pairs[:: len(pairs) // charts.LIMIT])


def test_all_points_are_drawn_up_to_the_limit():
    pairs = [(step, math.sin(step)) for step in range(charts.LIMIT)]
    assert charts.thin(pairs) == pairs
    assert len(charts.thin([*pairs, (charts.LIMIT, 0.0)])) <= charts.LIMIT


def test_gap_where_a_value_was_not_finite():
    drawn = charts.chart("loss", {"loss": [(1, 2.0), (2, 1.0), (3, None), (4, None), (5, 1.0)]})
    assert [len(line.split()) for line in drawn.series[0].lines] == [2, 1]
    assert drawn.notes == ["loss: 2 not finite, step 3 to 4."]
    whole = charts.chart("loss", {"loss": [(1, 2.0), (2, 1.0), (5, 1.0)]})
    assert (len(whole.series[0].lines), whole.notes) == (1, [])


def test_many_gaps_stay_within_the_limit():
    pairs = [(step, None if step % 100 == 99 else 1.0) for step in range(20_000)]
    assert len(charts.chart("loss", {"loss": pairs}).series[0].points) <= charts.LIMIT


@pytest.mark.parametrize("values", [[], [(1, None)]])
def test_nothing_finite_is_no_chart(values):
    assert charts.chart("loss", {"loss": values}) is None


def test_labels_do_not_cover_each_other():
    near = {f"attack {order}": [(1, 0.5), (2, 0.5 + order / 100)] for order in range(5)}
    drawn = charts.chart("accuracy", near, shares=True)
    beside = sorted(line.beside for line in drawn.series)
    assert min(np.diff(beside)) * charts.HEIGHT / 100 > 29
    assert beside[0] >= 0
    assert beside[-1] <= 100
    last = sorted(line.points[-1].top for line in drawn.series)
    assert min(np.diff(last)) * charts.HEIGHT / 100 < 29


def test_one_series_is_named_by_the_title_alone():
    assert charts.chart("loss", {"loss": [(1, 1.0)]}).series[0].label == ""
    both = charts.chart("accuracy", {"clean": [(1, 1.0)], "pgd_accuracy": [(1, 0.5)]}, shares=True)
    assert [line.label for line in both.series] == ["clean", "pgd"]
    assert len({(line.color, line.mark) for line in both.series}) == 2
