"""Slices: how good predictions are for parts of the data, such as one city or short texts, and where the gap is largest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy import ndarray as Array

from quartet.evaluation.intervals import bootstrap, regression_scores, wilson

SMALLEST = 10  # samples of a slice that is compared: the accuracy of fewer says next to nothing
MOST = 12  # values of a column; the rarer ones are one slice together
QUARTERS = 4  # slices of a column of numbers


@dataclass(frozen=True)
class Slice:
    """A part of the data: accuracy of a classification or mean absolute error of a regression, with its interval."""

    column: str
    value: str
    n: int
    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Gap:
    """The best and the worst slice of a column. `apart`: their intervals do not overlap."""

    column: str
    best: Slice
    worst: Slice

    @property
    def size(self) -> float:
        return abs(self.best.score - self.worst.score)

    @property
    def apart(self) -> bool:
        first, second = sorted((self.best, self.worst), key=lambda one: one.score)
        return first.high < second.low

    def sentence(self, score: str) -> str:
        """Which slice is worse than which, and whether that may be chance."""
        sure = "their intervals do not overlap" if self.apart else "their intervals overlap: it may be chance"
        shown = (f"{one.score:.3g} for {one.value} (n = {one.n})" for one in (self.worst, self.best))
        return f"{self.column}: {score} {' and '.join(shown)}; {sure}"


def groups(values: Array) -> Array:
    """A name of a slice for each value (N,): quarters of numbers, frequent values, "other" and "(missing)"."""
    column: Any = pd.Series(values, dtype=object)
    known = column.notna() & (column.astype(str) != "")
    numbers: Any = pd.to_numeric(column.where(known), errors="coerce")
    if numbers.notna().sum() == known.sum() and numbers.nunique() > MOST:
        # a quarter is called after its smallest and its largest number
        quarter: Any = pd.qcut(numbers, QUARTERS, duplicates="drop", labels=False)
        ends: Any = dict(list(numbers.groupby(quarter)))
        names = quarter.astype(object).map(lambda q: f"{ends[q].min():.4g} to {ends[q].max():.4g}", na_action="ignore")
    else:
        names = column.astype(str)
        counts = names[known].value_counts()
        if len(counts) > MOST:
            names = names.where(names.isin(counts.index[: MOST - 1]), "other")
    return np.asarray(names.where(known, "(missing)"), dtype=object)


def slices(columns: dict[str, Array], prediction: Array, target: Array) -> tuple[list[Slice], list[Gap]]:
    """The slices of each column, and the gaps, the largest first."""
    found: list[Slice] = []
    gaps: list[Gap] = []
    for column, values in columns.items():
        own = []
        names = groups(values)
        for value in dict.fromkeys(names.tolist()):
            member = names == value
            own.append(Slice(column, str(value), int(member.sum()), *_score(prediction[member], target[member])))
        # accuracies rise and errors fall towards the best
        own.sort(key=lambda one: one.score, reverse=prediction.ndim == 1)  # the worst first
        found += own
        # small slices are listed, but a gap to one of them would mostly be chance
        compared = [one for one in own if one.n >= SMALLEST]
        if len(compared) > 1:
            gaps.append(Gap(column, best=compared[-1], worst=compared[0]))
    return found, sorted(gaps, key=lambda gap: gap.size, reverse=True)


def _score(prediction: Array, target: Array) -> tuple[float, float, float]:
    if prediction.ndim == 1:
        errors: Any = np.abs(prediction - target)
        if len(target) < 2:
            return float(errors.mean()), float("nan"), float("nan")
        limits, _ = bootstrap(
            lambda weights: regression_scores(prediction, target, weights), len(target), resamples=500
        )
        return float(errors.mean()), *limits["mae"]
    hits = int((prediction.argmax(1) == target).sum())
    return hits / len(target), *wilson(hits, len(target))
