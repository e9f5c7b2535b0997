"""Everything that a report is about, computed once: settings ranked best first, what differs, how the best compare."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from quartet.report.runs import Collection, Record
from quartet.report.settings import Setting, group, is_log, parameters, value_of
from quartet.report.statistics import Comparison, compare, estimate, front
from quartet.report.words import counted, digits, interval, probability, uncertain
from quartet.run import Run
from quartet.typed import EVERYWHERE, command, repeated

FRONT = 5  # settings of a Pareto front that a terminal shows
REPEATED = re.compile(r"[+]*(seed|data\.fold)=")
OTHER_DATA = re.compile(r"data\.(_target_|source|path|folds|split|split_seed|target|label|name|group)(\.|$)")


@dataclass
class Study:
    """`output` is the directory of the report."""

    collection: Collection
    output: Path
    out_of_fold: dict[str, Any] = field(
        default_factory=dict
    )  # setting's name -> seed -> (metrics, samples), or why not
    tested: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def settings(self) -> list[Setting]:
        return group(self.collection)

    @cached_property
    def ranked(self) -> list[Setting]:
        return [setting for setting in self.settings if setting.scored]

    @cached_property
    def keys(self) -> list[str]:
        return parameters(self.collection)

    @property
    def objectives(self) -> dict[str, str]:
        return self.collection.objectives

    @property
    def metric(self) -> str:
        return next(iter(self.objectives))

    @property
    def mode(self) -> str:
        return self.objectives[self.metric]

    @cached_property
    def front(self) -> list[int]:
        points = [[setting.estimate(metric).mean for metric in self.objectives] for setting in self.ranked]
        return front(points, list(self.objectives.values()))

    @property
    def winner(self) -> Setting | None:
        """None where nothing is completed, or where several objectives leave the choice to a person."""
        return self.ranked[0] if self.ranked and len(self.objectives) == 1 else None

    @cached_property
    def comparison(self) -> Comparison | None:
        """Of the best two settings; None where there are no two, or where they are measured on different data."""
        if len(self.ranked) < 2 or len(self.objectives) > 1 or self.other_data:
            return None
        first, second = self.ranked[:2]
        return compare(first.scores(self.metric), second.scores(self.metric), first.best.config.get("data.folds"))

    @cached_property
    def other_data(self) -> list[str]:
        """Keys by which the ranked settings were validated on different data."""
        configs = [setting.best.config for setting in self.ranked]
        keys = dict.fromkeys(key for config in configs for key in config if OTHER_DATA.match(key))
        return [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]

    def of(self, *statuses: str) -> list[Record]:
        return [record for record in self.collection.records if record.status in statuses]

    @cached_property
    def log(self) -> set[str]:
        return {
            k for k in self.keys if is_log(k, [value_of(r, k) for r in self.collection.records], self.collection.plan)
        }


def again(setting: Setting) -> tuple[str | None, str | None]:
    """The command of a setting's best run; and where there are several runs, that of all of them together."""
    runs = list(setting.scored.values())
    overrides = setting.best.overrides
    if overrides is None or len(runs) < 2:
        return setting.best.command, None
    words = [word for word in overrides if not REPEATED.match(word)]
    seeds, folds = (list(dict.fromkeys(values)) for values in zip(*setting.scored, strict=True))
    whole = len(seeds) * len(folds) == len(runs)
    words += [f"seed={','.join(map(str, seeds))}"] if any(word.startswith("seed=") for word in overrides) else []
    words += [f"data.fold={','.join(map(str, folds))}"] if len(folds) > 1 else []
    return setting.best.command, repeated(words, sweep=True) if whole else None


def overfitted(study: Study) -> str | None:
    """Where the best validation of the winner's best run was far better than its last: luck, or overfitting."""
    assert study.winner
    curve, best = study.winner.best.curve(study.metric), study.winner.best.value(study.metric)
    last = curve[-1][1] if curve else best
    if best is None or last is None or abs(last - best) <= 0.25 * abs(best):
        return None
    return (
        f"Run {study.winner.best.name} had {study.metric} {digits(best)} at its best validation and {digits(last)} at its "
        "last: look at its learning curve before you trust the first of them."
    )


def headline(study: Study) -> str:
    if not study.ranked:
        return f"Nothing is completed with a finite {study.metric}: {counted(study.collection.records)}."
    if study.winner is None:
        names = ", ".join(study.objectives)
        return f"On the Pareto front of {names}: {len(study.front)} of {len(study.ranked)} settings."
    e = study.winner.estimate(study.metric)
    spread = f"mean ± std, n = {e.n}, 95 % interval {interval(e)}" if e.n > 1 else "n = 1"
    return f"{study.winner.name}: {study.metric} {uncertain(e)} ({spread})"


def summary(study: Study) -> str:
    """Some lines for a terminal."""
    lines = [f"{'best: ' if study.winner else ''}{headline(study)}"]
    found = study.comparison
    if found and found.t_test is not None:
        pairs = f"{digits(found.difference.mean)} in {found.difference.n} pairs, p {probability(found.t_test)}"
        lines.append(f"second: {study.ranked[1].name}, difference {pairs}")
    for setting in [] if study.winner else [study.ranked[i] for i in study.front[:FRONT]]:
        values = ", ".join(f"{metric} {uncertain(setting.estimate(metric))}" for metric in study.objectives)
        lines.append(f"  {setting.name}: {values}")
    lines.append(f"runs: {counted(study.collection.records)}")
    if study.winner:
        whole = [line for line in reversed(again(study.winner)) if line]
        lines += [f"again: {line.replace(EVERYWHERE, command('train'), 1)}" for line in whole[:1]]
    metric = study.metric.replace("val/", "test/", 1)
    tested = [run[metric] for run in study.tested.get("runs", {}).values() if metric in run]
    if tested:
        lines.append(f"test: {metric} {uncertain(estimate(tested))} (n = {len(tested)})")
    return "\n".join([*lines, f"report: {Run(study.output / 'report.html')}"])
