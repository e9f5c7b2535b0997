"""Calibration of a finished run: a temperature for its probabilities, and a threshold for two classes.

Both are fitted on the validation part and kept in `calibration.json`; whatever predicts with the run uses them. Guo et al.
2017 (arXiv:1706.04599): dividing the logits by one number changes no prediction and mends most of the over-confidence.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy import ndarray as Array
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from quartet.run import Run

FILE = "calibration.json"
TEMPERATURES = (0.05, 20.0)  # beyond these all classes are equally likely, or one is certain
TINY = 1e-12  # the least probability whose logarithm is taken


@dataclass(frozen=True)
class Calibration:
    """`temperature` divides the logits; `threshold` is the probability from which on the second of two classes is said."""

    temperature: float = 1.0
    threshold: float | None = None

    def apply(self, probabilities: Array) -> Array:
        """(N, C) probabilities at the temperature; 1 leaves them as they are, bit for bit."""
        if self.temperature == 1 or probabilities.ndim == 1:
            return probabilities
        logits = np.log(np.clip(probabilities.astype(np.float64), TINY, None)) / self.temperature
        return softmax(logits, axis=1).astype(probabilities.dtype)

    def decide(self, probabilities: Array) -> Array:
        """The class (N,) of calibrated probabilities."""
        if self.threshold is None:
            return probabilities.argmax(1)
        return (probabilities[:, 1] >= self.threshold).astype(np.int64)


def read_calibration(run: Run) -> Calibration:
    """That of a run; ValueError if the file is damaged."""
    try:
        values = run.read(FILE)
    except FileNotFoundError:
        return Calibration()
    temperature, threshold = values.get("temperature"), values.get("threshold")
    fits = isinstance(temperature, int | float) and TEMPERATURES[0] <= temperature <= TEMPERATURES[1]
    if not fits or not (threshold is None or (isinstance(threshold, int | float) and 0 <= threshold <= 1)):
        raise ValueError(
            f"{run.directory / FILE} is damaged; delete it, or fit it again with evaluate.py calibrate=true"
        )
    return Calibration(float(temperature), None if threshold is None else float(threshold))  # type: ignore[arg-type]


def cross_entropies(probabilities: Array, target: Array) -> Array:
    """The loss of each sample (N,), in nats: how surprising its class is to probabilities (N, C)."""
    return -np.log(np.clip(probabilities[np.arange(len(target)), target].astype(np.float64), TINY, None))


def fit_temperature(probabilities: Array, target: Array) -> float:
    """The temperature with the least negative log-likelihood of the targets (N,)."""

    def loss(log_temperature: float) -> float:
        scaled = Calibration(math.exp(log_temperature)).apply(probabilities.astype(np.float64))
        return float(cross_entropies(scaled, target).mean())

    limits = tuple(map(math.log, TEMPERATURES))
    found: Any = minimize_scalar(loss, bounds=limits, method="bounded", options={"xatol": 1e-4})
    best = float(found.x)
    return math.exp(best) if loss(best) < loss(0.0) else 1.0


def fit_threshold(probability: Array, target: Array, goal: str, costs: tuple[float, float] = (1.0, 1.0)) -> float:
    """The probability of the second class (N,) from which on it is said, best for `goal`.

    `costs` are those of a false alarm and of a miss, for the goal "cost". Of thresholds that are equally good the one
    nearest to 0.5 is taken.
    """
    positive = target == 1
    order = np.argsort(-probability, kind="stable")
    ranked = probability[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # after the last of equal probabilities
    hits = np.concatenate(([0], np.cumsum(positive[order])[ends]))
    alarms = np.concatenate(([0], np.cumsum(~positive[order])[ends]))
    n_yes, n_no = positive.sum(), (~positive).sum()
    if goal == "f1":
        worth = 2 * hits / np.maximum(hits + alarms + n_yes, 1)
    elif goal == "balanced_accuracy":
        worth = hits / max(n_yes, 1) + (n_no - alarms) / max(n_no, 1)
    else:
        worth = -(costs[0] * alarms + costs[1] * (n_yes - hits))
    # between the last probability that is said and the next one
    cuts = np.concatenate(([1.0], ranked[ends]))
    below = np.concatenate((ranked[:1], ranked[ends[:-1] + 1], [0.0]))
    middles = np.where(np.arange(len(cuts)) == 0, (1 + ranked[0]) / 2, (cuts + below) / 2)
    best = np.flatnonzero(np.isclose(worth, worth.max(), rtol=1e-12, atol=1e-12))
    return float(middles[best[np.abs(middles[best] - 0.5).argmin()]])


def save(run: Run, calibration: Calibration, **facts: Any) -> None:
    run.write(FILE, {**asdict(calibration), **facts})
