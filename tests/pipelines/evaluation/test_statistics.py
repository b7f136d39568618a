"""Intervals: against formulas where there are some, and their coverage."""

import numpy as np
import pytest
from scipy import stats

from pipelines.evaluation import statistics
from pipelines.evaluation.statistics import bootstrap, bootstrap_statistic, paired


def test_the_interval_of_a_mean_is_about_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(20, 3, 400)
    got = bootstrap(values)
    error = stats.norm.ppf(0.975) * values.std() / np.sqrt(400)
    assert got.value == pytest.approx(values.mean())
    assert got.low == pytest.approx(values.mean() - error, abs=0.05)
    assert got.high == pytest.approx(values.mean() + error, abs=0.05)


def test_intervals_hold_the_true_mean_in_about_95_of_100_samples():
    rng = np.random.default_rng(2)
    found = [bootstrap(rng.exponential(1, 60), draws=400) for _ in range(400)]
    assert 0.89 < np.mean([interval.low <= 1 <= interval.high for interval in found]) < 0.98


def test_only_pictures_that_count_enter():
    values = np.array([1.0, 2.0, np.nan, 100.0])
    assert bootstrap(values, np.array([True, True, True, False])).value == 1.5
    assert bootstrap(values).value == pytest.approx(103 / 3)
    for nothing in (bootstrap(values, np.zeros(4, bool)), bootstrap(np.array([np.nan])), bootstrap(np.array([]))):
        assert np.isnan(nothing).all()
    assert bootstrap(np.array([3.0])) == (3, 3, 3)


def test_draws_are_those_of_the_seed_and_blocks_do_not_change_their_size(monkeypatch):
    values = np.random.default_rng(3).random(50)
    assert bootstrap(values, seed=4) == bootstrap(values, seed=4) != bootstrap(values, seed=5)
    whole = bootstrap(values, draws=301)
    monkeypatch.setattr(statistics, "AT_ONCE", 350)  # 43 blocks of 7
    assert bootstrap(values, draws=301) == whole
    assert len(statistics._means(values, 0, 301)) == 301


def test_pairs_are_compared_in_the_direction_of_the_metric():
    a, b = np.array([1.0, 2.0, 3.0, np.nan, 5.0]), np.array([0.0, 3.0, 3.0, 1.0, 1.0])
    higher, lower = paired(a, b, "higher"), paired(a, b, "lower")
    assert (higher.win_rate, lower.win_rate, higher.pairs) == (2.5 / 4, 1.5 / 4, 4)
    assert higher.difference == lower.difference
    assert higher.difference.value == 1
    assert higher.difference.low <= 1 <= higher.difference.high
    assert paired(a[:0], b[:0], "higher").pairs == 0


def test_the_difference_of_pairs_is_surer_than_that_of_means():
    rng = np.random.default_rng(6)
    hard = rng.normal(0, 5, 200)  # how hard a picture is, for both
    a, b = hard + 0.5 + rng.normal(0, 0.2, 200), hard + rng.normal(0, 0.2, 200)
    assert paired(a, b, "higher").difference.low > 0
    assert bootstrap(a).low < bootstrap(b).high


def test_a_statistic_of_a_set_draws_the_same_pictures_of_every_array():
    rng = np.random.default_rng(7)
    x = rng.normal(0, 1, (300, 2))
    same = bootstrap_statistic([x, x], lambda a, b: float(np.abs(a - b).max()))
    assert same == (0, 0, 0)
    got = bootstrap_statistic([x[:, 0]], lambda a: float(a.mean()), draws=1000)
    of_mean = bootstrap(x[:, 0])
    assert (got.low, got.high) == pytest.approx((of_mean.low, of_mean.high), abs=0.03)
    with pytest.raises(ValueError, match=r"\[300, 5\]"):
        bootstrap_statistic([x, x[:5]], lambda a, b: 0.0)


def test_a_biased_statistic_keeps_its_value_inside():
    x = np.random.default_rng(8).normal(0, 1, (40, 8))
    got = bootstrap_statistic([x], lambda a: float(np.linalg.slogdet(np.cov(a, rowvar=False))[1]))
    assert got.low < got.value < got.high
