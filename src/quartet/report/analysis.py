"""What a table of runs says: what differs, which runs repeat one setting, the ranking, and what can be concluded."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from quartet.objective import Objective
from quartet.report.runs import STATUSES, Frame, curve, finite, mapping, numbers, objectives
from quartet.report.statistics import Comparison, Estimate, compare, estimate, importance, is_number, pareto_front
from quartet.typed import repeated

# keys in which repetitions of one setting may differ, as in `quartet.run.signature`
REPETITION = re.compile(r"(run|sweep|callbacks\.pruning)(\.|$)|(seed|test|resume|data\.(fold|seed|path))$")
# what shows or debugs a run and does not change it
DISPLAY = re.compile(
    r"logger(\.|$)|summary$|trainer\.(profiler|fast_dev_run|detect_anomaly|enable_\w+|log_every_n_steps|max_restarts)"
    r"|callbacks\.(progress|throughput|flops|gradient_norm|learning_rate|overlay|figures|data_report|samples)(\.|$)"
)
OTHER_DATA = re.compile(r"data\.(_target_|source|path|folds|split|split_seed|target|label|name|group)(\.|$)")
DEFAULT = "default"  # of a config group whose choice a run left as it was


@dataclass(frozen=True)
class Setting:
    """Runs that differ in seed and fold only, and the values of `parameters` that they share."""

    values: dict[str, Any]
    runs: list[dict[str, Any]]
    # (seed, fold) -> its first completed run with a finite value of each objective
    scored: dict[tuple[Any, Any], dict[str, Any]]
    objectives: dict[str, str]

    @property
    def name(self) -> str:
        shown = {k: v for k, v in self.values.items() if v != DEFAULT or k.endswith(("_target_", ".name"))}
        words = " ".join(f"{key}={text(value)}" for key, value in shown.items())
        return words or ("the defaults" if self.values else "the one setting")

    @property
    def repeated(self) -> int:
        """Completed runs that are not counted: exact repetitions, or without a finite value."""
        return sum(run["status"] == "completed" for run in self.runs) - len(self.scored)

    def scores(self, metric: str) -> dict[tuple[Any, Any], float]:
        return {pair: float(run[metric]) for pair, run in self.scored.items()}

    def estimate(self, metric: str) -> Estimate:
        return estimate([*self.scores(metric).values()])

    @property
    def best(self) -> dict[str, Any]:
        """The run that is best in the first objective."""
        objective = Objective(*next(iter(self.objectives.items())))
        best = objective.best(self.scored.values(), lambda run: run[objective.metric])
        assert best is not None, "a setting is ranked if it has a score"
        return best

    def commands(self) -> tuple[str | None, str | None]:
        """The command of the best run; if there are several runs, also the one that repeats all of them."""
        overrides, n = self.best["overrides"], len(self.scored)
        if overrides is None or n < 2:
            return self.best["command"], None
        words = [word for word in overrides if not re.match(r"[+]*(seed|data\.fold)=", word)]
        seeds, folds = (list(dict.fromkeys(values)) for values in zip(*self.scored, strict=True))
        if any(word.startswith("seed=") for word in overrides):
            words.append(f"seed={','.join(map(str, seeds))}")
        if len(folds) > 1:
            words.append(f"data.fold={','.join(map(str, folds))}")
        return self.best["command"], repeated(words, sweep=True) if len(seeds) * len(folds) == n else None

    def complete_folds(self) -> dict[Any, list[dict[str, Any]]]:
        """Seed -> its runs in the order of folds, for seeds whose folds are all completed."""
        found: dict[Any, list[dict[str, Any]]] = {}
        crossed = [(seed, fold) for seed, fold in self.scored if isinstance(fold, int)]
        for seed, fold in sorted(crossed, key=lambda pair: pair[1]):
            found.setdefault(seed, []).append(self.scored[seed, fold])
        return {seed: runs for seed, runs in found.items() if len(runs) == runs[0].get("config.data.folds")}


def settings(runs: Frame, plan: dict[str, Any]) -> list[Setting]:
    """All settings, the best mean of the first objective first, those without a score last."""
    metrics, keys, known = objectives(runs, plan), parameters(runs, plan), configured(runs)
    # 1. runs are of one setting if their configs are the same but for the keys of repetitions; a data.path that the sweep
    #    varies is not one of them
    identity = [*_differing(known), *(key for key in keys if key == "data.path" and f"config.{key}" in known)]
    same = known[[f"config.{key}" for key in identity]].map(_identity)
    groups: dict[tuple[str, ...], list[int]] = {}
    for row, mark in enumerate(map(tuple, same.to_numpy())):
        groups.setdefault(mark, []).append(row)
    # 2. their values and their scores
    records, values = known.to_dict("records"), {key: column(known, key) for key in keys}
    found = []
    for rows in groups.values():
        # a run may name a choice, or leave it as it is
        said = {key: [values[key][row] for row in rows if values[key][row] != DEFAULT] for key in keys}
        scored: dict[tuple[Any, Any], dict[str, Any]] = {}
        for run in (records[row] for row in rows):
            if run["status"] == "completed" and all(math.isfinite(finite(run.get(metric))) for metric in metrics):
                scored.setdefault((run["seed"], run["fold"]), run)
        shared = {key: said[key][0] if said[key] else DEFAULT for key in keys}
        found.append(Setting(shared, [records[row] for row in rows], scored, metrics))
    first = Objective(*next(iter(metrics.items())))
    return sorted(found, key=lambda s: first.sign * s.estimate(first.metric).mean if s.scored else math.inf)


def parameters(runs: Frame, plan: dict[str, Any]) -> list[str]:
    """The keys that tell settings apart: those of the sweep, else what differs, without what follows from a choice."""
    known = configured(runs)
    shown = [key for key in varied_words(plan) if key == "data.path" or not REPETITION.match(key)]
    differing, choices = [key for key in _differing(known) if key not in shown], shown.copy()
    if not shown:
        # without a plan the commands say what was meant: first the config groups that were chosen differently and have
        # consequences that nobody typed, then keys that were typed, then classes
        words = [_words(overrides) for overrides in known["overrides"]]
        typed = sorted({key for typed_by_run in words for key in typed_by_run if not DISPLAY.match(key)})
        consequences = [key for key in differing if key not in typed]
        for key in typed:
            below = [name for name in known if name.startswith(f"config.{key}.")]
            follows = not below or any(name.startswith(f"{key}.") for name in consequences)
            is_leaf, differs = f"config.{key}" in known, len({word.get(key) for word in words}) > 1
            if differs and follows and not is_leaf and not key.startswith("hydra") and not REPETITION.match(key):
                choices.append(key)
        targets = [key for key in consequences if key.endswith("._target_") and not choices]
        shown = [*choices, *(key for key in differing if key in typed), *targets]
        choices = choices or targets
    # of the rest: what does not follow from the choices, and one of those that always move together
    chosen = pd.Series([repr(row) for row in zip(*(column(known, key) for key in choices), strict=True)], dtype=object)
    patterns = set()
    for key in [key for key in differing if key not in shown]:
        codes = pd.factorize(known[f"config.{key}"].map(_identity))[0]
        if choices and max(pd.Series(codes).groupby(chosen).nunique()) == 1:
            continue
        if tuple(codes) not in patterns:
            patterns.add(tuple(codes))
            shown.append(key)
    return shown


def column(runs: Frame, key: str) -> list[Any]:
    """The value of a parameter in each run: from the config, or if it is a config group, from the command."""
    found: list[Any] = [math.nan] * len(runs)
    if f"config.{key}" in runs:
        found = [*runs[f"config.{key}"]]
    for row, overrides in enumerate(runs["overrides"]):
        if found[row] != found[row]:  # NaN: the config has no such key
            found[row] = _words(overrides).get(key, DEFAULT)
        elif key.endswith("_target_") and found[row]:
            found[row] = str(found[row]).rpartition(".")[2]
    return found


def is_log(key: str, values: Iterable[Any], plan: dict[str, Any]) -> bool:
    """Numbers that were drawn on a logarithmic scale; if values were listed, those that span a decade."""
    found = {value for value in values if is_number(value)}
    if not found or min(found) <= 0:
        return False
    words = varied_words(plan).get(key, "")
    if re.match(r"tag\([^()]*\blog\b", words):
        return True
    return not re.search(r"\b(interval|range)\(", words) and len(found) > 2 and max(found) >= 10 * min(found)


def text(value: Any) -> str:
    """A value as a person writes it; four digits of a number are enough to read."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def short(keys: Iterable[str]) -> dict[str, str]:
    """optimizer.lr -> lr, unless another key ends so."""
    keys = list(keys)
    ends = [key.rpartition(".")[2] for key in keys]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}


