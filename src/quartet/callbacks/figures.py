"""Figures of predictions: confusion matrix, ROC and precision-recall curves, worst mistakes, predicted against true.

The drawing functions take arrays and return a matplotlib Figure; none knows a trainer or touches pyplot's global state.
Numbers come from scikit-learn. Its display classes are not used: they colour a confusion matrix by counts, where rare
classes vanish, and have neither an average curve nor round ticks. Colours: Okabe & Ito 2008, safe for colour-blind readers.
matplotlib and scikit-learn are imported inside the functions: a run without figures does not pay for them.

Letters: N samples, C classes, S side of an image.
"""

from __future__ import annotations

import html
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy import ndarray as Array
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from quartet.callbacks.tensorboard import show_text, summary_writer
from quartet.lettering import lettered, new_figure
from quartet.say import printable
from quartet.system.distributed import gathered

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")  # a new one after each round of colours: 28 lines that differ
MANY_CLASSES = 20  # beyond these a figure shows the average and the hardest classes only
N_HARDEST = 5
LONGEST_LABEL = 16  # characters
LONGEST_TEXT = 300  # characters of a text in a table
MOST_POINTS = 5_000  # of a scatter plot; more are thinned out evenly
TITLES = {"val": "validation", "test": "test"}
FIRST_DRAWING = 1.0  # seconds it is expected to take, importing matplotlib included


