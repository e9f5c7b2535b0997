"""Means, intervals, tests and importance: pure functions of numbers. SciPy and Optuna are imported late."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVEL = 0.95
LEAST_FOR_WILCOXON = 6  # below, no p under 0.05 is possible in a two-sided test: 2 / 2**5 = 0.0625
LEAST_FOR_IMPORTANCE = 10  # completed runs; a random forest of fewer says little


@dataclass(frozen=True)
class Estimate:
    """The sample standard deviation (n - 1) and Student's interval of the mean exist from n = 2 on."""

    n: int
    mean: float
    std: float | None = None
    low: float | None = None
    high: float | None = None


def estimate(values: Sequence[float], *, variance_factor: float | None = None) -> Estimate:
    """`variance_factor` times the sample variance is that of the mean: 1/n of independent values."""
    n = len(values)
    if n < 2:
        return Estimate(n, float(values[0]) if n else math.nan)
    from scipy.stats import t

    mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * std * math.sqrt(variance_factor or 1 / n)
    return Estimate(n, mean, std, mean - half, mean + half)


@dataclass(frozen=True)
class Comparison:
    """Differences first - second over common pairs; what cannot be said is None, and `why` says why."""

    difference: Estimate
    t_test: float | None = None
    wilcoxon: float | None = None
    corrected: bool = False  # for training data that folds share
    why: str = ""


def compare(
    first: Mapping[tuple[Any, Any], float], second: Mapping[tuple[Any, Any], float], folds: int | None = None
) -> Comparison:
    """A paired t-test over the (seed, fold) pairs that both have.

    Where the pairs are folds of a cross-validation, whose training parts overlap, the variance is corrected (Nadeau &
    Bengio 2003, Inference for the generalization error; repeated folds: Bouckaert & Frank 2004).
    """
    pairs = [pair for pair in first if pair in second]
    differences = [first[pair] - second[pair] for pair in pairs]
    crossed = folds is not None and len({fold for _, fold in pairs}) > 1
    n = len(pairs)
    factor = 1 / n + 1 / (folds - 1) if crossed and n and folds and folds > 1 else None  # n_val/n_train = 1/(folds - 1)
    difference = estimate(differences, variance_factor=factor)
    if n < 2:
        counted = "no pair of runs has" if n == 0 else "only one pair of runs has"
        return Comparison(difference, why=f"{counted} the same seed and fold in both settings; two are needed")
    if difference.std == 0:
        return Comparison(
            difference, corrected=crossed, why="all pairs have the same difference: there is nothing to test"
        )
    p = student(difference, factor or 1 / n)
    return Comparison(difference, p, wilcoxon(differences), crossed)


def student(difference: Estimate, variance_factor: float) -> float:
    """p of a two-sided t-test of the mean against 0."""
    from scipy.stats import t

    assert difference.std
    statistic = difference.mean / (difference.std * math.sqrt(variance_factor))
    return float(2 * t.sf(abs(statistic), difference.n - 1))


def wilcoxon(differences: Sequence[float]) -> float | None:
    """p of the signed-rank test; None below six differences that are not zero."""
    nonzero = [difference for difference in differences if difference]
    if len(nonzero) < LEAST_FOR_WILCOXON:
        return None
    from scipy.stats import wilcoxon as signed_rank

    return float(signed_rank(nonzero).pvalue)  # type: ignore[attr-defined]


def front(points: Sequence[Sequence[float]], modes: Sequence[str]) -> list[int]:
    """Which points no other one beats in every objective (Pareto)."""
    signed = np.array(points, dtype=float).reshape(len(points), len(modes))
    signed = signed * np.array([1 if mode == "min" else -1 for mode in modes])
    beaten = [bool(((signed <= p).all(1) & (signed < p).any(1)).any()) for p in signed]
    return [i for i, is_beaten in enumerate(beaten) if not is_beaten]


def importance(
    points: Sequence[Mapping[str, Any]], values: Sequence[float], log: Collection[str] = ()
) -> dict[str, float]:
    """Each parameter's share of the variance of the runs' ranks (fANOVA: Hutter et al. 2014), highest first.

    Ranks, because a single diverged run would decide over the values. `log` names parameters with a logarithmic scale.
    ValueError says why there is no answer.
    """
    keys = [key for key in points[0] if len({repr(point[key]) for point in points}) > 1] if points else []
    if len(points) < LEAST_FOR_IMPORTANCE:
        raise ValueError(f"it takes {LEAST_FOR_IMPORTANCE} completed runs, there are {len(points)}")
    if len(keys) < 2:
        raise ValueError("it compares two varied parameters or more")
    if len(set(values)) < 2:
        raise ValueError("all runs came out the same")
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from scipy.stats import rankdata

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    columns = {key: _places([point[key] for point in points], key in log) for key in keys}
    distributions = {key: _distribution(places) for key, places in columns.items()}
    study = optuna.create_study()
    for row, rank in enumerate(rankdata(values)):
        chosen = {key: places[row] for key, places in columns.items()}
        study.add_trial(optuna.create_trial(params=chosen, distributions=distributions, value=float(rank)))
    return {k: float(v) for k, v in get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0)).items()}


def _places(values: list[Any], log: bool) -> list[float] | list[str]:
    """Values on a scale on which all are equally likely, as fANOVA takes them: a grid counts, a draw keeps its scale.

    Optuna's evaluator measures on the plain scale, on which the largest of rates from 1e-4 to 1e-1 would be all there is.
    """
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return [str(value) for value in values]
    levels = sorted(set(values))
    if len(levels) <= len(values) / 2:
        return [float(levels.index(value)) for value in values]
    return [math.log10(value) if log else float(value) for value in values]


def _distribution(places: list[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(places[0], str):
        return CategoricalDistribution(sorted(set(places)))
    return FloatDistribution(min(places), max(places))