def varied_words(plan: dict[str, Any]) -> dict[str, str]:
    """What a sweep varies, in Hydra's words, by key."""
    return {key.lstrip("+~"): str(value) for key, value in mapping(plan, "space").items()}


def configured(runs: Frame) -> Frame:
    """The runs whose config could be read."""
    configs = runs[[name for name in runs if name.startswith("config.")]]
    return runs[configs.notna().any(axis=1)]


def _differing(known: Frame) -> list[str]:
    """Leaf keys in which the configs differ, in their order there, without those of repetitions and of display."""
    keys = [name.removeprefix("config.") for name in known if name.startswith("config.")]
    keys = [key for key in keys if not (REPETITION.match(key) or DISPLAY.match(key))]
    return [key for key in keys if known[f"config.{key}"].map(_identity).nunique() > 1]


def _identity(value: Any) -> str:
    """1 is not 1.0 or True; a missing key is the same as null."""
    return repr(None if value is None or value != value else value)


def _words(overrides: list[str] | None) -> dict[str, str]:
    """Typed overrides as key -> value; of a key given twice the last one."""
    pairs = (word.lstrip("+").partition("=") for word in overrides or [] if "=" in word)
    return {key: value for key, _, value in pairs}


@dataclass
class Analysis:
    """Everything a report says, computed once; `output` is the directory of the report, `plan` that of sweep.json."""

    name: str
    output: Path
    runs: Frame
    plan: dict[str, Any] = field(default_factory=dict)
    # setting's name -> seed -> (metrics, samples, runs), or why it could not be computed
    out_of_fold: dict[str, Any] = field(default_factory=dict)
    tested: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError for runs that do not compare."""
        runs, plan = self.runs, self.plan
        # 1. settings, best first; with several objectives the choice is a person's
        self.objectives = objectives(runs, plan)
        self.metric, self.mode = next(iter(self.objectives.items()))
        self.settings, self.keys = settings(runs, plan), parameters(runs, plan)
        self.ranked = [setting for setting in self.settings if setting.scored]
        means = [[setting.estimate(metric).mean for metric in self.objectives] for setting in self.ranked]
        self.front = pareto_front(means, [*self.objectives.values()])
        self.winner = self.ranked[0] if self.ranked and len(self.objectives) == 1 else None
        # 2. the best two in pairs, unless they were validated on different data
        best = runs.loc[[setting.best["run"] for setting in self.ranked]]
        self.other_data = [key for key in _differing(best) if OTHER_DATA.match(key)]
        self.comparison: Comparison | None = None
        if self.winner and len(self.ranked) > 1 and not self.other_data:
            first, second = (setting.scores(self.metric) for setting in self.ranked[:2])
            self.comparison = compare(first, second, self.winner.best.get("config.data.folds"))
        # 3. parameters beside the metric, of each scored run and then of each pruned one
        points = [(setting, run) for setting in self.ranked for run in setting.scored.values()]
        points += [(setting, run) for setting in self.settings for run in setting.runs if run["status"] == "pruned"]
        facts = ("seed", "fold", "status", self.metric)
        known = [(s, run) for s, run in points if math.isfinite(finite(run.get(self.metric)))]
        rows = [{**setting.values, **{key: run[key] for key in facts}} for setting, run in known]
        self.points: Frame = pd.DataFrame(rows, columns=[*dict.fromkeys([*self.keys, *facts])], dtype=object)
        self.varied = [key for key in self.keys if self.ranked and self.points[key].map(repr).nunique() > 1]
        self.log = {key for key in self.keys if is_log(key, column(runs, key), plan)}
        # 4. which of them decide; beside them seed and fold, whose shares are chance
        completed = self.points[self.points["status"] == "completed"]
        chosen = pd.concat([completed[self.varied], completed[["seed", "fold"]].map(str)], axis=1)
        self.importance: dict[str, float] | str  # or why there is none
        try:
            self.importance = importance(chosen.to_dict("records"), [*numbers(completed, self.metric)], self.log)
        except (ValueError, RuntimeError) as error:
            self.importance = str(error)

    def of(self, *statuses: str) -> Frame:
        return self.runs[self.runs["status"].isin(statuses)]

    @property
    def counts(self) -> str:
        found = self.runs["status"].value_counts().to_dict()
        order = [*STATUSES, *sorted(found.keys() - set(STATUSES))]
        return ", ".join(f"{found[status]} {status}" for status in order if status in found) or "no runs"

    @property
    def headline(self) -> str:
        if not self.ranked:
            return f"Nothing is completed with a finite {self.metric}: {self.counts}."
        if self.winner is None:
            front = f"{len(self.front)} of {len(self.ranked)} settings"
            return f"On the Pareto front of {', '.join(self.objectives)}: {front}."
        e = self.winner.estimate(self.metric)
        spread = f"mean ± std, n = {e.n}, 95 % interval {e.interval}" if e.n > 1 else "n = 1"
        return f"{self.winner.name}: {self.metric} {e} ({spread})"

    @property
    def drift(self) -> float | None:
        """The last value of the winner's best run if it is far from the best one: luck, or overfitting."""
        if self.winner is None:
            return None
        best, values = float(self.winner.best[self.metric]), curve(self.winner.best, self.metric)
        return values.iloc[-1] if len(values) and abs(values.iloc[-1] - best) > 0.25 * abs(best) else None