class Figures(Callback):
    """Confusion matrix, curves and worst mistakes of a classifier; predicted against true of a regression.

    They go to TensorBoard (`val/…`, `test/…`) and to `figures/` in the run directory, where the newest one stays. Drawn
    after a validation while drawing takes less than `most_share` of the training time so far (and only after every
    `every_n_validations`), at the end of training, and after `trainer.validate` and `trainer.test`. Predictions of all
    ranks are gathered on the CPU. `n_mistakes` is how many mistakes are shown.
    """

    def __init__(
        self,
        *,
        every_n_validations: int,
        most_share: float,
        n_mistakes: int,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.every_n_validations, self.most_share, self.n_mistakes = every_n_validations, most_share, n_mistakes
        self.clock = clock
        self._outputs: list[dict[str, Tensor]] = []
        self._validations, self._pending = 0, False
        # clock at the start of training; seconds spent on drawing since, and the last time
        self._started = self._drawing = 0.0
        self._last_drawing = FIRST_DRAWING

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started, self._drawing = self.clock(), 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._outputs = []

    on_test_start = on_validation_start

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if outputs:
            self._outputs.append({name: value.detach().cpu() for name, value in outputs.items()})

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._outputs:
            return
        self._validations, self._pending = self._validations + 1, True
        # the clocks of ranks differ, and all have to agree whether they gather
        if trainer.state.fn == "fit":
            allowed = self.most_share * (self.clock() - self._started)
            in_time = trainer.strategy.broadcast(self._drawing + self._last_drawing <= allowed)
            if self._validations % self.every_n_validations or not in_time:
                return
        self.draw(trainer, pl_module, "val")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._pending:
            self.draw(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._outputs:
            self.draw(trainer, pl_module, "test")

    def draw(self, trainer: Trainer, task: Any, part: str) -> None:
        """Collective: every rank calls it, rank 0 draws."""
        start = self.clock()
        # 1. the predictions of all ranks, which may have different numbers of samples
        own = {name: torch.cat([output[name] for output in self._outputs]) for name in self._outputs[0]}
        ranks = gathered(trainer, own)
        self._outputs, self._pending = [], False

        # 2. the figures
        if trainer.is_global_zero:
            outputs = {name: torch.cat([rank[name] for rank in ranks]).numpy() for name in own}
            prediction, target = outputs["prediction"], outputs["target"]  # (N, C) or (N,), and (N,)
            # after training the weights are the best checkpoint's, which come from another step
            fitting = trainer.state.fn == "fit"
            title = f"{TITLES[part]}, step {trainer.global_step:,}" if fitting else TITLES[part]
            with optional(f"figures of the {TITLES[part]} part"):
                if prediction.ndim == 1:
                    show_figure(trainer, part, "predictions", regression_figure(prediction, target, title))
                else:
                    classes = task.spec.classes
                    matrix = confusion_figure(target, prediction.argmax(1), classes, title)
                    show_figure(trainer, part, "confusion_matrix", matrix)
                    show_figure(trainer, part, "curves", curves_figure(prediction, target, classes, title))
                    self._show_mistakes(trainer, part, title, classes, outputs)
        self._last_drawing = self.clock() - start
        self._drawing += self._last_drawing

    def _show_mistakes(
        self, trainer: Trainer, part: str, title: str, classes: tuple[str, ...], outputs: dict[str, Array]
    ) -> None:
        """Images in a grid, other samples as rows of a Markdown table."""
        prediction, target, index = (outputs[name] for name in ("prediction", "target", "index"))
        worst = worst_mistakes(prediction, target, self.n_mistakes)
        named = [(classes[target[i]], classes[prediction[i].argmax()], prediction[i].max()) for i in worst]
        data: Any = getattr(trainer, "datamodule", None)
        if hasattr(data, "raw_images"):
            captions = [f"true {shorten(a, 12)}\npredicted {shorten(b, 12)}, {p:.0%}" for a, b, p in named]
            images = data.raw_images(part, index[worst]) if named else np.zeros((0, 1, 1, 1))
            figure = images_figure(images, captions, f"{title}: {'worst' if named else 'no'} mistakes")
            show_figure(trainer, part, "mistakes", figure)
            return
        # texts are shown, rows of a table by their number
        samples = [f"number {i}" for i in index[worst]]
        if hasattr(data, "tokenizer"):
            tokens = data.datasets[part].gather(torch.as_tensor(index[worst]))["inputs"]["tokens"].tolist()
            pad = data.spec.sizes.get("pad_id")
            texts = [data.tokenizer.decode([token for token in row if token != pad]) for row in tokens]
            samples = [shorten(" ".join(text.split()).replace("|", "\\|"), LONGEST_TEXT) for text in texts]
        rows = [f"| {cell(a)} | {cell(b)} | {p:.0%} | {s} |" for (a, b, p), s in zip(named, samples, strict=True)]
        table = ["| true | predicted | probability | sample |", "|---|---|---|---|", *rows]
        show_text(trainer, f"{part}/mistakes", Path("figures", f"{part}_mistakes.md"), "\n".join(table))


# what the callbacks that draw share


@contextmanager
def optional(what: str) -> Iterator[None]:
    """A training does not end for a figure that cannot be drawn; for a full disk it does."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(printable(f"no {what}: {reason}"), file=sys.stderr, flush=True)


def show_figure(trainer: Trainer, part: str, name: str, figure: Figure, tag: str | None = None) -> None:
    """A figure as `<tag or part>/<name>` in TensorBoard and as a PNG file of the run, drawn once for both."""
    from PIL import Image

    pixels = render(figure)
    path = Path(trainer.default_root_dir, "figures", f"{part}_{name}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=3)
    writer = summary_writer(trainer.loggers)
    if writer is not None:
        writer.add_image(f"{tag or part}/{name}", pixels, trainer.global_step, dataformats="HWC")


def render(figure: Figure) -> Array:
    """(height, width, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with lettered(figure):
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def blank_figure(width: float, height: float, layout: Any = None) -> Figure:
    """An empty figure, in inches; without `layout` the margins suit two panels (finding them costs as much as drawing)."""
    figure = new_figure(figsize=(width, height), dpi=100, layout=layout)
    if layout is None:
        figure.subplots_adjust(left=0.07, right=0.98, bottom=0.12, top=0.87, wspace=0.2)
    return figure


def shorten(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def cell(value: Any) -> str:
    """Text in a Markdown table as it is: lines and indentation stay, and no character is read as Markdown or HTML."""
    lines = shorten(str(value).strip("\n"), LONGEST_TEXT).split("\n")
    escaped = (re.sub(r"([\\`*_{}\[\]()#+.!|~$-])", r"\\\1", html.escape(line, quote=False)) for line in lines)
    return "<br>".join(re.sub(r"^ +", lambda blanks: "&nbsp;" * len(blanks[0]), line) for line in escaped)


# the figures


def confusion_figure(target: Array, predicted: Array, classes: tuple[str, ...], title: str) -> Figure:
    """Counts in the cells, shares of the true class as shades; cells of many classes have the shade alone."""
    from matplotlib.colors import PowerNorm
    from sklearn.metrics import confusion_matrix

    n = len(classes)
    counts = confusion_matrix(target, predicted, labels=range(n))
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    figure = blank_figure(max(5.0, min(9.0, 1.8 + 0.42 * n)), max(4.6, min(8.6, 1.4 + 0.42 * n)), layout="tight")
    axes = figure.subplots()
    # the root of the shares shows rare mistakes
    shades = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    figure.colorbar(shades, ax=axes, fraction=0.04, pad=0.02, label="share of the true class")
    accuracy = np.trace(counts) / max(counts.sum(), 1)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"{title}: {accuracy:.1%} of {counts.sum():,} right", fontsize=10)

    # counts and names where they can be read
    if n <= MANY_CLASSES:
        for row, column in np.argwhere(counts):
            colour, size = "white" if shares[row, column] > 0.35 else "black", 10 if n <= 12 else 7
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=size, color=colour)
    if n <= 2 * MANY_CLASSES:
        labels, size = [shorten(name, LONGEST_LABEL) for name in classes], 9 if n <= MANY_CLASSES else 6
        axes.set_yticks(range(n), labels, fontsize=size)
        axes.set_xticks(range(n), labels, fontsize=size, rotation=90 if n * max(map(len, labels)) > 50 else 0)
    return figure


def curves_figure(probabilities: Array, target: Array, classes: tuple[str, ...], title: str) -> Figure:
    """ROC and precision-recall curves side by side: one line per class, or macro average and hardest classes."""
    from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

    # 1. the curves (x, y, score) of each class; one that has no samples, or all of them, has none
    receiver, precision = {}, {}
    for c in [1] if len(classes) == 2 else range(len(classes)):
        positive, score = target == c, probabilities[:, c]
        if 0 < positive.sum() < len(target):
            x, y, _ = roc_curve(positive, score)
            receiver[c] = x, y, auc(x, y)
            y, x, _ = precision_recall_curve(positive, score, drop_intermediate=True)
            precision[c] = x[::-1], y[::-1], average_precision_score(positive, score)

    # 2. a panel each
    figure = blank_figure(10.5, 4.8)
    figure.suptitle(title, fontsize=10)
    left, right = figure.subplots(1, 2)
    left.plot((0, 1), (0, 1), color="0.7", linewidth=0.8)
    left.set(xlabel="false positive rate", ylabel="true positive rate")
    right.set(xlabel="recall", ylabel="precision")
    grid = np.linspace(0, 1, 201)
    panels = [(left, receiver, "ROC", "AUC", 0.0, 0.7), (right, precision, "precision-recall", "AP", 0.5, 0.5)]
    for axes, curves, name, unit, corner_x, corner_y in panels:
        scores = {c: score for c, (_, _, score) in curves.items()}
        if len(curves) > 1:
            average = np.mean([np.interp(grid, x, y) for x, y, _ in curves.values()], axis=0)
            label = f"average of {len(curves)}  {unit} {np.mean(list(scores.values())):.3f}"
            axes.plot(grid, average, color="0.45", linewidth=3, alpha=0.5, label=label)
        shown = sorted(curves, key=lambda c: scores[c])[:N_HARDEST] if len(curves) > MANY_CLASSES else curves
        for i, c in enumerate(shown):
            colour, style = COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]
            label = f"{shorten(classes[c], LONGEST_LABEL)}  {unit} {scores[c]:.3f}"
            axes.plot(*curves[c][:2], color=colour, linestyle=style, linewidth=1.3, label=label)
        # good curves hug a corner: show that corner alone, and say so
        zoomed = bool(scores) and min(scores.values()) > 0.95
        if zoomed:
            width = 0.305 if corner_x == 0 else 0.51
            axes.set(xlim=(corner_x - 0.005, corner_x - 0.005 + width), ylim=(corner_y - 0.005, 1.005))
        else:
            axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
        axes.set_title(f"{name} (zoomed into the corner)" if zoomed else name, fontsize=10)
        axes.grid(color="0.92")
        axes.legend(fontsize=8, loc="lower right" if unit == "AUC" else "lower left", framealpha=0.9)
    return figure


def worst_mistakes(probabilities: Array, target: Array, n: int) -> Array:
    """Positions of at most `n` wrong predictions, those first whose true class was thought least likely."""
    wrong = np.flatnonzero(probabilities.argmax(1) != target)
    return wrong[np.argsort(probabilities[wrong, target[wrong]], kind="stable")][:n]


def images_figure(images: Array, captions: list[str], title: str, columns: int = 5) -> Figure:
    """(n, S, S, 1 or 3) uint8 in a grid, each below its caption of two lines; with none, the title alone."""
    rows, pitch = -(-len(captions) // columns), 1.35
    figure = blank_figure(1.7 * columns, 0.45 + 1.7 * pitch * rows)
    figure.suptitle(title, fontsize=10, y=1 - 0.08 / figure.get_figheight(), va="top")
    axes = figure.add_axes((0.01, 0.0, 0.98, 1 - 0.35 / figure.get_figheight()))
    axes.axis("off")
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(i, columns)
        top = row * pitch + 0.35
        box = (column + 0.05, column + 0.95, top + 0.9, top)  # left, right, bottom, top
        axes.imshow(image.squeeze(), extent=box, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.text(column + 0.5, top - 0.04, caption, ha="center", va="bottom", fontsize=8)
    axes.set(xlim=(0, columns), ylim=(pitch * max(rows, 1), 0))
    return figure


def regression_figure(prediction: Array, target: Array, title: str) -> Figure:
    """Predicted against true with the diagonal, and the histogram of the residuals (predicted - true)."""
    from sklearn.metrics import r2_score

    residuals = prediction - target
    # R² is not defined for one sample, nor for equal targets
    explained = f"R² {r2_score(target, prediction):.3f}, " if target.min() < target.max() else ""
    figure = blank_figure(10, 4.6)
    figure.suptitle(title, fontsize=10)
    left, right = figure.subplots(1, 2)
    # 1. predicted against true
    ends = min(target.min(), prediction.min()), max(target.max(), prediction.max())
    left.plot(ends, ends, color="0.6", linewidth=1)
    shown = np.linspace(0, len(target) - 1, min(len(target), MOST_POINTS)).astype(int)
    size = 14 if len(target) < 1_000 else 4
    left.scatter(target[shown], prediction[shown], s=size, color=COLOURS[0], alpha=0.5, linewidths=0)
    left.set(xlabel="true", ylabel="predicted")
    left.set_title(f"{explained}{len(target):,} samples", fontsize=10)
    left.grid(color="0.92")
    # 2. the residuals
    right.hist(residuals, bins=min(50, max(8, len(residuals) // 8)), color=COLOURS[0], alpha=0.8)
    right.axvline(0, color="0.3", linewidth=1)
    right.axvline(residuals.mean(), color=COLOURS[1], linestyle="--", label=f"mean {residuals.mean():.3g}")
    rmse, mae = np.sqrt(np.square(residuals).mean()), np.abs(residuals).mean()
    right.set(xlabel="predicted - true", ylabel="samples")
    right.set_title(f"RMSE {rmse:.4g}, MAE {mae:.4g}", fontsize=10)
    right.legend(fontsize=8)
    return figure
