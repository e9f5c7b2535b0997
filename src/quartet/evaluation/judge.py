"""An evaluation of one part as plain data: metrics with intervals, classes, slices, mistakes; and its figures."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy import ndarray as Array

from quartet.callbacks.figures import (
    blank_figure,
    confusion_figure,
    curves_figure,
    images_figure,
    regression_figure,
    shorten,
    worst_mistakes,
)
from quartet.evaluation.intervals import bootstrap, intervals_of, rate_scores
from quartet.evaluation.slices import slices
from quartet.inference.calibration import Calibration, cross_entropies
from quartet.inference.parts import NEW, Predicted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_MISTAKES = 10  # that are shown, the worst first
TITLES = {"val": "validation", "test": "test", NEW: "new data"}


def calibrated(predicted: Predicted, calibration: Calibration) -> Predicted:
    """With the probabilities of a calibrated run, and the metrics that follow from them; accuracy and ranking stay."""
    if not predicted.task.spec.classes or calibration == Calibration() or not predicted.has_predictions:
        return predicted
    outputs = {**predicted.outputs, "prediction": calibration.apply(predicted.outputs["prediction"])}
    prediction, target = outputs["prediction"], outputs["target"]
    metrics = predicted.task.measure(torch.from_numpy(prediction), torch.from_numpy(target))
    metrics["/loss"] = float(cross_entropies(prediction, target).mean())
    if calibration.threshold is not None:
        from sklearn.metrics import accuracy_score, f1_score, recall_score

        said = calibration.decide(prediction)
        empty: dict[str, Any] = {"zero_division": 0.0}
        metrics["/accuracy_at_threshold"] = float(accuracy_score(target, said))
        metrics["/f1_at_threshold"] = float(f1_score(target, said, **empty))
        # not balanced_accuracy_score, which warns if a class is missing
        recalls = recall_score(target, said, labels=np.unique(target), average="macro", **empty)
        metrics["/balanced_accuracy_at_threshold"] = float(recalls)
    return predicted._replace(outputs=outputs, metrics=metrics)


def judge(predicted: Predicted, names: list[str], resamples: int) -> dict[str, Any]:
    """Plain data for evaluation.json: see the keys below. `names`: columns to slice by."""
    outputs, classes = predicted.outputs, predicted.task.spec.classes
    per_class = {name: value for name, value in predicted.metrics.items() if name.startswith("_per_class/")}
    judged: dict[str, Any] = {
        "part": predicted.part,
        "samples": len(next(iter(outputs.values()))) if outputs else 0,
        "metrics": {name[1:]: value for name, value in predicted.metrics.items() if name not in per_class},
        "per_class": {},
        "intervals": {},
        "resamples": 0,
        "slices": [],
        "gaps": [],
        "mistakes": [],
    }
    for name, value in per_class.items():
        metric, _, label = name.removeprefix("_per_class/").partition("_of_")
        judged["per_class"].setdefault(label, {})[metric] = value
    if not predicted.has_predictions:
        # of a language model only sums over each window were kept: its predictions would not fit into memory
        sums = {
            name.removeprefix("sum_"): x.astype(np.float64) for name, x in outputs.items() if name.startswith("sum_")
        }
        if sums and resamples and judged["samples"] > 1:
            judged["intervals"], judged["resamples"] = language_intervals(sums, resamples)
        return judged
    prediction, target = outputs["prediction"], outputs["target"]
    # 1. intervals
    if resamples and len(target) > 1:
        found, judged["resamples"] = intervals_of(prediction, target, resamples)
        if classes:  # the loss of each sample is known if it is the cross-entropy
            nats = cross_entropies(prediction, target)
            if np.isclose(nats.mean(), judged["metrics"].get("loss", np.nan), rtol=1e-3, atol=1e-5):
                limits, _ = bootstrap(rate_scores({"loss": (nats, np.ones_like(nats))}), len(nats), resamples=resamples)
                found |= limits
        judged["intervals"] = {name: limits for name, limits in found.items() if name in judged["metrics"]}
    # 2. slices; without a choice, classes and what the data offer
    columns = predicted.data.slice_columns(predicted.held_as, names)
    if not names and classes:
        columns = {"class": np.array(classes, dtype=object)[target], **columns}
    parts, gaps = slices(columns, prediction, target)
    judged["slices"] = [vars(one) for one in parts]
    score = "accuracy" if classes else "mean absolute error"
    judged["gaps"] = [
        {**asdict(gap), "size": gap.size, "apart": gap.apart, "sentence": gap.sentence(score)} for gap in gaps
    ]
    # 3. the worst mistakes
    worst = mistakes(prediction, target)
    said = predicted.data.describe_samples(predicted.held_as, outputs["index"][worst].tolist())
    for i, text in zip(worst, said, strict=True):
        if classes:
            best = int(prediction[i].argmax())
            row = {"true": classes[target[i]], "predicted": classes[best], "probability": float(prediction[i, best])}
        else:
            row = {"true": float(target[i]), "predicted": float(prediction[i])}
        judged["mistakes"].append({"sample": text, **row})
    return judged


def mistakes(prediction: Array, target: Array) -> Array:
    if prediction.ndim == 1:
        return np.argsort(-np.abs(prediction - target), kind="stable")[:N_MISTAKES]
    return worst_mistakes(prediction, target, N_MISTAKES)


def language_intervals(sums: dict[str, Array], resamples: int) -> tuple[dict[str, tuple[float, float]], int]:
    """Of a language model, whose samples are windows: `nats`, `tokens`, `bytes` and, if known, `correct` of each."""
    rates = {"loss": ("nats", "tokens"), "bits_per_byte": ("nats", "bytes"), "accuracy": ("correct", "tokens")}
    parts = {name: (sums[a], sums[b]) for name, (a, b) in rates.items() if a in sums and b in sums}
    found, n = bootstrap(rate_scores(parts), len(sums["nats"]), resamples=resamples)
    if "bits_per_byte" in found:
        low, high = found["bits_per_byte"]
        found["bits_per_byte"] = low / np.log(2), high / np.log(2)
    if "loss" in found:
        low, high = found["loss"]
        found["perplexity"] = float(np.exp(low)), float(np.exp(high))
    return found, n


# figures


def draw(predicted: Predicted, judged: dict[str, Any]) -> dict[str, Figure]:
    """The figures of a part, by name; empty for a language model."""
    if not predicted.has_predictions:
        return {}
    outputs, classes, title = predicted.outputs, predicted.task.spec.classes, TITLES[predicted.part]
    prediction, target = outputs["prediction"], outputs["target"]
    if not classes:
        return {"predictions": regression_figure(prediction, target, title)}
    found = {
        "confusion_matrix": confusion_figure(target, prediction.argmax(1), classes, title),
        "curves": curves_figure(prediction, target, classes, title),
        "reliability": reliability_figure(prediction, target, title),
    }
    if hasattr(predicted.data, "raw_images"):
        worst = mistakes(prediction, target)
        rows = [(row["true"], row["predicted"], row["probability"]) for row in judged["mistakes"]]
        captions = [f"true {shorten(a, 12)}\npredicted {shorten(b, 12)}, {p:.0%}" for a, b, p in rows]
        data: Any = predicted.data
        images = data.raw_images(predicted.held_as, outputs["index"][worst]) if rows else np.zeros((0, 1, 1, 1))
        found["mistakes"] = images_figure(images, captions, f"{title}: {'worst' if rows else 'no'} mistakes")
    return found


def reliability_figure(probabilities: Array, target: Array, title: str, n_bins: int = 10) -> Figure:
    """Accuracy against confidence in bins of equal width, and how many samples each has (Niculescu-Mizil & Caruana 2005)."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == target
    bins = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    counts = np.bincount(bins, minlength=n_bins)
    filled = np.flatnonzero(counts)
    accuracy = np.bincount(bins, right, n_bins)[filled] / counts[filled]
    mean = np.bincount(bins, confidence, n_bins)[filled] / counts[filled]
    error = float((np.abs(accuracy - mean) * counts[filled]).sum() / len(target))
    figure = blank_figure(10, 4.4)
    figure.suptitle(f"{title}: calibration error {error:.3f} in {n_bins} bins", fontsize=10)
    left, right_axes = figure.subplots(1, 2)
    left.plot((0, 1), (0, 1), color="0.6", linewidth=1)
    width = 1 / n_bins
    left.bar((filled + 0.5) * width, accuracy, width=0.94 * width, color="#56B4E9", label="accuracy")
    left.plot(mean, accuracy, "o-", color="#0072B2", markersize=4, linewidth=1)
    low = max(0.0, float(filled[0] * width) - width)
    left.set(xlabel="confidence", ylabel="accuracy", xlim=(low, 1), ylim=(0, 1.02))
    left.grid(color="0.92")
    left.set_axisbelow(True)
    right_axes.bar((filled + 0.5) * width, counts[filled], width=0.94 * width, color="#0072B2")
    right_axes.set(xlabel="confidence", ylabel="samples", xlim=(low, 1))
    right_axes.grid(color="0.92")
    right_axes.set_axisbelow(True)
    return figure
