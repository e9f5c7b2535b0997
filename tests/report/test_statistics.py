import math

import numpy as np
import pytest
from scipy import stats

from quartet.report.statistics import compare, estimate, importance, pareto_front

VALUES = [0.1, 0.4, 0.35, 0.8]


def by_seed(values):
    return {(seed, None): value for seed, value in enumerate(values)}


def test_mean_std_and_student_s_interval():
    e = estimate(VALUES)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(VALUES), scale=stats.sem(VALUES))
    assert (e.n, e.mean, e.std) == (4, pytest.approx(np.mean(VALUES)), pytest.approx(np.std(VALUES, ddof=1)))
    assert (e.low, e.high) == (pytest.approx(low), pytest.approx(high))


def test_one_value_has_no_deviation_and_none_has_no_mean():
    assert (estimate([2.0]).mean, estimate([2.0]).std, estimate([2.0]).low) == (2.0, None, None)
    assert math.isnan(estimate([]).mean)


def test_pairs_are_tested_as_scipy_tests_them():
    first, second = [1.0, 1.3, 0.9, 1.2, 1.1, 1.4, 0.7], [1.1, 1.2, 1.2, 1.5, 1.3, 1.6, 1.0]
    found = compare(by_seed(first), by_seed(second))
    expected = stats.ttest_rel(first, second)
    interval = expected.confidence_interval(0.95)
    assert found.t_test == pytest.approx(expected.pvalue)
    assert (found.difference.low, found.difference.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.wilcoxon == pytest.approx(stats.wilcoxon(first, second).pvalue)  # type: ignore[attr-defined]
    assert not found.corrected


def test_only_common_seeds_and_folds_are_pairs():
    found = compare({(0, 0): 1.0, (1, 0): 2.0, (2, 0): 9.0}, {(1, 0): 1.0, (0, 0): 0.5, (0, 1): 7.0})
    assert (found.difference.n, found.difference.mean) == (2, pytest.approx(0.75))


def test_folds_are_corrected_by_nadeau_and_bengio():
    """The variance of the mean is (1/n + n_val/n_train) s², n_val/n_train being 1/(folds - 1)."""
    first, second = [0.5, 0.4, 0.6, 0.55, 0.45], [0.45, 0.38, 0.5, 0.5, 0.46]
    found = compare(*({(0, fold): v for fold, v in enumerate(values)} for values in (first, second)), folds=5)
    d = np.subtract(first, second)
    t = d.mean() / math.sqrt((1 / 5 + 1 / 4) * d.var(ddof=1))
    assert found.corrected and found.t_test == pytest.approx(2 * stats.t.sf(abs(t), 4))
    plain = compare(by_seed(first), by_seed(second))
    assert plain.t_test is not None and found.t_test is not None and found.t_test > plain.t_test


@pytest.mark.parametrize("n, words", [(0, "no pair"), (1, "only one pair")])
def test_too_few_pairs_are_not_tested(n, words):
    found = compare(by_seed([1.0] * n), by_seed([2.0, 3.0]))
    assert words in found.why and found.t_test is None and found.wilcoxon is None


def test_equal_differences_are_not_tested():
    found = compare(by_seed([1.0, 2.0, 3.0]), by_seed([0.0, 1.0, 2.0]))
    assert found.t_test is None and "same difference" in found.why and found.difference.mean == 1


def test_the_front_is_what_nothing_beats():
    points = [(1, 5), (2, 2), (5, 1), (3, 3), (2, 2)]
    assert pareto_front(points, ["min", "min"]) == [0, 1, 2, 4]
    assert pareto_front(points, ["max", "max"]) == [0, 2, 3]
    assert pareto_front([], ["min", "min"]) == []


def test_what_decides_is_most_important():
    rng = np.random.default_rng(0)
    points = [{"lr": float(10 ** rng.uniform(-4, 0)), "dropout": float(rng.uniform()), "cell": c} for c in "ab" * 15]
    found = importance(points, [math.log(p["lr"]) ** 2 + 0.01 * p["dropout"] for p in points], {"lr"})
    assert next(iter(found)) == "lr" and found["lr"] > 0.8 and sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "points, values, words",
    [
        ([{"a": 1, "b": 2}] * 9, range(9), "10 completed runs, there are 9"),
        ([], [], "there are 0"),
        ([{"a": i, "b": 2} for i in range(10)], range(10), "two varied parameters"),
        ([{"a": i, "b": -i} for i in range(10)], [1.0] * 10, "the same"),
    ],
)
def test_no_importance_without_reason(points, values, words):
    with pytest.raises(ValueError, match=words):
        importance(points, list(values))


def test_importance_is_the_analysis_of_variance_of_a_grid():
    """Ten rates over three decades with five seeds each: shares as of the means of the ranks, whatever the scale."""
    rates = [1e-4, 3e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 3e-2, 1e-1]
    rng = np.random.default_rng(0)
    points = [{"lr": lr, "seed": seed} for lr in rates for seed in range(5)]
    values = [abs(math.log10(p["lr"] / 5e-3)) + 0.05 * rng.normal() for p in points]
    for scale in ({"lr"}, set()):
        found = importance(points, values, scale)
        assert found["lr"] > 0.9 > 0.1 > found["seed"]
    drawn = [{"lr": float(10 ** rng.uniform(-4, -1)), "seed": f"seed {i % 5}"} for i in range(50)]
    found = importance(drawn, [abs(math.log10(p["lr"] / 5e-3)) for p in drawn], {"lr"})
    assert found["lr"] > 0.9
