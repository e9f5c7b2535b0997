"""The figures of a report: an Analysis in, a matplotlib Figure out, None if there is nothing to draw.

pyplot's global state is never touched: a report is also made inside other people's processes. That is why, and for
logarithmic metrics and readable labels, effects and parallel coordinates are drawn here and not by Optuna's plots.
Colours: Okabe & Ito 2008 for settings, cividis for scales; a marker or line style says the same on a page without colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from quartet.lettering import new_figure
from quartet.report.analysis import Analysis, Setting, short, text
from quartet.report.runs import curve, numbers
from quartet.report.statistics import is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS, MARKERS, STYLES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"), "osD^v", ("-", "--", "-.", ":", "-")
BETTER = {"xmin": "left is better", "xmax": "right is better", "ymin": "lower is better", "ymax": "higher is better"}
STATUS = {"completed": ("o", COLOURS[0]), "pruned": ("x", "0.45")}
MOST_SETTINGS = 12  # in the figure of the ranking
FEW = 8  # values of a parameter that are placed side by side instead of along an axis
LONGEST_NAME = 44  # characters of a setting's name


def figure(height: float, **subplots: Any) -> tuple[Figure, Any]:
    """As wide as the page, so that its text is as large as the page's; height in inches."""
    drawn = new_figure(figsize=(8, height), dpi=150, layout="constrained")
    panels = drawn.subplots(**subplots)
    for axes in np.ravel(panels):
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    return drawn, panels


def labels(settings: Sequence[Setting]) -> list[str]:
    """The values that differ, behind the place in the ranking, which identifies a setting whose name is cut."""
    keys = settings[0].values if settings else ()
    varied = short(key for key in keys if len({repr(setting.values[key]) for setting in settings}) > 1)
    names = [" ".join(f"{name}={text(s.values[key])}" for key, name in varied.items()) or s.name for s in settings]
    return [f"{i}. {n if len(n) <= LONGEST_NAME else n[: LONGEST_NAME - 1] + '…'}" for i, n in enumerate(names, 1)]


def ranking(analysis: Analysis) -> Figure | None:
    """Mean with interval and the single runs, the best setting on top."""
    shown, metric = analysis.ranked[:MOST_SETTINGS], analysis.metric
    if len(shown) < 2:
        return None
    drawn, axes = figure(0.9 + 0.34 * len(shown))
    everything: list[float] = []
    # a row for each setting: ticks, bar, dot; the best one is a diamond of another colour
    for row, setting in enumerate(shown):
        values, e = [*setting.scores(metric).values()], setting.estimate(metric)
        axes.plot(values, [row] * len(values), "|", color="0.55", markersize=11, markeredgewidth=1.4)
        if e.low is not None and e.high is not None:
            axes.plot([e.low, e.high], [row, row], color=COLOURS[0], linewidth=2)
        axes.plot(e.mean, row, "o" if row else "D", color=COLOURS[0 if row else 1], markersize=7)
        everything += values
    axes.set_yticks(range(len(shown)), labels(shown), fontsize=9)
    axes.set(ylim=(len(shown) - 0.4, -0.6), xlabel=f"{metric} ({BETTER[f'x{analysis.mode}']})")
    fit(axes, everything, "x")
    return drawn


def curves(analysis: Analysis) -> Figure | None:
    """The metric after each validation: the best settings in colour, others grey, pruned runs ending in a cross."""
    pruned, metric = analysis.of("pruned").to_dict("records"), analysis.metric
    runs = [*(run for setting in analysis.ranked for run in setting.scored.values()), *pruned]
    # optimizer steps of different batches do not compare, the samples in them do
    keys = ("config.data.batch_size", "config.trainer.accumulate_grad_batches", "config.trainer.devices")
    batches = [math.prod(run[key] for key in keys if isinstance(run.get(key), int)) for run in runs]
    in_samples = len(set(batches)) > 1
    series = {}
    for run, batch in zip(runs, batches, strict=True):
        values = curve(run, metric)
        series[run["run"]] = values.set_axis(values.index * (batch if in_samples else 1))
    if not any(len(values) > 1 for values in series.values()):
        return None
    drawn, axes = figure(4.2)
    # the best settings, each with a colour, a line style and a marker; the others are thin and grey
    names = labels(analysis.ranked[: len(COLOURS)])
    for rank, setting in enumerate(analysis.ranked):
        looks: dict[str, Any] = {"color": "0.75", "linewidth": 0.8}
        if rank < len(COLOURS):
            looks = {"color": COLOURS[rank], "linestyle": STYLES[rank], "marker": MARKERS[rank], "linewidth": 1.4}
            looks |= {"markersize": 4, "markevery": 0.13, "zorder": 10 - rank, "label": names[rank]}
        for run in setting.scored.values():
            axes.plot(series[run["run"]], **looks)
            # one entry of the legend for all runs of a setting
            looks.pop("label", None)
    for i, run in enumerate(pruned):
        values, label = series[run["run"]], None if i else f"pruned ({len(pruned)})"
        axes.plot(values, color="0.8", linewidth=0.8, zorder=1)
        axes.plot(values[-1:], "x", color="0.45", markersize=5, label=label)
    fit(axes, np.concatenate([*series.values()]), "y", wide=8)
    axes.set(xlabel="samples seen" if in_samples else "optimizer steps", ylabel=metric)
    axes.legend(fontsize=8)
    return drawn


