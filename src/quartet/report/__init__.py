"""The report of a sweep, or of any runs: report.md, report.html, runs.csv and figures in one directory.

A report judges by validation metrics. It looks at the data again for two things only: out-of-fold metrics of complete
cross-validations and, if asked, one test of the winner.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from quartet.pages import digits
from quartet.report.analysis import Analysis
from quartet.report.held_out import out_of_fold, read_test, test_once
from quartet.report.page import probability, write_report
from quartet.report.runs import frame, matching_runs, read_json, sweep_runs
from quartet.report.statistics import estimate
from quartet.run import Run, find_sweep, outputs
from quartet.typed import EVERYWHERE, command

POOLED = 3  # settings, best first, whose out-of-fold metrics are computed: each costs a validation of every fold
FRONT = 5  # settings of a Pareto front that a terminal shows


@dataclass(frozen=True)
class Report:
    """The directory that was written to, and `summary`: some lines for a terminal."""

    directory: Path
    summary: str


def report_sweep(directory: Path, *, test_winner: bool = False) -> Report:
    """A sweep gets a report also if nothing is completed."""
    runs, plan = frame(sweep_runs(directory)), read_json(directory / "sweep.json")
    return _report(Analysis(f"sweep {directory.name}", directory, runs, plan), test_winner)


def report_runs(pattern: str, output: Path, *, test_winner: bool = False) -> Report:
    """Of the runs that match a glob. FileNotFoundError if none does, ValueError if they monitor different metrics."""
    return _report(Analysis(f"runs {pattern}", output, frame(matching_runs(pattern))), test_winner)


def report(sweep: str, runs: str | None, output: str | None, test_winner: bool) -> Report:
    """The command scripts/report.py."""
    if runs is None:
        if output is not None:
            raise ValueError(f"output={output} goes with runs=<glob>; the report of a sweep is written into the sweep")
        return report_sweep(find_sweep(sweep), test_winner=test_winner)
    stamp = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{secrets.token_hex(2)}"
    directory = Path(output).expanduser().absolute() if output else outputs("outputs") / "reports" / stamp
    return report_runs(runs, directory, test_winner=test_winner)


def _report(analysis: Analysis, test_winner: bool) -> Report:
    # 1. the one test of the winner
    if test_winner and analysis.winner is None:
        if not analysis.ranked:
            raise ValueError(f"{analysis.name} has no completed run to test; finish one first")
        raise ValueError(
            f"with the objectives {', '.join(analysis.objectives)} there is no single winner; choose from the Pareto front "
            f"and test it with: {command('evaluate', 'run=<directory>', 'split=test')}"
        )
    if test_winner and analysis.winner is not None:
        test_once(analysis.winner, analysis.output)
    analysis.tested = read_test(analysis.output)
    # 2. out-of-fold metrics of the best settings that have all of their folds
    crossed = [(setting, folds) for setting in analysis.ranked if (folds := setting.complete_folds())]
    for setting, by_seed in crossed[:POOLED]:
        try:
            found = {seed: (*out_of_fold(runs), runs) for seed, runs in by_seed.items()}
            analysis.out_of_fold[setting.name] = found
        except Exception as error:  # a checkpoint was deleted, data have changed: no reason to have no report
            analysis.out_of_fold[setting.name] = str(error)
    write_report(analysis)
    return Report(analysis.output, _summary(analysis))


def _summary(analysis: Analysis) -> str:
    metric, winner = analysis.metric, analysis.winner
    lines = [f"{'best: ' if winner else ''}{analysis.headline}"]
    if (tests := analysis.comparison) and tests.t_test is not None:
        difference = f"{digits(tests.difference.mean)} in {tests.difference.n} pairs"
        lines.append(f"second: {analysis.ranked[1].name}, difference {difference}, p {probability(tests.t_test)}")
    for setting in [] if winner else [analysis.ranked[i] for i in analysis.front[:FRONT]]:
        values = ", ".join(f"{goal} {setting.estimate(goal)}" for goal in analysis.objectives)
        lines.append(f"  {setting.name}: {values}")
    lines.append(f"runs: {analysis.counts}")
    one, everything = winner.commands() if winner else (None, None)
    if again := everything or one:
        lines.append(f"again: {again.replace(EVERYWHERE, command('train'), 1)}")
    name = metric.replace("val/", "test/", 1)
    tested = [run[name] for run in analysis.tested.get("runs", {}).values() if name in run]
    if tested:
        lines.append(f"test: {name} {estimate(tested)} (n = {len(tested)})")
    return "\n".join([*lines, f"report: {Run(analysis.output / 'report.html')}"])
