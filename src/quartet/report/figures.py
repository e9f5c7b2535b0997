"""The figures of a report: plain data in, a matplotlib Figure out; pyplot's global state is never touched.

Colours: Okabe & Ito 2008 for settings, cividis for scales; a marker or line style says the same, for a page without colour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quartet.files import written
from quartet.lettering import lettered, new_figure
from quartet.report.runs import Record
from quartet.report.settings import Setting, is_number, short, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS, MARKERS, STYLES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"), "osD^v", ("-", "--", "-.", ":", "-")
BETTER = {"xmin": "left is better", "xmax": "right is better", "ymin": "lower is better", "ymax": "higher is better"}
STATUS = {"completed": ("o", COLOURS[0]), "pruned": ("x", "0.45")}
SHOWN = 12  # settings in the ranking's figure
FEW = 8  # values of a parameter up to which their medians are drawn
LONGEST = 44  # characters of a setting's name in a figure

Points = Sequence[Mapping[str, Any]]


def figure(height: float) -> Figure:
    """As wide as the page, so that its text is as large as the page's."""
    return new_figure(figsize=(8, height), dpi=150, layout="constrained")


def save(drawn: Figure, path: Path) -> Path:
    """Raises ValueError where the folder is a link, which may lead out of the report."""
    if path.parent.is_symlink():
        raise ValueError(f"{path.parent} is a link; put a folder in its place")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as file, lettered(drawn):
        drawn.savefig(file, format=path.suffix[1:])
    return path


def labels(settings: Sequence[Setting]) -> list[str]:
    """What differs, with the place in the ranking, which says who it is where the name has to be cut."""
    keys = settings[0].values if settings else ()
    varied = short(key for key in keys if len({repr(setting.values[key]) for setting in settings}) > 1)
    names = [" ".join(f"{name}={text(s.values[key])}" for key, name in varied.items()) or s.name for s in settings]
    return [f"{i}. {n if len(n) <= LONGEST else n[: LONGEST - 1] + '…'}" for i, n in enumerate(names, 1)]


def ranking(settings: Sequence[Setting], metric: str, mode: str) -> Figure:
    """Mean with interval and the single runs, the best setting on top."""
    shown = settings[:SHOWN]
    drawn = figure(0.9 + 0.34 * len(shown))
    axes = drawn.subplots()
    for row, setting in enumerate(shown):
        values, e = list(setting.scores(metric).values()), setting.estimate(metric)
        axes.plot(values, [row] * len(values), "|", color="0.55", markersize=11, markeredgewidth=1.4)
        if e.low is not None and e.high is not None:
            axes.plot([e.low, e.high], [row, row], color=COLOURS[0], linewidth=2)
        axes.plot(e.mean, row, "D" if row == 0 else "o", color=COLOURS[row == 0], markersize=7)
    axes.set_yticks(range(len(shown)), labels(shown), fontsize=9)
    axes.set(ylim=(len(shown) - 0.4, -0.6), xlabel=f"{metric} ({BETTER[f'x{mode}']})")
    axes.grid(axis="x", color="0.92")
    fit(axes, [v for s in shown for v in s.scores(metric).values()], "x")
    return drawn


def curves(settings: Sequence[Setting], pruned: Sequence[Record], metric: str) -> Figure | None:
    """After each validation: the best settings in colour, other runs grey, pruned ones ending in a cross."""
    finished = [record for setting in settings for record in setting.scored.values()]
    samples = len({record.batch for record in [*finished, *pruned]}) > 1  # steps of other sizes do not compare
    series = {record.name: record.curve(metric, samples) for record in [*finished, *pruned]}
    if not any(len(points) > 1 for points in series.values()):
        return None
    drawn = figure(4.2)
    axes = drawn.subplots()
    names = labels(settings[: len(COLOURS)])
    for rank, setting in enumerate(settings):
        for i, record in enumerate(setting.scored.values()):
            axes.plot(*_xy(series[record.name]), **_line(rank, names[rank] if i == 0 and rank < len(COLOURS) else None))
    for i, record in enumerate(pruned):
        x, y = _xy(series[record.name])
        axes.plot(x, y, color="0.8", linewidth=0.8, zorder=1)
        axes.plot(x[-1:], y[-1:], "x", color="0.45", markersize=5, label=f"pruned ({len(pruned)})" if i == 0 else None)
    fit(axes, [y for points in series.values() for _, y in points], "y", wide=8)
    axes.set(xlabel="samples seen" if samples else "optimizer steps", ylabel=metric)
    axes.grid(color="0.92")
    axes.legend(fontsize=8)
    return drawn


