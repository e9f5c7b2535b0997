"""Bootstrap intervals: every metric of a part, computed again on samples drawn from it with replacement.

A resample is a row of weights, how often each sample was drawn, so that R of them are computed at once with matrices and
each sample is sorted once. With all weights 1 a metric is what torchmetrics and scikit-learn say (tests compare them).
The interval is the 2.5th to 97.5th percentile (Efron & Tibshirani 1993, chapter 13).

Letters: R resamples, N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy import ndarray as Array
from scipy import stats

RESAMPLES = 1000  # what percentiles of 2.5 and 97.5 need (Efron & Tibshirani 1993)
FEWEST = 100  # of very many samples, where the interval is narrow anyway
WORK = 100_000_000  # weights times classes in all: 10,000 samples of 10 classes, 9 s on two busy cores
AT_ONCE = 4_000_000  # weights in memory
N_BINS = 15  # of the calibration error, torchmetrics' default
LEVEL = 0.95

Scores = dict[str, Array]  # name -> (R,), NaN where a resample has no value


def classification_scores(probabilities: Array, target: Array, weights: Array) -> Scores:
    """(N, C) probabilities, (N,) classes and (R, N) weights to the metrics of `tasks/classification.py`."""
    n_classes = probabilities.shape[1]
    total = weights.sum(1)
    predicted = probabilities.argmax(1)
    true, chosen = np.eye(n_classes)[target], np.eye(n_classes)[predicted]  # (N, C)
    # 1. counts of each class, (R, C), and what follows from them
    hits, support, called = weights @ (true * chosen), weights @ true, weights @ chosen
    there = support + called > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Scores = {"accuracy": hits.sum(1) / total}
        for name, per_class in (
            ("precision", np.where(called > 0, hits / called, 0)),
            ("recall", np.where(support > 0, hits / support, 0)),
            ("f1", 2 * hits / (support + called)),
        ):
            found[name] = np.where(there, per_class, 0).sum(1) / there.sum(1)
    # 2. rankings, averaged over the classes that have a value
    curves = [ranking_scores(probabilities[:, c], target == c, weights) for c in range(n_classes)]
    for name, per_class in zip(("auroc", "average_precision"), zip(*curves, strict=True), strict=True):
        stacked = np.stack(per_class, 1)
        defined = np.isfinite(stacked)
        with np.errstate(invalid="ignore"):
            found[name] = np.where(defined, stacked, 0).sum(1) / np.where(defined.any(1), defined.sum(1), np.nan)
    # 3. calibration: distance of confidence and accuracy in bins of confidence
    confidence, right = probabilities.max(1), predicted == target
    bins = np.clip(np.ceil(confidence * N_BINS).astype(int) - 1, 0, N_BINS - 1)
    member = np.eye(N_BINS)[bins]  # (N, bins)
    found["calibration_error"] = np.abs(weights @ (member * (right - confidence)[:, None])).sum(1) / total
    return found


def ranking_scores(score: Array, positive: Array, weights: Array) -> tuple[Array, Array]:
    """Area below the ROC curve and average precision (R,) of one class against the rest; ties count half."""
    order = np.argsort(-score, kind="stable")
    ranked, chosen = score[order], weights[:, order]
    yes = chosen * positive[order]
    # the first and the last place of samples with the same score
    new = np.flatnonzero(np.diff(ranked, prepend=np.inf))
    group = np.cumsum(np.diff(ranked, prepend=np.inf) != 0) - 1
    last = np.append(new[1:], len(ranked)) - 1
    above, seen = np.cumsum(yes, 1), np.cumsum(chosen, 1)  # what is ranked as high or higher, in all and of the class
    above, seen = above[:, last[group]], seen[:, last[group]]
    tied = np.add.reduceat(chosen - yes, new, axis=1)[:, group]
    n_yes, n_no = yes.sum(1), (chosen - yes).sum(1)
    lower = n_no[:, None] - (seen - above) + tied / 2  # of the rest: ranked below, and half of the ties
    with np.errstate(invalid="ignore", divide="ignore"):
        auroc = np.where((n_yes > 0) & (n_no > 0), (yes * lower).sum(1) / (n_yes * n_no), np.nan)
        precision = np.where(seen > 0, above / seen, 0)
        average = np.where(n_yes > 0, (yes * precision).sum(1) / n_yes, np.nan)
    return auroc, average


def regression_scores(prediction: Array, target: Array, weights: Array) -> Scores:
    """(N,) numbers in their own unit and (R, N) weights to the metrics of `tasks/regression.py`."""
    errors, centred, total = prediction - target, target - target.mean(), weights.sum(1)
    squares = weights @ np.square(errors)
    spread = weights @ np.square(centred) - np.square(weights @ centred) / total
    with np.errstate(invalid="ignore", divide="ignore"):
        explained = np.where(spread > 1e-12 * np.square(centred).sum(), 1 - squares / spread, np.nan)
    return {"rmse": np.sqrt(squares / total), "mae": weights @ np.abs(errors) / total, "r2": explained}


def rate_scores(parts: dict[str, tuple[Array, Array]]) -> Callable[[Array], Scores]:
    """Metrics that are a sum over a sum, such as nats per token: name -> (numerators (N,), denominators (N,))."""
    return lambda weights: {name: (weights @ above) / (weights @ below) for name, (above, below) in parts.items()}


def bootstrap(
    scores: Callable[[Array], Scores], n: int, *, resamples: int = RESAMPLES, columns: int = 1, seed: int = 0
) -> tuple[dict[str, tuple[float, float]], int]:
    """The 95 % interval of each metric of n samples, and how many resamples it comes from.

    `columns`: numbers that are looked at for each sample, which limits the resamples of very large parts.
    """
    resamples = int(np.clip(WORK // max(1, n * columns), min(FEWEST, resamples), resamples))
    random, found = np.random.default_rng(seed), []
    step = max(1, AT_ONCE // n)
    for start in range(0, resamples, step):
        drawn = random.integers(n, size=(min(step, resamples - start), n))
        weights = np.stack([np.bincount(row, minlength=n) for row in drawn]).astype(np.float64)
        found.append(scores(weights))
    every = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    intervals: dict[str, tuple[float, float]] = {}
    for name, values in every.items():
        known = values[np.isfinite(values)]
        if len(known) > len(values) / 2:  # else the metric is mostly undefined in parts of this size
            low, high = np.quantile(known, ends)
            intervals[name] = float(low), float(high)
    return intervals, resamples


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927): unlike the bootstrap it is not empty if all or none are right."""
    limits = stats.binomtest(hits, n).proportion_ci(LEVEL, method="wilson")
    return float(limits.low), float(limits.high)


def intervals_of(prediction: Array, target: Array, resamples: int) -> tuple[dict[str, tuple[float, float]], int]:
    """Of a classification (N, C) or a regression (N,)."""
    if prediction.ndim == 1:
        return bootstrap(
            lambda weights: regression_scores(prediction, target, weights), len(target), resamples=resamples
        )
    probabilities = prediction.astype(np.float64)
    found, n = bootstrap(
        lambda weights: classification_scores(probabilities, target, weights),
        len(target),
        resamples=resamples,
        columns=probabilities.shape[1],
    )
    hits = int((probabilities.argmax(1) == target).sum())
    if hits in (0, len(target)):
        found["accuracy"] = wilson(hits, len(target))
    return found, n
