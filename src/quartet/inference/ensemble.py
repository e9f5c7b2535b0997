"""One run or several as one model. An ensemble is a run directory: copies of its members, and how they are combined.

Averaging probabilities: Breiman 1996 (bagging), Lakshminarayanan et al. 2017 (deep ensembles, arXiv:1612.01474). Greedy
selection with replacement: Caruana et al. 2004. Stacking: Wolpert 1992.

Letters: K models, N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy import ndarray as Array
from scipy.optimize import minimize
from scipy.special import softmax

from quartet.inference.calibration import cross_entropies, read_calibration
from quartet.inference.language import LanguageModel, is_language_model
from quartet.inference.model import Model
from quartet.inference.parts import NEW, PARTS, Predicted, predict_part
from quartet.run import ENSEMBLE, Run

GREEDY_ROUNDS = 50  # members drawn at most, with repetition; more hardly change the mean
LEAST_PROBABILITY = 1e-6  # of which stacking takes the logarithm: one model that is certain must not decide alone


@dataclass(frozen=True)
class Combination:
    """`groups`: members that are averaged first, such as the folds of one setting; `weights` (K,) of the groups.

    Stacking has `coefficients` and `intercepts` instead: of a logistic regression on log-probabilities, (C, K·C) and
    (C,), or of a ridge regression on predictions, (1, K) and (1,).
    """

    method: str
    groups: list[list[int]]
    weights: list[float] | None = None
    coefficients: list[list[float]] | None = None
    intercepts: list[float] | None = None

    def combine(self, predictions: Sequence[Array]) -> Array:
        """Predictions (N, C) or (N,) of each member to those of the ensemble."""
        means, dtype = [np.mean([predictions[i] for i in group], axis=0) for group in self.groups], predictions[0].dtype
        if self.coefficients is None:
            weights = np.array(self.weights, dtype=np.float64)
            return np.tensordot(weights, np.stack(means).astype(np.float64), axes=1).astype(dtype)
        scores = features(means) @ np.array(self.coefficients).T + np.array(self.intercepts)
        return scores[:, 0] if means[0].ndim == 1 else softmax(scores, axis=1).astype(dtype)


def features(predictions: Sequence[Array]) -> Array:
    """What stacking learns from: log-probabilities (N, K·C), or predictions (N, K)."""
    if predictions[0].ndim == 1:
        return np.stack(predictions, 1)
    return np.concatenate([np.log(np.clip(p.astype(np.float64), LEAST_PROBABILITY, None)) for p in predictions], 1)


def loss(prediction: Array, target: Array) -> float:
    """Mean negative log-likelihood of classes, or mean squared error."""
    if prediction.ndim == 1:
        return float(np.square(prediction - target).mean())
    return float(cross_entropies(prediction, target).mean())


def fit_combination(method: str, groups: list[list[int]], predictions: Sequence[Array], target: Array) -> Combination:
    """How to combine groups whose predictions on validation (or out of fold) are given."""
    k = len(groups)
    if method == "mean":
        return Combination(method, groups, [1 / k] * k)
    stacked = np.stack(predictions).astype(np.float64)
    if method == "weighted":

        def of_weights(weights: Array) -> float:
            return loss(np.tensordot(weights, stacked, axes=1), target) / scale

        scale = min(loss(one, target) for one in stacked) or 1.0  # the solver's tolerance is absolute
        sums_to_one: Any = {"type": "eq", "fun": lambda weights: weights.sum() - 1}
        found: Any = minimize(
            of_weights, np.full(k, 1 / k), method="SLSQP", bounds=[(0, 1)] * k, constraints=[sums_to_one]
        )
        weights = np.clip(found.x, 0, None)
        return Combination(method, groups, (weights / weights.sum()).tolist())
    if method == "greedy":
        # begin with nothing, add the model that helps the mean most, with repetition; keep the best mean on the way
        counts, total = np.zeros(k), np.zeros_like(stacked[0])
        best, best_counts = np.inf, counts
        for size in range(1, GREEDY_ROUNDS + 1):
            losses = [loss((total + one) / size, target) for one in stacked]
            chosen = int(np.argmin(losses))
            total, counts = total + stacked[chosen], counts + np.eye(k)[chosen]
            if losses[chosen] < best:
                best, best_counts = losses[chosen], counts
        return Combination(method, groups, (best_counts / best_counts.sum()).tolist())
    x = features(predictions)
    if target.dtype.kind == "f":
        from sklearn.linear_model import RidgeCV

        scale = float(np.std(target)) or 1.0  # strengths are relative to the target's spread
        ridge: Any = RidgeCV(alphas=np.logspace(-3, 3, 13)).fit(x / scale, target / scale)
        return Combination(method, groups, None, [ridge.coef_.tolist()], [float(ridge.intercept_ * scale)])
    from sklearn.linear_model import LogisticRegressionCV

    least = int(np.bincount(target)[np.unique(target)].min())
    cv = max(2, min(5, least))
    logistic: Any = LogisticRegressionCV(
        Cs=np.logspace(-4, 2, 13).tolist(), cv=cv, scoring="neg_log_loss", max_iter=2000
    )
    logistic.fit(x, target)
    coefficients, intercepts = logistic.coef_, logistic.intercept_
    if len(coefficients) == 1:  # of two classes: the score of the second
        coefficients, intercepts = np.vstack((0 * coefficients, coefficients)), np.append(0.0, intercepts)
    return Combination(method, groups, None, coefficients.tolist(), intercepts.tolist())


# models


class Single:
    """A run of its own."""

    parts = PARTS

    def __init__(self, run: Run):
        self.members = [run]

    def predict_part(self, part: str, data_path: str | None = None) -> Predicted:
        return predict_part(self.members[0], part, data_path)

    def load(self, batch_size: int | None) -> Loaded:
        run = self.members[0]
        return (LanguageModel if is_language_model(run.config) else Model)(run, batch_size)


class Ensemble:
    """A run that `write_ensemble` made; ValueError if its ensemble.json cannot be what was written."""

    def __init__(self, run: Run):
        self.run, values = run, run.read(ENSEMBLE)
        folder = run.directory / "members"
        try:
            # 1. the members are those that are there
            n = len(list(folder.iterdir()))
            self.members = [Run(folder / str(i)) for i in range(n)]
            self.combination = own = Combination(**values["combination"])
            self.parts: tuple[str, ...] = ("test",) if values["folds"] else PARTS
            if sorted(i for group in own.groups for i in group) != [*range(n)]:
                raise ValueError("its groups are not of these members")
            # 2. as many numbers as groups, all of them finite
            k, n_classes = len(own.groups), len(own.intercepts or ())
            weights = np.array(own.weights if own.coefficients is None else own.coefficients, dtype=float)
            shapes = {(k,)} if own.coefficients is None else {(n_classes, n_classes * k), (1, k)}
            if weights.shape not in shapes or not np.isfinite([*weights.flat, *(own.intercepts or ())]).all():
                raise ValueError("its weights do not fit its members")
        except (LookupError, TypeError, ValueError, OSError) as error:
            raise ValueError(f"{run.directory / ENSEMBLE} is damaged ({error}); combine the runs again") from error

    def predict_part(self, part: str, data_path: str | None = None) -> Predicted:
        """Each member in turn; ValueError if they do not predict the same samples."""
        if part != NEW and part not in self.parts:
            raise ValueError(f"split={part}: the members are folds, which validate on other samples each; split=test")
        predicted = [predict_part(member, part, data_path) for member in self.members]
        return combined(predicted, self.combination)

    def load(self, batch_size: int | None) -> Loaded:
        return LoadedEnsemble(self, batch_size)


class LoadedEnsemble:
    """Its members in memory. Each reads an example in its own way, as it did in training."""

    def __init__(self, ensemble: Ensemble, batch_size: int | None):
        self.models = [Model(member, batch_size) for member in ensemble.members]
        self.combination, self.calibration = ensemble.combination, read_calibration(ensemble.run)
        self.data, self.task, self.classes = self.models[0].data, self.models[0].task, self.models[0].classes

    def encode(self, examples: Any) -> Any:
        return [model.encode(examples) for model in self.models]

    def predict(self, inputs: Any) -> Array:
        # members are not calibrated: their calibration.json was not copied
        predictions = [model.predict(own) for model, own in zip(self.models, inputs, strict=True)]
        return self.calibration.apply(self.combination.combine(predictions))


Loaded = Model | LoadedEnsemble | LanguageModel


def open_model(run: Run) -> Single | Ensemble:
    return Ensemble(run) if (run.directory / ENSEMBLE).is_file() else Single(run)


def combined(predicted: Sequence[Predicted], combination: Combination) -> Predicted:
    """The prediction of an ensemble of one part, and its metrics."""
    # 1. the same samples in the same order: their targets say so
    first = predicted[0]
    target = first.outputs["target"]
    for one in predicted[1:]:
        if one.outputs["target"].shape != target.shape or not np.allclose(one.outputs["target"], target):
            raise ValueError("the members do not predict the same samples: their data or splits differ")
    # 2. metrics of the combined prediction, by the task's own definitions
    prediction = combination.combine([one.outputs["prediction"] for one in predicted])
    metrics = first.task.measure(torch.from_numpy(np.ascontiguousarray(prediction)), torch.from_numpy(target))
    scale = first.task.spec.target_std**2 if prediction.ndim == 1 else 1.0  # training's loss is of standardised targets
    metrics = {"/loss": loss(prediction, target) / scale, **metrics}
    return first._replace(outputs={**first.outputs, "prediction": prediction}, metrics=metrics)


def facts(combination: Combination, members: Sequence[Run], *, folds: bool) -> dict[str, Any]:
    """The content of ensemble.json."""
    return {
        "members": [member.directory.name for member in members],
        "folds": folds,
        "combination": asdict(combination),
    }
