"""Figures of predictions: confusion matrix, ROC and precision-recall curves, worst mistakes, predicted against true.

Every function takes arrays and returns a matplotlib Figure or array; nothing here knows a trainer, and pyplot's global
state is never touched. Colours: Okabe & Ito 2008, which colour-blind readers can tell apart. matplotlib is imported
inside the functions, so that a run without figures does not pay for it.

Letters: N samples, C classes, S side of a picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray as Array

from quartet.lettering import lettered, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")  # a new one after each round of colours: 28 lines that differ
MANY_CLASSES = 20  # beyond these a figure shows the average and the hardest classes only
HARDEST = 5
LONGEST_LABEL = 16  # characters
MOST_POINTS = 5_000  # in a scatter plot; more are thinned out evenly


def render(figure: Figure) -> Array:
    """(height, width, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with lettered(figure):
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(picture: Array, path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, compress_level=3)


# classification


def confusion_matrix(target: Array, predicted: Array, n_classes: int) -> Array:
    """(C, C) counts, rows the true class, columns the predicted one."""
    return np.bincount(target * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)


def roc(score: Array, positive: Array) -> tuple[Array, Array]:
    """False and true positive rates as the threshold falls, from (0, 0) to (1, 1)."""
    true, false = _cumulative(score, positive)
    return np.r_[0, false / max(false[-1], 1)], np.r_[0, true / max(true[-1], 1)]


def precision_recall(score: Array, positive: Array) -> tuple[Array, Array]:
    """Recall and precision as the threshold falls; recall grows from 0 to 1."""
    true, false = _cumulative(score, positive)
    precision = true / (true + false)
    return np.r_[0, true / max(true[-1], 1)], np.r_[precision[0], precision]


def _cumulative(score: Array, positive: Array) -> tuple[Array, Array]:
    """Counts of positives and negatives at or above each distinct score, highest first."""
    order = np.argsort(-score, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(score[order])), len(score) - 1]  # of each run of equal scores
    true = np.cumsum(positive[order])[last]
    return true, last + 1 - true


def confusion_figure(target: Array, predicted: Array, classes: tuple[str, ...], title: str) -> Figure:
    """Counts in the cells, shares of the true class as shades; cells of many classes have the shade alone."""
    from matplotlib.colors import PowerNorm

    counts = confusion_matrix(target, predicted, len(classes))
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    n = len(classes)
    figure = blank_figure(max(5.0, min(9.0, 1.8 + 0.42 * n)), max(4.6, min(8.6, 1.4 + 0.42 * n)), layout="tight")
    axes = figure.subplots()
    shades = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))  # the root shows rare mistakes
    accuracy = np.trace(counts) / max(counts.sum(), 1)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"{title}: {accuracy:.1%} of {counts.sum():,} right", fontsize=10)
    figure.colorbar(shades, ax=axes, fraction=0.04, pad=0.02, label="share of the true class")
    if n <= MANY_CLASSES:
        _label_cells(axes, counts, shares)
    if n <= 2 * MANY_CLASSES:
        _label_ticks(axes, classes)
    return figure


def _label_cells(axes: Axes, counts: Array, shares: Array) -> None:
    size = 10 if len(counts) <= 12 else 7
    for row, column in np.argwhere(counts):
        colour = "white" if shares[row, column] > 0.35 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=size, color=colour)


def _label_ticks(axes: Axes, classes: tuple[str, ...]) -> None:
    labels = [shorten(name, LONGEST_LABEL) for name in classes]
    size = 9 if len(classes) <= MANY_CLASSES else 6
    tilted = len(classes) * max(map(len, labels)) > 50
    axes.set_yticks(range(len(labels)), labels, fontsize=size)
    axes.set_xticks(range(len(labels)), labels, fontsize=size, rotation=90 if tilted else 0)


def curves_figure(probabilities: Array, target: Array, classes: tuple[str, ...], title: str) -> Figure:
    """ROC and precision-recall curves side by side: one line per class, or macro average and hardest classes."""
    candidates = [1] if len(classes) == 2 else range(len(classes))
    shown = [c for c in candidates if 0 < (target == c).sum() < len(target)]  # others have no curve
    positives = {c: target == c for c in shown}
    receiver = {c: roc(probabilities[:, c], positives[c]) for c in shown}
    precision = {c: precision_recall(probabilities[:, c], positives[c]) for c in shown}
    areas = {c: float(np.trapezoid(y, x)) for c, (x, y) in receiver.items()}
    averages = {c: float((np.diff(x) * y[1:]).sum()) for c, (x, y) in precision.items()}

    figure = blank_figure(10.5, 4.8)
    left, right = figure.subplots(1, 2)
    left.plot((0, 1), (0, 1), color="0.7", linewidth=0.8)
    _draw_curves(left, receiver, areas, classes, "AUC")
    _draw_curves(right, precision, averages, classes, "AP")
    left.set(xlabel="false positive rate", ylabel="true positive rate")
    right.set(xlabel="recall", ylabel="precision")
    _zoom(left, "ROC", areas, xlim=(-0.005, 0.305), ylim=(0.695, 1.005))
    _zoom(right, "precision-recall", averages, xlim=(0.495, 1.005), ylim=(0.495, 1.005))
    figure.suptitle(title, fontsize=10)
    return figure


