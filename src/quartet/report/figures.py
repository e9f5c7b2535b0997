"""The figures of a report. Colours: Okabe & Ito 2008, cividis for scales; every colour has a marker or line style beside it.

Each function takes plain data and returns a matplotlib Figure; pyplot's global state is never touched.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quartet.report.runs import Record
from quartet.report.settings import Setting, is_number, short, text
from quartet.report.statistics import estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
MARKERS, STYLES = "osD^v", ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
GREY, PRUNED = "0.6", "0.45"
SHOWN = 12  # settings in the ranking's figure
FEW = 8  # values of a parameter up to which means are drawn
LONGEST = 44  # characters of a setting's name in a figure
WIDE = 8.0  # inches; at this width text is as large as the page's


def figure(height: float, width: float = WIDE) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def save(drawn: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, metadata={"Software": None})
    return path


def label(setting: Setting) -> str:
    names = short(setting.values)
    words = " ".join(f"{names[key]}={text(value)}" for key, value in setting.values.items()) or setting.name
    return words if len(words) <= LONGEST else words[: LONGEST - 1] + "…"


def ranking(settings: Sequence[Setting], metric: str, mode: str) -> Figure:
    """Mean with interval and the single runs, the best setting on top."""
    shown = settings[:SHOWN]
    drawn = figure(0.9 + 0.34 * len(shown))
    axes = drawn.subplots()
    for row, setting in enumerate(shown):
        values, e = list(setting.scores(metric).values()), setting.estimate(metric)
        axes.plot(values, [row] * len(values), "|", color=GREY, markersize=11, markeredgewidth=1.4)
        if e.low is not None and e.high is not None:
            axes.plot([e.low, e.high], [row, row], color=COLOURS[0], linewidth=2)
        axes.plot(e.mean, row, "o", color=COLOURS[1] if row == 0 else COLOURS[0], markersize=7)
    axes.set_yticks(range(len(shown)), [label(s) for s in shown], fontsize=9)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    _score_axis(axes, [v for s in shown for v in s.scores(metric).values()], "x")
    axes.set_xlabel(f"{metric} ({_better(mode, 'x')})")
    axes.grid(axis="x", color="0.92")
    return drawn


def curves(settings: Sequence[Setting], pruned: Sequence[Record], metric: str) -> Figure | None:
    """The metric after each validation: the best settings in colour, other runs grey, pruned ones ending in a cross."""
    finished = [record for setting in settings for record in setting.scored.values()]
    unit = "samples seen" if len({batch(record) for record in [*finished, *pruned]}) > 1 else "optimizer steps"
    series = {record.name: learning_curve(record, metric, unit) for record in finished}
    cut = [points for record in pruned if (points := learning_curve(record, metric, unit))[0]]
    if not any(len(x) > 1 for x, _ in series.values()):
        return None
    drawn = figure(4.2)
    axes = drawn.subplots()
    for x, y in cut:
        axes.plot(x, y, color="0.8", linewidth=0.8, zorder=1)
        axes.plot(x[-1], y[-1], "x", color=PRUNED, markersize=5, zorder=2)
    for rank, setting in reversed(list(enumerate(settings))):
        for i, record in enumerate(setting.scored.values()):
            x, y = series[record.name]
            style = _line(rank) if rank < len(COLOURS) else {"color": "0.75", "linewidth": 0.8}
            axes.plot(x, y, label=label(setting) if i == 0 and rank < len(COLOURS) else None, **style)
    if cut:
        axes.plot([], [], "x", color=PRUNED, label=f"pruned ({len(cut)})")
    _score_axis(axes, [v for _, y in (*series.values(), *cut) for v in y], "y")
    axes.set(xlabel=unit, ylabel=metric)
    axes.grid(color="0.92")
    handles, labels = axes.get_legend_handles_labels()
    order = [*range(len(labels) - bool(cut))][::-1] + [len(labels) - 1] * bool(cut)
    axes.legend([handles[i] for i in order], [labels[i] for i in order], fontsize=8)
    return drawn


def learning_curve(record: Record, metric: str, unit: str) -> tuple[list[float], list[float]]:
    """Where the metric was logged, in steps or samples, and its finite values."""
    path = record.directory / "metrics.csv"
    if not path.is_file():
        return [], []
    scale = batch(record) if unit == "samples seen" else 1
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = [(row.get("step"), row.get(metric)) for row in csv.DictReader(file)]
    points = [(scale * (float(step) + 1), float(value)) for step, value in rows if step and value]
    kept = [point for point in points if math.isfinite(point[1])]
    return [x for x, _ in kept], [y for _, y in kept]


def batch(record: Record) -> float:
    """Samples of an optimizer step."""
    keys = ("data.batch_size", "trainer.accumulate_grad_batches", "trainer.devices")
    return math.prod(value for key in keys if is_number(value := record.config.get(key)))


def effects(
    points: Sequence[Mapping[str, Any]], values: Sequence[float], metric: str, mode: str, log: set[str]
) -> Figure:
    """A panel for each parameter: every run, and the mean with its interval where values repeat."""
    keys = list(points[0])
    columns = min(3, len(keys))
    rows = math.ceil(len(keys) / columns)
    drawn = figure(0.4 + 2.7 * rows)
    panels = drawn.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    names = short(keys)
    for axes, key in zip(panels, keys, strict=False):
        _effect(axes, [point[key] for point in points], values, key in log)
        axes.set_xlabel(names[key])
        axes.grid(color="0.92")
        _score_axis(axes, values, "y")
    for axes in panels[len(keys) :]:
        axes.set_axis_off()
    for first in panels[::columns]:
        first.set_ylabel(metric)
    drawn.suptitle(f"{metric}: {_better(mode, 'y')}", fontsize=9)
    return drawn


def _effect(axes: Axes, xs: Sequence[Any], values: Sequence[float], log: bool) -> None:
    levels, places, numeric = _places(xs)
    few = len(levels) <= FEW
    spread = np.random.default_rng(0).uniform(-0.12, 0.12, len(xs)) * (few and not numeric)
    axes.plot(np.array(places) + spread, values, "o", color=COLOURS[0], markersize=4, alpha=0.55, markeredgewidth=0)
    if few and len(levels) < len(xs):
        at = [(p, [v for q, v in zip(places, values, strict=True) if q == p]) for p in sorted(set(places))]
        means = [(p, estimate(group)) for p, group in at]
        axes.plot([p for p, _ in means], [e.mean for _, e in means], "D--", color=COLOURS[1], linewidth=1, markersize=6)
        for p, e in means:
            if e.low is not None and e.high is not None:
                axes.plot([p, p], [e.low, e.high], color=COLOURS[1], linewidth=1.5)
    if log:
        axes.set_xscale("log")
    elif not numeric:
        tilted = max(map(len, levels)) * len(levels) > 24
        axes.set_xticks(
            range(len(levels)), levels, rotation=30 if tilted else 0, ha="right" if tilted else "center", fontsize=8
        )
        axes.set_xlim(-0.5, len(levels) - 0.5)


def _places(xs: Sequence[Any]) -> tuple[list[str], list[float], bool]:
    """Levels, the place of each x, and whether the places are the numbers themselves."""
    if all(is_number(x) for x in xs):
        return sorted({text(x) for x in xs}), [float(x) for x in xs], True
    levels = sorted({text(x) for x in xs}, key=lambda level: (0, float(level)) if _is_float(level) else (1, level))  # type: ignore[arg-type]
    return levels, [float(levels.index(text(x))) for x in xs], False


def _is_float(level: str) -> bool:
    try:
        return math.isfinite(float(level))
    except ValueError:
        return False


def parallel(
    points: Sequence[Mapping[str, Any]], values: Sequence[float], metric: str, mode: str, log: set[str]
) -> Figure:
    """A line for each run through its values; better runs are drawn later and darker, the best one thick and dashed."""
    from matplotlib import colormaps

    keys = list(points[0])
    drawn = figure(4.4)
    axes = drawn.subplots()
    columns = [_column(axes, i, [point[key] for point in points], key in log) for i, key in enumerate(keys)]
    scores = np.argsort(np.argsort(np.array(values) * (-1 if mode == "min" else 1), kind="stable"))  # best is highest
    columns.append(_column(axes, len(keys), list(values), _wide(values)))
    shade = colormaps["cividis_r"](0.05 + 0.9 * scores / max(len(values) - 1, 1))
    for i in np.argsort(scores):
        best = scores[i] == len(values) - 1
        style = (
            {"color": COLOURS[1], "linewidth": 2.6, "linestyle": "--"}
            if best
            else {"color": shade[i], "linewidth": 1.1}
        )
        axes.plot(range(len(columns)), [column[i] for column in columns], alpha=0.9, **style)
    names = short(keys)
    axes.set_xticks(range(len(columns)), [*(names[key] for key in keys), metric], fontsize=9)
    axes.set(xlim=(-0.35, len(keys) + 0.55), ylim=(-0.06, 1.06), yticks=[])
    axes.tick_params(axis="x", length=0)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    return drawn


def _column(axes: Axes, at: int, xs: list[Any], log: bool) -> list[float]:
    """Draw an axis with its values and say where, from 0 to 1, each run crosses it."""
    levels, places, numeric = _places(xs)
    scaled = np.log10(places) if log else np.array(places)
    low, high = float(scaled.min()), float(scaled.max())
    heights = (scaled - low) / (high - low) if high > low else np.full(len(xs), 0.5)
    axes.axvline(at, color="0.3", linewidth=1, zorder=0)
    marks = {level: float(heights[places.index(float(i))]) for i, level in enumerate(levels)} if not numeric else {}
    if numeric:
        few = len(set(places)) <= 6
        marks = {text(x): float(h) for x, h in zip(xs, heights, strict=True)} if few else _ticks(low, high, log)
    for mark, height in marks.items():
        axes.text(
            at + 0.03,
            height,
            mark,
            fontsize=8,
            va="center",
            bbox={"color": "white", "alpha": 0.75, "pad": 0.8},
            zorder=5,
        )
    return list(heights)


def _ticks(low: float, high: float, log: bool) -> dict[str, float]:
    grid = np.linspace(low, high, 5)
    return {f"{10**v if log else v:.2g}": float((v - low) / (high - low)) for v in grid}


def shares(importances: Mapping[str, float]) -> Figure:
    names = short(importances)
    drawn = figure(0.8 + 0.32 * len(importances))
    axes = drawn.subplots()
    rows = list(importances.items())[::-1]
    bars = axes.barh([names[key] for key, _ in rows], [value for _, value in rows], color=COLOURS[0], height=0.6)
    axes.bar_label(bars, [f"{value:.2f}" for _, value in rows], padding=4, fontsize=9)
    axes.set(xlim=(0, 1.08), xlabel="share of the variance of the runs' ranks")
    axes.spines[["top", "right"]].set_visible(False)
    return drawn


def cost(groups: Mapping[str, Sequence[Record]], metric: str) -> Figure:
    """The metric against the seconds of training; a marker for each status."""
    drawn = figure(3.6)
    axes = drawn.subplots()
    values: list[float] = []
    for i, (status, records) in enumerate(groups.items()):
        points = [(r.number("seconds"), v) for r in records if (v := r.value(metric)) is not None]
        values += [v for _, v in points]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(
                x,
                y,
                "ox+1"[i % 4],
                color=(COLOURS[0], PRUNED, COLOURS[1], COLOURS[2])[i % 4],
                label=f"{status} ({len(x)})",
            )
    _score_axis(axes, values, "y")
    axes.set(xlabel="seconds of training", ylabel=metric)
    axes.grid(color="0.92")
    axes.legend(fontsize=8)
    return drawn


def trade_off(settings: Sequence[Setting], best: Sequence[int], objectives: Mapping[str, str]) -> Figure:
    """The means of two objectives; the Pareto front as numbered diamonds joined by a line."""
    (first, mode), (second, other) = list(objectives.items())[:2]
    points = [(s.estimate(first).mean, s.estimate(second).mean) for s in settings]
    drawn = figure(4.2)
    axes = drawn.subplots()
    rest = [p for i, p in enumerate(points) if i not in best]
    axes.plot(*zip(*rest, strict=True), "o", color=GREY, label="beaten by another setting") if rest else None
    chosen = sorted((points[i], i) for i in best)
    axes.plot(*zip(*(p for p, _ in chosen), strict=True), "D--", color=COLOURS[1], label="Pareto front")
    for p, i in chosen:
        axes.annotate(str(i + 1), p, textcoords="offset points", xytext=(6, 5), fontsize=9)
    _score_axis(axes, [x for x, _ in points], "x")
    _score_axis(axes, [y for _, y in points], "y")
    axes.set(xlabel=f"{first} ({_better(mode, 'x')})", ylabel=f"{second} ({_better(other, 'y')})")
    axes.grid(color="0.92")
    axes.legend(fontsize=8)
    return drawn


def _line(rank: int) -> dict[str, Any]:
    return {
        "color": COLOURS[rank], "linestyle": STYLES[rank], "marker": MARKERS[rank], "markersize": 4, "linewidth": 1.4,
        "markevery": 0.13, "zorder": 10 - rank,
    }  # fmt: skip


def _better(mode: str, axis: str) -> str:
    return {
        "min": {"x": "left is better", "y": "lower is better"},
        "max": {"x": "right is better", "y": "higher is better"},
    }[mode][axis]


def _wide(values: Sequence[float]) -> bool:
    """A span that only a logarithm shows."""
    return min(values, default=0) > 0 and max(values) > 30 * min(values)


def _score_axis(axes: Axes, values: Sequence[float], axis: str) -> None:
    """Logarithmic where the values need it; else without the outliers on the far side of what is good."""
    if not values:
        return
    if _wide(values):
        axes.set(**{f"{axis}scale": "log"})
        return
    low, middle, high = np.percentile(values, [25, 50, 75])
    reach = 6 * max(high - low, 1e-12)
    top, bottom = max(values) > high + reach, min(values) < low - reach
    if (top or bottom) and high > low:
        lowest, highest = (low - reach if bottom else min(values)), (high + reach if top else max(values))
        pad = 0.05 * (highest - lowest)
        axes.set(**{f"{axis}lim": (lowest - pad, highest + pad)})
        n = sum(not lowest <= value <= highest for value in values)
        axes.set_title(f"{n} far values lie beyond the frame", fontsize=8, loc="right", color="0.35")
