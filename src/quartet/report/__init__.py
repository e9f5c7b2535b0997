"""The report of a sweep, or of any runs: report.md, report.html, runs.csv and figures in one directory.

A report judges by validation metrics. It looks at the data again for two things only: out-of-fold metrics of complete
cross-validations, and where asked for, one test of the winner.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quartet.files import written
from quartet.run import outputs
from quartet.typed import command

if TYPE_CHECKING:
    from quartet.report.settings import Setting
    from quartet.report.study import Study

POOLED = 3  # settings, best first, whose out-of-fold metrics are computed: each costs a validation for every fold


@dataclass(frozen=True)
class Report:
    """What was written, and `summary`: some lines for a terminal."""

    directory: Path
    summary: str


def report_sweep(directory: Path, *, test_winner: bool = False) -> Report:
    """Whatever came of a sweep gets a report, also where nothing is completed."""
    from quartet.report.runs import collect_sweep
    from quartet.report.study import Study

    return _report(Study(collect_sweep(directory), directory), test_winner)


def report_runs(pattern: str, output: Path, *, test_winner: bool = False) -> Report:
    """Of the runs that a glob names. FileNotFoundError: there are none; ValueError: they monitor different metrics."""
    from quartet.report.runs import collect_runs
    from quartet.report.study import Study

    return _report(Study(collect_runs(pattern, output), output), test_winner)


def report(sweep: str, runs: str | None, output: str | None, test_winner: bool) -> Report:
    """What scripts/report.py does."""
    from quartet.report.runs import find_sweep

    if runs is None:
        if output is not None:
            raise ValueError(f"output={output} goes with runs=<glob>; the report of a sweep is written into the sweep")
        return report_sweep(find_sweep(sweep), test_winner=test_winner)
    stamp = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{secrets.token_hex(2)}"
    directory = Path(output).expanduser().absolute() if output else outputs("outputs") / "reports" / stamp
    return report_runs(runs, directory, test_winner=test_winner)


def _report(study: Study, test_winner: bool) -> Report:
    from quartet.report.held_out import read_test, test_once
    from quartet.report.study import summary

    _ = study.objectives  # runs that do not compare are refused before anything is written
    if test_winner:
        test_once(_winner(study), study.output)
    study.tested = read_test(study.output)
    study.out_of_fold = _out_of_fold(study)
    _write(study)
    return Report(study.output, summary(study))


def _winner(study: Study) -> Setting:
    if study.winner is not None:
        return study.winner
    if not study.ranked:
        raise ValueError(f"{study.collection.name} has no completed run to test; finish one first")
    raise ValueError(
        f"with the objectives {', '.join(study.objectives)} there is no one winner; choose from the Pareto front and "
        f"test it with: {command('evaluate', 'run=<directory>', 'split=test')}"
    )


def _out_of_fold(study: Study) -> dict[str, Any]:
    """Of the best settings that have all of their folds; a text where it cannot be computed."""
    from quartet.report.held_out import complete_folds, out_of_fold

    crossed = [(setting, found) for setting in study.ranked if (found := complete_folds(setting))]
    results: dict[str, Any] = {}
    for setting, by_seed in crossed[:POOLED]:
        try:
            results[setting.name] = {seed: (*out_of_fold(r), r) for seed, r in by_seed.items()}
        except Exception as error:  # a checkpoint that was deleted, data that have changed: no reason to have no report
            results[setting.name] = str(error)
    return results


def _write(study: Study) -> None:
    from quartet.report.pages import html, markdown
    from quartet.report.sections import blocks
    from quartet.report.table import write_table

    study.output.mkdir(parents=True, exist_ok=True)
    title, page = f"Report: {study.collection.name}", blocks(study)
    _put(study.output / "report.md", markdown(title, page))
    _put(study.output / "report.html", html(title, page))
    write_table(study, study.output / "runs.csv")


def _put(path: Path, text: str) -> None:
    """At once, so that a page that is open is never half of one."""
    with written(path) as file:
        file.write(text.encode("utf-8", "replace"))
