"""The files of a report: report.html and report.md from one template of sections, runs.csv, figures.

Every text is treated as foreign: it is escaped for the page it goes to. The HTML page refers to nothing outside itself
but the run directories, by relative links.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from quartet.files import RESULT_COUNTS, written
from quartet.pages import digits, embedded, table, write_pages
from quartet.report import figures
from quartet.report.analysis import Analysis, column, configured, short, text
from quartet.report.runs import STATUSES, Frame, mapping, numbers
from quartet.report.statistics import estimate
from quartet.say import elapsed
from quartet.typed import repeated

ROWS = 20  # of the long tables; runs.csv has all of them
FORMULA = re.compile(r"[=+@\t\r]|-(?![\d.])")
WHY = {
    "unfinished": "still running, or killed",
    "missing": "no run directory: it failed before it began, or was lost",
    "completed": "no finite value of the objective",
}


def write_report(analysis: Analysis) -> None:
    """All files; each replaces its predecessor atomically."""
    analysis.output.mkdir(parents=True, exist_ok=True)
    # the command that started the sweep, and hardware and versions of the first run that says so
    words = analysis.plan.get("command")
    content = {
        "analysis": analysis,
        "figures": draw(analysis),
        "tables": setting_tables(analysis) | run_tables(analysis),
        "command": repeated(map(str, words), sweep=True) if words and isinstance(words, list) else None,
        "made_with": next(filter(None, analysis.runs["environment"]), {}),
    }
    write_pages(analysis.output / "report", "quartet.report", title=f"Report: {analysis.name}", **content)
    with written(analysis.output / "runs.csv") as file:
        text = runs_table(analysis).to_csv(index=False, lineterminator="\r\n")
        file.write(text.encode("utf-8", "replace"))


def setting_tables(analysis: Analysis) -> dict[str, Any]:
    """The tables of `sections.j2` about settings, by name."""
    ranked, goals, keys = analysis.ranked, [*analysis.objectives], analysis.keys
    space = [[key, str(words)] for key, words in mapping(analysis.plan, "space").items()]
    found: dict[str, Any] = {"space": table(["parameter", "values"], space)}
    # 1. the ranking; "2 of 3" runs of a setting have a value
    rows: list[list[Any]] = []
    for place, setting in enumerate(ranked, 1):
        estimates = [setting.estimate(goal) for goal in goals]
        n, n_started = len(setting.scored), len(setting.runs) - setting.repeated
        row = [str(place), *map(str, estimates), *(text(setting.values[key]) for key in keys)]
        row += [*(e.interval for e in estimates), str(n) if n == n_started else f"{n} of {n_started}"]
        rows.append([*row, links(analysis, setting.scored.values())])
    means, intervals = [f"{goal} mean ± std" for goal in goals], ["95 % interval"] * len(goals)
    found["ranking"] = table(["", *means, *short(keys).values(), *intervals, "n", "runs"], rows, ROWS)
    front = [[str(i + 1), ranked[i].name, ranked[i].commands()[0] or "–"] for i in analysis.front]
    found["front"] = table(["", "setting", "command"], front)
    # 2. the best two
    if tests := analysis.comparison:
        header = [f"{analysis.metric}, mean difference", "95 % interval", "p, paired t-test", "p, Wilcoxon", "pairs"]
        p_values = probability(tests.t_test), probability(tests.wilcoxon)
        difference = tests.difference
        row = [digits(difference.mean), difference.interval, *p_values, str(difference.n)]
        found["comparison"] = table(header, [row])
    # 3. out of fold beside the mean over folds, and the test
    found["out_of_fold"] = []
    for name, by_seed in analysis.out_of_fold.items():
        for seed, (metrics, n, runs) in by_seed.items() if isinstance(by_seed, dict) else ():
            scores = {metric: value for metric, value in metrics.items() if metric.startswith("val/")}
            over = {metric: estimate([*numbers(pd.DataFrame(runs), metric).dropna()]) for metric in scores}
            rows = [[metric, digits(value), str(over[metric])] for metric, value in scores.items()]
            caption = f"{name}, seed {seed}: {n:,} samples in {len(runs)} folds"
            found["out_of_fold"].append((caption, table(["metric", "out of fold", "mean ± std over folds"], rows)))
    tested = [*analysis.tested.get("runs", {}).values()]
    over = {name: estimate([run[name] for run in tested if name in run]) for name in (tested[0] if tested else ())}
    rows = [[name, str(e), e.interval, str(e.n)] for name, e in over.items() if name.startswith("test/")]
    found["test"] = table(["metric", "mean ± std", "95 % interval", "n"], rows)
    return found


def run_tables(analysis: Analysis) -> dict[str, Any]:
    """The tables of `sections.j2` about single runs, by name."""
    runs, names = analysis.runs, [*short(analysis.keys).values()]
    values = pd.DataFrame({key: map(text, column(runs, key)) for key in analysis.keys}, runs.index, dtype=object)
    values.loc[~runs.index.isin(configured(runs).index)] = "–"

    def rows(chosen: Frame, *columns: Iterable[str]) -> list[list[Any]]:
        # each run with its parameters, then further columns
        parameters = values.loc[chosen.index].values.tolist()
        starts = zip(links(analysis, chosen.to_dict("records")), parameters, strict=True)
        return [[[link], *cells, *more] for (link, cells), more in zip(starts, zip(*columns, strict=True), strict=True)]

    # 1. pruned runs, best first
    pruned = analysis.of("pruned")
    best = numbers(pruned, analysis.metric).sort_values(ascending=analysis.mode == "min")
    pruned = pruned.loc[best.index]
    steps, times = (f"{n:,.0f}" for n in numbers(pruned, "steps")), map(elapsed, numbers(pruned, "seconds"))
    header = ["run", *names, f"best {analysis.metric}", "steps", "time"]
    found = {"pruned": table(header, rows(pruned, map(digits, best), steps, times), ROWS)}
    # 2. runs without a result, and why
    finite = pd.concat([numbers(runs, goal).notna() for goal in analysis.objectives], axis=1).all(axis=1)
    scored = finite & (runs["status"] == "completed") & runs.index.isin(configured(runs).index)
    lost = runs[~scored & (runs["status"] != "pruned")]
    why = [reason or WHY.get(status, "") for status, reason in zip(lost["status"], lost["reason"], strict=True)]
    found["lost"] = table(["run", *names, "status", "why"], rows(lost, lost["status"], why), ROWS)
    # 3. time and memory of each status, and of all
    groups = [(status, analysis.of(status).dropna(subset="seconds")) for status in STATUSES]
    groups = [(status, group) for status, group in groups if len(group)]
    if len(groups) > 1:
        groups.append(("all", pd.concat([group for _, group in groups])))
    costs = []
    for status, group in groups:
        seconds, steps = numbers(group, "seconds").fillna(0), numbers(group, "steps").sum()
        memory = numbers(group, "peak_memory_bytes").max()
        times = [elapsed(value) for value in (seconds.sum(), seconds.mean(), seconds.max())]
        peak = f"{memory / 2**30:.2f} GiB" if memory > 0 else "–"
        costs.append([status, str(len(group)), *times, f"{steps:,.0f}", peak])
    header = ["status", "runs", "training in all", "mean of a run", "longest", "steps in all", "peak memory"]
    return {**found, "cost": table(header, costs)}


def links(analysis: Analysis, runs: Iterable[dict[str, Any]]) -> list[tuple[str, str | None]]:
    """Names of runs with their directories relative to the page, None for those that do not exist."""
    paths = {run["run"]: Path(os.path.relpath(run["directory"], analysis.output)) for run in runs}
    return [(run, f"{path.as_posix()}/" if (analysis.output / path).is_dir() else None) for run, path in paths.items()]


def draw(analysis: Analysis) -> dict[str, dict[str, str]]:
    """Save the figures that have something to show, by name."""
    found = {}
    for name in ("ranking", "pareto", "importance", "effects", "parallel", "curves", "time"):
        figure = getattr(figures, name)(analysis)
        if figure is not None:
            found[name] = embedded(figure, analysis.output / "figures" / f"{name}.png")
    return found


def runs_table(analysis: Analysis) -> Frame:
    """runs.csv: one row a run, for a spreadsheet or pandas; a cell is empty if a run has no such value."""
    runs = analysis.runs
    validation = [name for name in runs if name.startswith("val") and name not in analysis.objectives]
    start = runs.reindex(columns=["run", "directory", "status", *analysis.objectives])
    keys = pd.DataFrame({key: column(runs, key) for key in analysis.keys}, runs.index, dtype=object)
    keys.loc[~runs.index.isin(configured(runs).index)] = None
    facts = [
        "seed",
        "fold",
        *RESULT_COUNTS,
        "throughput_per_second",
        "throughput_unit",
        *validation,
        "reason",
        "command",
    ]
    csv = pd.concat([start, keys, runs[facts]], axis=1)
    # text that a spreadsheet would take for a formula is marked as text
    for i in range(csv.shape[1]):
        marked = [f"'{x}" if isinstance(x, str) and FORMULA.match(x) else x for x in csv.iloc[:, i]]
        csv.isetitem(i, pd.Series(marked, csv.index, dtype=object))
    return csv


def probability(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