def effects(analysis: Analysis) -> Figure | None:
    """A panel for each parameter with every run; if values repeat, their median and the middle half."""
    runs, keys = analysis.points, analysis.varied
    if not keys:
        return None
    names, values = short(keys), numbers(runs, analysis.metric).to_numpy()
    pruned = (runs["status"] == "pruned").to_numpy()
    width = {1: 1, 2: 2, 4: 2}.get(len(keys), 3)
    height = math.ceil(len(keys) / width)
    drawn, panels = figure(
        0.4 + (2.7 if width > 1 else 3) * height, nrows=height, ncols=width, squeeze=False, sharey=True
    )
    for axes, key in zip(panels.flat, keys, strict=False):
        # 1. the runs; where values repeat they are moved a little to the side, at random but always alike
        places, ticks, few = _places(runs[key])
        jitter = np.random.default_rng(0).uniform(-0.15, 0.15, len(places)) if few else 0
        for status, chosen in (("pruned", pruned), ("completed", ~pruned)):
            marker, colour = STATUS[status]
            axes.plot((places + jitter)[chosen], values[chosen], marker, color=colour, markersize=4.5, alpha=0.65)
        # 2. median and quartiles of completed runs; a line between them says that the values have an order
        groups = pd.Series(values[~pruned]).groupby(places[~pruned])
        if few and max(groups.size(), default=0) > 1:
            low, middle, high = (groups.quantile(share) for share in (0.25, 0.5, 0.75))
            style = "D--" if all(map(is_number, runs[key])) else "D"
            axes.plot(middle.index, middle, style, color=COLOURS[1], linewidth=1, markersize=6)
            axes.vlines(middle.index, low, high, color=COLOURS[1])
        # 3. the axis
        axes.set_xlabel(names[key])
        if few:
            tilted = max(map(len, ticks)) * len(ticks) * width > 50
            looks = {"rotation": 30, "ha": "right"} if tilted else {}
            axes.set_xticks([*ticks.values()], [*ticks], fontsize=8, **looks)
            axes.set_xlim(-0.5, len(ticks) - 0.5)
        elif key in analysis.log:
            _logarithmic(axes, "x")
        fit(axes, values, "y")
    for axes in panels.flat[len(keys) :]:
        axes.set_axis_off()
    for axes in panels[:, 0]:
        axes.set_ylabel(analysis.metric)
    drawn.suptitle(f"{analysis.metric}: {BETTER[f'y{analysis.mode}']}", fontsize=9)
    return drawn


def parallel(analysis: Analysis) -> Figure | None:
    """A line for each run through its values; the better, the darker, the best one thick and dashed."""
    from matplotlib import colormaps

    runs, keys = analysis.points, analysis.varied
    if len(keys) < 2:
        return None
    values = numbers(runs, analysis.metric)
    axis_of: dict[str, Any] = {name: (runs[key], key in analysis.log) for key, name in short(keys).items()}
    axis_of[analysis.metric] = (values, _spans(values))
    drawn, axes = figure(4.4)
    # 1. an axis for each parameter and for the metric, scaled to 0 … 1
    heights = []
    for at, (xs, log) in enumerate(axis_of.values()):
        places, ticks, few = _places(xs)
        places = np.log10(places) if log and not few else places
        low, high = min(places), max(places)
        if not few:
            ticks = {f"{10**mark if log else mark:.2g}": mark for mark in np.linspace(low, high, 5)}
        heights.append((places - low) / (high - low) if high > low else np.full(len(places), 0.5))
        axes.axvline(at, color="0.3", linewidth=1, zorder=0)
        for label, mark in ticks.items():
            box = {"color": "white", "alpha": 0.8, "pad": 0.8}
            height = (mark - low) / (high - low) if high > low else 0.5
            axes.text(at + 0.03, height, label, fontsize=8, va="center", bbox=box, zorder=5)
    # 2. pruned runs first, the best one last and so on top
    pruned = (runs["status"] == "pruned").to_numpy()
    worse = values.to_numpy() * (1 if analysis.mode == "min" else -1)
    order = np.lexsort((-worse, ~pruned))
    for position, run in enumerate(order):
        shade = (position - pruned.sum()) / max(1, (~pruned).sum())
        looks: dict[str, Any] = {"color": colormaps["cividis_r"](0.05 + 0.95 * max(0, shade)), "linewidth": 1.1}
        if pruned[run]:
            looks = {"color": "0.8", "linewidth": 0.7, "linestyle": ":"}
        if position == len(order) - 1:
            looks = {"color": COLOURS[1], "linewidth": 2.6, "linestyle": "--"}
        axes.plot(range(len(axis_of)), [height[run] for height in heights], **looks)
    axes.grid(False)
    axes.set_xticks(range(len(axis_of)), [*axis_of], fontsize=9)
    axes.set(xlim=(-0.1, len(keys) + 0.5), ylim=(-0.06, 1.06), yticks=[], frame_on=False)
    axes.tick_params(axis="x", length=0)
    return drawn


