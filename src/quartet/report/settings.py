"""What differs between runs, and which of them are repetitions of one setting."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from quartet.report.runs import Collection, Record, part
from quartet.report.statistics import Estimate, estimate

# keys in which repetitions of one setting may differ, as `quartet.run.signature` has them
REPETITION = re.compile(r"(run|sweep|callbacks\.pruning)(\.|$)|(seed|test|resume|data\.(fold|seed|path))$")
DEFAULT = "default"  # of a choice that a run left as it was
# what shows or debugs a run and does not change it
SHOWS = re.compile(
    r"logger(\.|$)|trainer\.(profiler|fast_dev_run|detect_anomaly|enable_\w+|log_every_n_steps|max_restarts)"
    r"|callbacks\.(progress|throughput|gradient_norm|learning_rate|overlay|figures|data_report|samples)(\.|$)"
)


@dataclass(frozen=True)
class Setting:
    """Runs that differ in seed and fold only; `metrics` are the objectives with their directions."""

    values: dict[str, Any]
    records: list[Record]
    objectives: dict[str, str]

    @cached_property
    def scored(self) -> dict[tuple[Any, Any], Record]:
        """(seed, fold) -> the completed run with a finite value of each objective; the first of exact repetitions."""
        found: dict[tuple[Any, Any], Record] = {}
        for record in self.records:
            if record.status == "completed" and all(record.value(metric) is not None for metric in self.objectives):
                found.setdefault((record.seed, record.fold), record)
        return found

    def scores(self, metric: str) -> dict[tuple[Any, Any], float]:
        values = {pair: record.value(metric) for pair, record in self.scored.items()}
        return {pair: value for pair, value in values.items() if value is not None}

    def estimate(self, metric: str) -> Estimate:
        return estimate(list(self.scores(metric).values()))

    @cached_property
    def best(self) -> Record:
        """The run that is best in the first objective."""
        metric, mode = next(iter(self.objectives.items()))
        scores = self.scores(metric)
        return self.scored[(min if mode == "min" else max)(scores, key=lambda pair: scores[pair])]

    @property
    def name(self) -> str:
        said = {
            key: value for key, value in self.values.items() if value != DEFAULT or key.endswith(("_target_", ".name"))
        }
        return " ".join(f"{key}={text(value)}" for key, value in said.items()) or (
            "the defaults" if self.values else "the one setting"
        )

    @property
    def repeated(self) -> int:
        """Completed runs beyond one for each seed and fold."""
        return sum(record.status == "completed" for record in self.records) - len(self.scored)


def text(value: Any) -> str:
    """A value as a person writes it; four digits of a number are enough to read."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def short(keys: Iterable[str]) -> dict[str, str]:
    """optimizer.lr -> lr, where no other key ends so."""
    keys = list(keys)
    ends = [key.rpartition(".")[2] for key in keys]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}


def is_log(key: str, values: Iterable[Any], plan: dict[str, Any]) -> bool:
    """Numbers that were drawn on a logarithmic scale; where values were listed, those that span a decade."""
    numbers = {value for value in values if is_number(value)}
    if not numbers or min(numbers) <= 0:
        return False
    words = _space(plan).get(key, "")
    if re.match(r"tag\([^()]*\blog\b", words):
        return True
    return not re.search(r"\b(interval|range)\(", words) and len(numbers) > 2 and max(numbers) >= 10 * min(numbers)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def group(collection: Collection) -> list[Setting]:
    """All settings, best mean of the first objective first, those without a score last."""
    keys = parameters(collection)
    identity = [*_differing(collection.records), *(key for key in keys if key == "data.path")]
    groups: dict[str, list[Record]] = {}
    for record in collection.records:
        if record.config:
            groups.setdefault(repr([record.config.get(key) for key in identity]), []).append(record)
    settings = [
        Setting({key: _common(records, key) for key in keys}, records, collection.objectives)
        for records in groups.values()
    ]
    metric, mode = next(iter(collection.objectives.items()))
    sign = 1 if mode == "min" else -1
    return sorted(settings, key=lambda s: sign * s.estimate(metric).mean if s.scored else float("inf"))


def parameters(collection: Collection) -> list[str]:
    """The keys that tell the settings apart: those of the sweep, else what differs, without what follows from a choice."""
    records = [record for record in collection.records if record.config]
    space = [key for key in _space(collection.plan) if key == "data.path" or not REPETITION.match(key)]
    differing = [key for key in _differing(records) if key not in space]
    if space:
        return space + _independent(records, differing, space)
    typed = {key for record in records for key in _words(record) if not SHOWS.match(key)}
    choices = [key for key in sorted(typed) if _is_choice(key, records, set(differing) - typed)]
    said = [key for key in differing if key in typed]
    targets = [key for key in differing if key.endswith("._target_") and not choices]
    others = [key for key in differing if key not in (*said, *targets)]
    return choices + said + targets + _independent(records, others, choices or targets)


def _space(plan: dict[str, Any]) -> dict[str, str]:
    return {key.lstrip("+~"): str(value) for key, value in part(plan, "space").items()}


def _differing(records: list[Record]) -> list[str]:
    """Leaf keys in which the configs differ, in their order there."""
    known = [record.config for record in records if record.config]
    keys = dict.fromkeys(key for config in known for key in config if not (REPETITION.match(key) or SHOWS.match(key)))
    return [key for key in keys if len({repr(config.get(key)) for config in known}) > 1]


def _is_choice(key: str, records: list[Record], untyped: set[str]) -> bool:
    """A config group that was chosen differently, with consequences that nobody typed."""
    is_leaf = any(key in record.config for record in records)
    if is_leaf or REPETITION.match(key) or key.startswith("hydra") or len({_words(r).get(key) for r in records}) < 2:
        return False
    has_part = any(name.startswith(f"{key}.") for record in records for name in record.config)
    return not has_part or any(name.startswith(f"{key}.") for name in untyped)


def _independent(records: list[Record], keys: list[str], choices: list[str]) -> list[str]:
    """Those keys that do not follow from the choices; one for those that always move together."""
    kept: dict[tuple[int, ...], str] = {}
    for key in keys:
        if not choices or not _follows(records, key, choices):
            seen: dict[str, int] = {}
            pattern = tuple(seen.setdefault(repr(record.config.get(key)), len(seen)) for record in records)
            kept.setdefault(pattern, key)
    return list(kept.values())


def _follows(records: list[Record], key: str, choices: list[str]) -> bool:
    known: dict[str, str] = {}
    pairs = ((repr([value_of(r, choice) for choice in choices]), repr(r.config.get(key))) for r in records)
    return all(known.setdefault(chosen, value) == value for chosen, value in pairs)


def value_of(record: Record, key: str) -> Any:
    """From the config, or where the key is a config group, from the command."""
    if key in record.config:
        value = record.config[key]
        return value.rpartition(".")[2] if key.endswith("_target_") and value else value
    return _words(record).get(key, DEFAULT)


def _common(records: list[Record], key: str) -> Any:
    """Runs of one setting may say a choice or leave it at that."""
    return next((value for record in records if (value := value_of(record, key)) != DEFAULT), DEFAULT)


def _words(record: Record) -> dict[str, str]:
    """The overrides; of a key given twice the last one."""
    pairs = (word.lstrip("+").partition("=") for word in record.overrides or [] if "=" in word)
    return {key: value for key, _, value in pairs}
