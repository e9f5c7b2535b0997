"""Laws of intervals, slices, temperatures and thresholds, on numbers that are made up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassAveragePrecision,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from quartet.evaluation.intervals import (
    bootstrap,
    classification_scores,
    intervals_of,
    regression_scores,
    wilson,
)
from quartet.evaluation.slices import groups, slices
from quartet.inference.calibration import Calibration, fit_temperature, fit_threshold


def guesses(n: int, n_classes: int, seed: int = 0, digits: int = 2):
    """Probabilities with many ties, and classes of which the last may not occur."""
    random = np.random.default_rng(seed)
    probabilities = np.round(random.dirichlet(np.ones(n_classes), n), digits) + 1e-3
    return probabilities / probabilities.sum(1, keepdims=True), random.integers(0, max(2, n_classes - 1), n)


@pytest.mark.parametrize(("n", "n_classes"), [(50, 2), (300, 4), (97, 10)])
def test_with_equal_weights_the_metrics_are_those_of_torchmetrics(n, n_classes):
    probabilities, target = guesses(n, n_classes)
    found = classification_scores(probabilities, target, np.ones((1, n)))
    p, t = torch.tensor(probabilities), torch.tensor(target)
    occurs = torch.bincount(t, minlength=n_classes) > 0
    expected = {
        "accuracy": MulticlassAccuracy(n_classes, average="micro")(p, t),
        "precision": MulticlassPrecision(n_classes)(p, t),
        "recall": MulticlassRecall(n_classes)(p, t),
        "f1": MulticlassF1Score(n_classes)(p, t),
        "auroc": MulticlassAUROC(n_classes, average=None)(p, t)[occurs].mean(),
        "average_precision": MulticlassAveragePrecision(n_classes, average=None)(p, t)[occurs].mean(),
        "calibration_error": MulticlassCalibrationError(n_classes)(p, t),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name][0] == pytest.approx(float(value), abs=1e-6), name


def test_a_weight_is_a_repetition():
    random = np.random.default_rng(1)
    probabilities, target = guesses(80, 3)
    weights = random.integers(0, 3, (5, 80)).astype(float)
    found = classification_scores(probabilities, target, weights)
    values, errors = random.normal(size=(2, 80))
    numbers = regression_scores(values, values + errors, weights)
    for i, row in enumerate(weights.astype(int)):
        drawn = np.repeat(np.arange(80), row)
        alone = classification_scores(probabilities[drawn], target[drawn], np.ones((1, len(drawn))))
        own = regression_scores(values[drawn], (values + errors)[drawn], np.ones((1, len(drawn))))
        for name, value in (alone | own).items():
            assert (found | numbers)[name][i] == pytest.approx(value[0], abs=1e-9), name


def test_intervals_cover_a_known_accuracy():
    """Of 120 draws an interval of 95 % misses 6; with 400 samples each, 120 draws miss more than 17 once in 50,000."""
    random, truth, n_draws = np.random.default_rng(0), 0.8, 120
    hits = 0
    for seed in range(n_draws):
        right = random.random(400) < truth
        target = random.integers(0, 2, 400)
        said = np.where(right, target, 1 - target)
        probabilities = np.stack((1 - said, said), 1) * 0.8 + 0.1
        limits, _ = bootstrap(
            lambda w, p=probabilities, t=target: {"accuracy": classification_scores(p, t, w)["accuracy"]},
            400,
            resamples=400,
            seed=seed,
        )
        low, high = limits["accuracy"]
        hits += low <= truth <= high
    assert hits >= stats.binom.ppf(2e-5, n_draws, 0.95)
    assert hits < n_draws  # they are no wider than they should be


def test_a_part_without_mistakes_still_has_an_interval():
    probabilities = np.eye(2)[[0, 1] * 10] * 0.9 + 0.05
    limits, _ = intervals_of(probabilities, np.array([0, 1] * 10), 200)
    low, high = limits["accuracy"]
    assert 0.8 < low < 0.9 and high == 1
    assert wilson(0, 10)[0] == 0 and wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_resamples_of_large_parts_are_fewer():
    def scores(weights):
        return {"mean": weights.mean(1)}

    assert bootstrap(scores, 100)[1] == 1000
    assert bootstrap(scores, 100, columns=1_000_000)[1] == 100


def test_slices_are_quarters_of_numbers_and_frequent_values():
    assert len({*groups(np.array([*range(100), None], dtype=object))}) == 5  # four quarters and (missing)
    names = groups(np.array(["a"] * 50 + [f"rare {i}" for i in range(30)], dtype=object))
    assert (names[:50] == "a").all() and len({*names}) == 12 and "other" in names


def test_the_largest_gap_is_first_and_small_slices_are_not_compared():
    target = np.zeros(100, dtype=int)
    probabilities = np.tile([0.9, 0.1], (100, 1))
    probabilities[:25] = [0.1, 0.9]
    half = np.array(["left"] * 50 + ["right"] * 50, dtype=object)
    few = np.array(["tiny"] * 5 + ["rest"] * 95, dtype=object)
    even = np.array(["x", "y"] * 50, dtype=object)
    found, gaps = slices({"even": even, "half": half, "few": few}, probabilities, target)
    assert [gap.column for gap in gaps] == ["half", "even"] and gaps[0].size == 0.5 and gaps[0].apart
    assert gaps[0].worst.value == "left" and not gaps[1].apart
    assert {one.value: one.n for one in found if one.column == "few"} == {"tiny": 5, "rest": 95}


# calibration


def test_a_temperature_mends_overconfidence_and_changes_no_prediction():
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (4000, 3))
    honest = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    target = np.array([random.choice(3, p=row) for row in honest])
    overconfident = Calibration(1 / 3).apply(honest)
    temperature = fit_temperature(overconfident, target)
    assert temperature == pytest.approx(3, rel=0.1)
    mended = Calibration(temperature).apply(overconfident)
    np.testing.assert_allclose(mended.sum(1), 1, atol=1e-9)
    assert (mended.argmax(1) == overconfident.argmax(1)).all()
    np.testing.assert_allclose(mended, honest, atol=0.05)
    assert Calibration().apply(honest) is honest


@pytest.mark.parametrize("goal", ["f1", "balanced_accuracy", "cost"])
def test_no_other_threshold_is_better(goal):
    random = np.random.default_rng(3)
    target = (random.random(300) < 0.2).astype(int)
    probability = np.round(1 / (1 + np.exp(-(2 * target - 1.5 + random.normal(size=300)))), 2)  # with ties
    costs = (1.0, 7.0)

    def worth(threshold: float) -> float:
        said = probability >= threshold
        hits, alarms = (said & (target == 1)).sum(), (said & (target == 0)).sum()
        if goal == "f1":
            return 2 * hits / (said.sum() + target.sum())
        if goal == "balanced_accuracy":
            return hits / target.sum() - alarms / (target == 0).sum()
        return -(costs[0] * alarms + costs[1] * (target.sum() - hits))

    found = fit_threshold(probability, target, goal, costs)
    assert worth(found) >= max(map(worth, np.linspace(0, 1.01, 500))) - 1e-12
