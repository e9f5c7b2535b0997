"""Means, intervals, tests, Pareto front and importance: pure functions of numbers. SciPy and Optuna are imported late."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVEL = 0.95
LEAST_FOR_WILCOXON = 6  # below, no p under 0.05 is possible in a two-sided test: 2 / 2**5 = 0.0625
LEAST_FOR_IMPORTANCE = 10  # completed runs; a random forest of fewer says little
Scores = Mapping[tuple[Any, Any], float]  # (seed, fold) -> value


@dataclass(frozen=True)
class Estimate:
    """The sample standard deviation (n - 1) and Student's interval of the mean; None for fewer than two values."""

    n: int
    mean: float
    std: float | None = None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        """Mean ± std, both to the second digit of the std."""
        mean = self._round(self.mean)
        return mean if self.std is None else f"{mean} ± {self._round(self.std, 2)}"

    @property
    def interval(self) -> str:
        return "–" if self.low is None or self.high is None else f"{self._round(self.low)} to {self._round(self.high)}"

    def _round(self, value: float, digits: int = 4) -> str:
        if not self.std or not math.isfinite(self.std) or not 1e-4 <= max(abs(self.mean), self.std) < 1e5:
            return f"{value:.{digits}g}" if math.isfinite(value) else "–"
        return f"{value:.{max(0, 1 - math.floor(math.log10(self.std)))}f}"


def estimate(values: Sequence[float], *, variance_factor: float | None = None) -> Estimate:
    """`variance_factor` times the sample variance is that of the mean: 1/n for independent values."""
    n = len(values)
    if n < 2:
        return Estimate(n, float(values[0]) if n else math.nan)
    from scipy.stats import t

    mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * std * math.sqrt(variance_factor or 1 / n)
    return Estimate(n, mean, std, mean - half, mean + half)


@dataclass(frozen=True)
class Comparison:
    """Differences first - second over common pairs; a p-value that cannot be given is None, and `why` says why."""

    difference: Estimate
    t_test: float | None = None
    wilcoxon: float | None = None
    corrected: bool = False  # for training data that folds share
    why: str = ""


def compare(first: Scores, second: Scores, folds: int | None = None) -> Comparison:
    """A paired t-test and Wilcoxon's signed-rank test over the (seed, fold) pairs that both have.

    If the pairs are folds of a cross-validation, whose training parts overlap, the variance is corrected (Nadeau &
    Bengio 2003, Inference for the generalization error; repeated folds: Bouckaert & Frank 2004).
    """
    pairs = [pair for pair in first if pair in second]
    differences, n = [first[pair] - second[pair] for pair in pairs], len(pairs)
    crossed = isinstance(folds, int) and len({fold for _, fold in pairs}) > 1
    # n_val / n_train = 1 / (folds - 1)
    factor = 1 / n + 1 / (folds - 1) if crossed and folds and folds > 1 else None
    difference = estimate(differences, variance_factor=factor)
    if n < 2:
        counted = "no pair of runs has" if n == 0 else "only one pair of runs has"
        return Comparison(difference, why=f"{counted} the same seed and fold in both settings; two are needed")
    if not difference.std:
        why = "all pairs have the same difference: there is nothing to test"
        return Comparison(difference, corrected=crossed, why=why)
    from scipy import stats

    statistic = difference.mean / (difference.std * math.sqrt(factor or 1 / n))
    p = float(2 * stats.t.sf(abs(statistic), n - 1))
    nonzero = [value for value in differences if value]
    enough = len(nonzero) >= LEAST_FOR_WILCOXON
    return Comparison(difference, p, float(stats.wilcoxon(nonzero).pvalue) if enough else None, crossed)  # type: ignore[attr-defined]


def pareto_front(points: Sequence[Sequence[float]], modes: Sequence[str]) -> list[int]:
    """The points that no other one beats in every objective."""
    signed = np.array(points, dtype=float).reshape(len(points), len(modes))
    signed = signed * np.array([1 if mode == "min" else -1 for mode in modes])
    beaten = [((signed <= point).all(1) & (signed < point).any(1)).any() for point in signed]
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
        raise ValueError(f"it needs {LEAST_FOR_IMPORTANCE} completed runs, there are {len(points)}")
    if len(keys) < 2:
        raise ValueError("it compares two varied parameters or more")
    if len(set(values)) < 2:
        raise ValueError("all runs came out the same")
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from scipy.stats import rankdata

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # 1. Optuna's fANOVA weighs a range by its width on the plain scale, on which the largest of rates from 1e-4 to 1e-1
    #    would be all there is: values of a grid are replaced by their order, drawn ones by their logarithm
    columns: dict[str, list[Any]] = {}
    distributions: dict[str, Any] = {}
    for key in keys:
        column = [point[key] for point in points]
        if all(is_number(value) for value in column):
            levels = sorted(set(column))
            if len(levels) <= len(column) / 2:
                column = [float(levels.index(value)) for value in column]
            elif key in log:
                column = [math.log10(value) for value in column]
            columns[key] = [float(value) for value in column]
            distributions[key] = FloatDistribution(min(columns[key]), max(columns[key]))
        else:
            columns[key] = [str(value) for value in column]
            distributions[key] = CategoricalDistribution(sorted(set(columns[key])))
    # 2. a study of trials that never ran, whose values are the ranks
    study = optuna.create_study()
    for row, rank in enumerate(rankdata(values)):
        params = {key: column[row] for key, column in columns.items()}
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=float(rank)))
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return {key: float(share) for key, share in shares.items()}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
