"""Log-linear histograms: percentiles within 1.6 %, of values however large."""

import numpy as np
import pytest

from pyvirtnet._histogram import Histogram

TOP = 1 << 40


def of(values: object) -> Histogram:
    made = Histogram()
    for value in np.asarray(values).tolist():
        made.record(value)
    return made


def test_nothing_was_counted() -> None:
    empty = Histogram()
    figures = (empty.count, empty.total, empty.minimum, empty.maximum, empty.mean)
    assert figures == (0, 0, 0, 0, 0.0)
    assert empty.percentile(50) == 0
    assert empty.buckets_used() == []


@pytest.mark.parametrize("top", [100, 10_000, 10**9, TOP])
def test_percentiles_are_close(top: int) -> None:
    values = np.sort(np.random.default_rng(1).integers(0, top, 5000))
    made = of(values)
    assert (made.count, made.total) == (5000, values.sum())
    assert (made.minimum, made.maximum) == (values[0], values[-1])
    for percent in (0, 1, 50, 90, 99, 99.9, 99.99, 100):
        true = values[max(0, int(percent / 100 * 5000 + 0.5) - 1)]
        assert true <= made.percentile(percent) <= true * (1 + 1 / 64), percent


def test_small_values_are_exact() -> None:
    made = of(range(128))
    assert made.buckets_used() == [(value, 1) for value in range(128)]
    assert made.percentile(50) == 63


def test_a_percentile_is_never_exceeded_by_more_than_it_says() -> None:
    """Of 16 values, 90 % was answered by one that two exceed."""
    made = of(range(1, 17))
    for percent in range(1, 101):
        assert made.percentile(percent) == -(-percent * 16 // 100), percent


@pytest.mark.parametrize("exponent", range(7, 40))
def test_buckets_join_without_gap(exponent: int) -> None:
    edge = 1 << exponent
    made = of([edge - 1, edge])
    (below, _), (above, _) = made.buckets_used()
    assert below < edge == above
    assert made.percentile(50) == edge - 1


def test_values_beyond_the_top_count_as_the_largest() -> None:
    made = of([TOP - 1, TOP, 1 << 63])
    ((_, count),) = made.buckets_used()
    assert count == 3
    assert made.percentile(50) == made.maximum == 1 << 63


def test_merged_is_the_same_as_counted_together() -> None:
    values = np.random.default_rng(2).integers(0, 10**6, 1000)
    both, one = of(values), of(values[:300])
    one.merge(of(values[300:]))
    assert one.buckets_used() == both.buckets_used()
    for name in ("count", "total", "minimum", "maximum"):
        assert getattr(one, name) == getattr(both, name)
    one.clear()
    assert (one.count, one.maximum, one.percentile(99)) == (0, 0, 0)


@pytest.mark.parametrize("percent", [-1, 101, float("nan")])
def test_what_is_no_percentage_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="percentage"):
        of([1]).percentile(percent)