def importance(analysis: Analysis) -> Figure | None:
    """Each parameter's share, the largest on top."""
    shares = analysis.importance
    if isinstance(shares, str) or not analysis.varied:
        return None
    names, rows = short(shares), [*shares.items()][::-1]
    drawn, axes = figure(0.8 + 0.32 * len(rows))
    bars = axes.barh([names[key] for key, _ in rows], [value for _, value in rows], color=COLOURS[0], height=0.6)
    axes.bar_label(bars, [f"{value:.2f}" for _, value in rows], padding=4, fontsize=9)
    axes.set(xlim=(0, 1.08), xlabel="share of the variance of the runs' ranks")
    axes.grid(False, axis="y")
    return drawn


def time(analysis: Analysis) -> Figure | None:
    """The metric against the seconds of training."""
    drawn, axes = figure(3.4)
    known = []
    for status, (marker, colour) in STATUS.items():
        runs = analysis.of(status)
        points = pd.DataFrame({"x": numbers(runs, "seconds"), "y": numbers(runs, analysis.metric)}).dropna()
        if len(points):
            axes.plot(points["x"], points["y"], marker, color=colour, label=f"{status} ({len(points)})")
            known += [*points["y"]]
    if not known:
        return None
    axes.set(xlabel="seconds of training", ylabel=analysis.metric)
    axes.legend(fontsize=8)
    fit(axes, known, "y")
    return drawn


def pareto(analysis: Analysis) -> Figure | None:
    """The means of the first two objectives; those on the Pareto front are numbered as in the ranking."""
    names = [*analysis.objectives][:2]
    if len(names) < 2 or not analysis.ranked:
        return None
    means = np.array([[setting.estimate(name).mean for name in names] for setting in analysis.ranked])
    others = np.delete(means, analysis.front, axis=0)
    front = means[analysis.front][np.argsort(means[analysis.front, 0])]
    drawn, axes = figure(4.2)
    axes.plot(others[:, 0], others[:, 1], "o", color="0.6", label="another one is better")
    axes.plot(front[:, 0], front[:, 1], "D--", color=COLOURS[1], label="Pareto front")
    for i in analysis.front:
        axes.annotate(str(i + 1), means[i], textcoords="offset points", xytext=(6, 5), fontsize=9)
    for i, (axis, name) in enumerate(zip("xy", names, strict=True)):
        axes.set(**{f"{axis}label": f"{name} ({BETTER[axis + analysis.objectives[name]]})"})
        fit(axes, means[:, i], axis)
    axes.legend(fontsize=8)
    return drawn


def _places(xs: Sequence[Any]) -> tuple[np.ndarray, dict[str, float], bool]:
    """Where each value is on its axis, the ticks of levels that are placed side by side, and whether they are.

    Texts and a few different numbers are side by side, at 0, 1, 2, …; many numbers are along an axis, without ticks.
    """
    numeric = all(is_number(x) for x in xs)
    levels = [text(x) for x in sorted(set(xs))] if numeric else sorted({text(x) for x in xs})
    if numeric and len(levels) > FEW:
        return np.array([float(x) for x in xs]), {}, False
    ticks = {level: float(place) for place, level in enumerate(dict.fromkeys(levels))}
    return np.array([ticks[text(x)] for x in xs]), ticks, True


def fit(axes: Axes, values: Any, axis: str, wide: float = 30) -> None:
    """A logarithmic axis if the values span more than `wide`; else outliers are cut off, and the title counts them."""
    if _spans(values, wide):
        _logarithmic(axes, axis)
    elif len(values):
        low, high = np.percentile(values, [25, 75])
        reach = 6 * (high - low)
        inside = [value for value in values if low - reach <= value <= high + reach]
        if 0 < len(inside) < len(values) and reach:
            pad = 0.05 * (max(inside) - min(inside))
            axes.set(**{f"{axis}lim": (min(inside) - pad, max(inside) + pad)})
            axes.set_title(f"{len(values) - len(inside)} beyond the frame", fontsize=8, loc="right", color="0.35")


def _logarithmic(axes: Axes, axis: str) -> None:
    """With 0.02 instead of 2 × 10⁻² beside it."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""  # matplotlib chooses the ones that have room

    axes.set(**{f"{axis}scale": "log"})
    for which in ("major", "minor"):
        getattr(getattr(axes, f"{axis}axis"), f"set_{which}_formatter")(Plain(minor_thresholds=(1.5, 0.6)))


def _spans(values: Any, wide: float = 30) -> bool:
    return len(values) > 0 and min(values) > 0 and max(values) > wide * min(values)