def _xy(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _line(rank: int, name: str | None) -> dict[str, Any]:
    if rank >= len(COLOURS):
        return {"color": "0.75", "linewidth": 0.8}
    looks = {"color": COLOURS[rank], "linestyle": STYLES[rank], "marker": MARKERS[rank]}
    return {**looks, "markersize": 4, "linewidth": 1.4, "markevery": 0.13, "zorder": 10 - rank, "label": name}


def effects(
    points: Points, values: Sequence[float], pruned: Sequence[bool], metric: str, mode: str, log: set[str]
) -> Figure:
    """A panel for each parameter with every run; where values repeat, their median and the middle half."""
    keys, names = list(points[0]), short(points[0])
    columns = {1: 1, 2: 2, 4: 2}.get(len(keys), 3)
    drawn = figure(0.4 + (2.7 if columns > 1 else 3) * math.ceil(len(keys) / columns))
    panels = drawn.subplots(math.ceil(len(keys) / columns), columns, squeeze=False, sharey=True)
    for axes, key in zip(panels.flat, keys, strict=False):
        _effect(axes, [point[key] for point in points], np.array(values), np.array(pruned), key in log)
        axes.set_xlabel(names[key])
        axes.grid(color="0.92")
        fit(axes, values, "y")
    for axes in panels.flat[len(keys) :]:
        axes.set_axis_off()
    for axes in panels[:, 0]:
        axes.set_ylabel(metric)
    drawn.suptitle(f"{metric}: {BETTER[f'y{mode}']}", fontsize=9)
    return drawn


def _effect(axes: Axes, xs: Sequence[Any], values: Any, pruned: Any, log: bool) -> None:
    levels, places, numeric = _places(xs)
    jitter = np.random.default_rng(0).uniform(-0.15, 0.15, len(xs)) * (not numeric)
    for chosen, name in ((pruned, "pruned"), (~pruned, "completed")):
        marker, colour = STATUS[name]
        axes.plot((places + jitter)[chosen], values[chosen], marker, color=colour, markersize=4.5, alpha=0.65)
    completed = {place: values[(places == place) & ~pruned] for place in np.unique(places)}
    if len(levels) <= FEW and any(len(group) > 1 for group in completed.values()):
        at = {place: np.percentile(group, [25, 50, 75]) for place, group in completed.items() if len(group)}
        looks: dict[str, Any] = {"color": COLOURS[1], "linewidth": 1, "markersize": 6}
        axes.plot(list(at), [middle for _, middle, _ in at.values()], "D--" if numeric else "D", **looks)
        axes.vlines(list(at), [a for a, _, _ in at.values()], [b for _, _, b in at.values()], color=COLOURS[1])
    if log:
        _logarithmic(axes, "x")
    if len(levels) <= FEW:
        tilt = max(map(len, levels)) * len(levels) > 24
        marks = sorted(set(places)) if numeric else range(len(levels))
        axes.set_xticks(marks, levels, fontsize=8, rotation=30 * tilt, ha="right" if tilt else "center")  # type: ignore[arg-type]
        axes.minorticks_off()
    if not numeric:
        axes.set_xlim(-0.5, len(levels) - 0.5)


def _places(xs: Sequence[Any]) -> tuple[list[str], Any, bool]:
    """The levels in order, the place of each x on its axis, and whether the places are the numbers themselves."""
    numeric = all(is_number(x) for x in xs)
    levels = [text(x) for x in sorted(set(xs))] if numeric else sorted({text(x) for x in xs})
    return levels, np.array([float(x) if numeric else float(levels.index(text(x))) for x in xs]), numeric


def parallel(
    points: Points, values: Sequence[float], pruned: Sequence[bool], metric: str, mode: str, log: set[str]
) -> Figure:
    """A line for each run through its values; the better, the darker, the best one thick and dashed."""
    from matplotlib import colormaps

    keys, names = list(points[0]), short(points[0])
    drawn = figure(4.4)
    axes = drawn.subplots()
    columns = [_column(axes, i, [point[key] for point in points], key in log) for i, key in enumerate(keys)]
    columns.append(_column(axes, len(keys), list(values), _spans(values)))
    worse = np.array(values) * (1 if mode == "min" else -1) + np.where(pruned, np.inf, 0)
    order, n = np.argsort(-worse, kind="stable"), sum(pruned)  # pruned ones first, the best one last
    for position, run in enumerate(order):
        shade = max(0, position - n) / max(1, len(order) - n)
        looks: dict[str, Any] = {"color": colormaps["cividis_r"](0.05 + 0.95 * shade), "linewidth": 1.1}
        looks = {"color": "0.8", "linewidth": 0.7, "linestyle": ":"} if pruned[run] else looks
        if position == len(order) - 1:
            looks = {"color": COLOURS[1], "linewidth": 2.6, "linestyle": "--"}
        axes.plot(range(len(columns)), [column[run] for column in columns], **looks)
    axes.set_xticks(range(len(columns)), [*(names[key] for key in keys), metric], fontsize=9)
    axes.set(xlim=(-0.1, len(keys) + 0.5), ylim=(-0.06, 1.06), yticks=[], frame_on=False)
    axes.tick_params(axis="x", length=0)
    return drawn


def _column(axes: Axes, at: int, xs: list[Any], log: bool) -> Any:
    """Draw an axis with its values and say where, from 0 to 1, each run crosses it."""
    levels, places, numeric = _places(xs)
    scaled = np.log10(places) if log else places
    low, high = float(scaled.min()), float(scaled.max())
    heights = (scaled - low) / (high - low) if high > low else np.full(len(xs), 0.5)
    marks = dict(zip(map(text, xs), heights, strict=True))
    if numeric and len(levels) > FEW:
        marks = {f"{10**v if log else v:.2g}": (v - low) / (high - low) for v in np.linspace(low, high, 5)}
    axes.axvline(at, color="0.3", linewidth=1, zorder=0)
    box = {"color": "white", "alpha": 0.8, "pad": 0.8}
    for mark, height in _apart(marks, 0.045).items():
        axes.text(at + 0.03, height, mark, fontsize=8, va="center", bbox=box, zorder=5)
    return heights


def _apart(marks: Mapping[str, float], least: float) -> dict[str, float]:
    """The heights of labels, moved where two would cover each other."""
    placed: dict[str, float] = {}
    for mark, height in sorted(marks.items(), key=lambda item: item[1]):
        placed[mark] = max(float(height), max(placed.values(), default=-1.0) + least)
    over = max(0.0, max(placed.values(), default=0.0) - 1.03)
    return {mark: height - over for mark, height in placed.items()}


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


def cost(records: Sequence[Record], metric: str) -> Figure | None:
    """The metric against the seconds of training; None where no run has both."""
    known = [(r.status, r.number("seconds"), v) for r in records if (v := r.value(metric)) is not None]
    groups = {name: [(x, y) for status, x, y in known if status == name] for name in STATUS}
    if not any(groups.values()):
        return None
    drawn = figure(3.4)
    axes = drawn.subplots()
    for name, points in groups.items():
        marker, colour = STATUS[name]
        axes.plot(*_xy(points), marker, color=colour, label=f"{name} ({len(points)})" if points else None)
    axes.set(xlabel="seconds of training", ylabel=metric)
    axes.grid(color="0.92")
    axes.legend(fontsize=8)
    fit(axes, [y for points in groups.values() for _, y in points], "y")
    return drawn


def trade_off(settings: Sequence[Setting], front: Sequence[int], objectives: Mapping[str, str]) -> Figure:
    """The means of the first two objectives; those on the front are numbered as in the ranking."""
    (first, mode), (second, other) = list(objectives.items())[:2]
    points = [(s.estimate(first).mean, s.estimate(second).mean) for s in settings]
    drawn = figure(4.2)
    axes = drawn.subplots()
    axes.plot(
        *_xy([p for i, p in enumerate(points) if i not in front]), "o", color="0.6", label="another one is better"
    )
    axes.plot(*_xy(sorted(points[i] for i in front)), "D--", color=COLOURS[1], label="Pareto front")
    for i in front:
        axes.annotate(str(i + 1), points[i], textcoords="offset points", xytext=(6, 5), fontsize=9)
    axes.set(xlabel=f"{first} ({BETTER[f'x{mode}']})", ylabel=f"{second} ({BETTER[f'y{other}']})")
    axes.grid(color="0.92")
    axes.legend(fontsize=8)
    fit(axes, [x for x, _ in points], "x")
    fit(axes, [y for _, y in points], "y")
    return drawn


def fit(axes: Axes, values: Sequence[float], axis: str, wide: float = 30) -> None:
    """A logarithmic axis where the values span more than `wide`; else none for outliers, which the title counts."""
    if _spans(values, wide):
        _logarithmic(axes, axis)
    elif values:
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
            return f"{x:g}" if super().__call__(x, pos) else ""  # matplotlib chooses which ones have room

    axes.set(**{f"{axis}scale": "log"})
    for which in ("major", "minor"):
        getattr(getattr(axes, f"{axis}axis"), f"set_{which}_formatter")(Plain(minor_thresholds=(1.5, 0.6)))


def _spans(values: Sequence[float], wide: float = 30) -> bool:
    return min(values, default=0) > 0 and max(values) > wide * min(values)