def _zoom(axes: Axes, name: str, scores: dict[int, float], **corner: Any) -> None:
    """Good curves hug a corner: show that corner alone, and say so."""
    zoomed = bool(scores) and min(scores.values()) > 0.95
    axes.set(**corner) if zoomed else axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    axes.set_title(f"{name} (zoomed into the corner)" if zoomed else name, fontsize=10)


def _draw_curves(
    axes: Axes, curves: dict[int, tuple[Array, Array]], scores: dict[int, float], classes: tuple[str, ...], name: str
) -> None:
    chosen = sorted(curves, key=lambda c: scores[c])[:HARDEST] if len(curves) > MANY_CLASSES else list(curves)
    if len(curves) > 1:
        grid = np.linspace(0, 1, 201)
        mean = np.mean([np.interp(grid, x, y) for x, y in curves.values()], axis=0)
        label = f"average of {len(curves)}  {name} {np.mean(list(scores.values())):.3f}"
        axes.plot(grid, mean, color="0.45", linewidth=3, alpha=0.5, label=label)
    for i, c in enumerate(chosen):
        x, y = _thin_curve(*curves[c])
        colour, style = COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]
        label = f"{shorten(classes[c], LONGEST_LABEL)}  {name} {scores[c]:.3f}"
        axes.plot(x, y, color=colour, linestyle=style, linewidth=1.3, label=label)
    axes.grid(color="0.92")
    axes.legend(fontsize=8, loc="lower right" if name == "AUC" else "lower left", framealpha=0.9)


def _thin_curve(x: Array, y: Array) -> tuple[Array, Array]:
    """At most 1,000 points of a curve whose `x` grows from 0 to 1: those on both sides of an even grid."""
    grid = np.linspace(0, 1, 500)
    keep = np.unique(np.r_[np.searchsorted(x, grid, "left"), np.searchsorted(x, grid, "right") - 1])
    return x[keep], y[keep]


def worst_mistakes(probabilities: Array, target: Array, n: int) -> Array:
    """Positions of at most `n` wrong predictions, those first whose true class was thought least likely."""
    wrong = np.flatnonzero(probabilities.argmax(1) != target)
    return wrong[np.argsort(probabilities[wrong, target[wrong]], kind="stable")][:n]


def pictures_figure(pictures: Array, captions: list[str], title: str, columns: int = 5) -> Figure:
    """(n, S, S, 1 or 3) uint8 in a grid, each below its caption of two lines; with none, the title alone."""
    rows, pitch = -(-len(captions) // columns), 1.35
    figure = blank_figure(1.7 * columns, 0.45 + 1.7 * pitch * rows)
    figure.suptitle(title, fontsize=10, y=1 - 0.08 / figure.get_figheight(), va="top")
    axes = figure.add_axes((0.01, 0.0, 0.98, 1 - 0.35 / figure.get_figheight()))
    axes.axis("off")
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(i, columns)
        top = row * pitch + 0.35
        box = (column + 0.05, column + 0.95, top + 0.9, top)  # left, right, bottom, top
        axes.imshow(picture.squeeze(), extent=box, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.text(column + 0.5, top - 0.04, caption, ha="center", va="bottom", fontsize=8)
    axes.set(xlim=(0, columns), ylim=(pitch * max(rows, 1), 0))
    return figure


# regression


def regression_figure(prediction: Array, target: Array, title: str) -> Figure:
    """Predicted against true with the diagonal, and the histogram of what is left (predicted - true)."""
    residuals = prediction - target
    explained = ""  # R² is not defined for one sample, nor for equal targets
    if target.min() < target.max():
        r2 = 1 - np.square(residuals).sum() / np.square(target - target.mean()).sum()
        explained = f"R² {r2:.3f}, "
    figure = blank_figure(10, 4.6)
    left, right = figure.subplots(1, 2)
    ends = min(target.min(), prediction.min()), max(target.max(), prediction.max())
    left.plot(ends, ends, color="0.6", linewidth=1)
    size = 14 if len(target) < 1_000 else 4
    left.scatter(
        _thin(target, MOST_POINTS), _thin(prediction, MOST_POINTS), s=size, color=COLOURS[0], alpha=0.5, linewidths=0
    )
    left.set(xlabel="true", ylabel="predicted")
    left.set_title(f"{explained}{len(target):,} samples", fontsize=10)
    left.grid(color="0.92")
    right.hist(residuals, bins=min(50, max(8, len(residuals) // 8)), color=COLOURS[0], alpha=0.8)
    right.axvline(0, color="0.3", linewidth=1)
    right.axvline(residuals.mean(), color=COLOURS[1], linestyle="--", label=f"mean {residuals.mean():.3g}")
    root, absolute = np.sqrt(np.square(residuals).mean()), np.abs(residuals).mean()
    right.set(xlabel="predicted - true", ylabel="samples")
    right.set_title(f"RMSE {root:.4g}, MAE {absolute:.4g}", fontsize=10)
    right.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def blank_figure(width: float, height: float, layout: Any = None) -> Figure:
    """An empty figure; without `layout` the margins suit two panels (finding them costs as much as drawing)."""
    figure = new_figure(figsize=(width, height), dpi=100, layout=layout)
    if layout is None:
        figure.subplots_adjust(left=0.07, right=0.98, bottom=0.12, top=0.87, wspace=0.2)
    return figure


def _thin(values: Array, most: int) -> Array:
    """At most `most` of the values, evenly spaced, first and last among them."""
    return values if len(values) <= most else values[np.linspace(0, len(values) - 1, most).astype(int)]


def shorten(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
