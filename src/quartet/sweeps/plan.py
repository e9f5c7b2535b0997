"""What a sweep is, on disk: `sweep.json`, written before the first job, compared when the sweep goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quartet.config import direction_problem
from quartet.sweeps.space import Dimension, size, start_point

SAMPLERS = ("grid", "tpe", "random", "gp", "cma_es", "qmc")
PRUNERS = ("asha", "hyperband", "median")
FILE, JOURNAL = "sweep.json", "journal.log"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`space` and `fixed` are in Hydra's words; `objectives` maps val/ metrics to min or max."""

    command: list[str]
    space: dict[str, str]
    fixed: list[str]
    sampler: str
    pruner: str | None
    min_validations: int
    reduction_factor: int
    objectives: dict[str, str]
    n_trials: int
    seed: int
    start: list[dict[str, Any]]
    created: str

    @classmethod
    def make(
        cls, settings: Mapping[str, Any], command: Sequence[str], space: list[Dimension], fixed: list[str], monitor: Any
    ) -> Plan:
        """From `conf/sweep` and the parsed command line; ValueError with a line for each mistake."""
        objectives = settings["objectives"] or {monitor["metric"]: monitor["mode"]}
        problems = list(_problems(settings, space, objectives))
        if problems:
            raise ValueError("\n".join(problems))
        return cls(
            command=list(command),
            space={dimension.key: dimension.text for dimension in space},
            fixed=fixed,
            objectives=dict(objectives),
            n_trials=_total(settings["n_trials"], settings["sampler"], space),
            start=[start_point(space, values) for values in settings["start"]],
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            **{key: settings[key] for key in ("sampler", "pruner", "min_validations", "reduction_factor", "seed")},
        )

    @classmethod
    def read(cls, directory: Path) -> Plan:
        path = directory / FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{field.name: values[field.name] for field in fields(cls)})
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{directory} is no sweep (no {FILE} in it); try sweep.resume=latest") from error
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); bring it back, or start another sweep") from error

    def as_data(self) -> dict[str, Any]:
        return asdict(self)

    def differences(self, other: Plan) -> Iterator[str]:
        """What makes `other` a different sweep; the budget may change, the command's spelling too."""
        for key in sorted(self.space.keys() | other.space.keys()):
            was, now = self.space.get(key), other.space.get(key)
            if was != now:
                yield f"{key} was {was or 'not varied'}, is {now or 'not varied'}"
        yield from (f"{word} was given, is not" for word in self.fixed if word not in other.fixed)
        yield from (f"{word} is given, was not" for word in other.fixed if word not in self.fixed)
        for name in ("sampler", "pruner", "min_validations", "reduction_factor", "objectives", "seed", "start"):
            was, now = getattr(self, name), getattr(other, name)
            if was != now:
                yield f"sweep.{name} was {was}, is {now}"


def _total(n_trials: int | None, sampler: str, space: list[Dimension]) -> int:
    """A grid has an end of its own."""
    points = size(space) if sampler == "grid" else None
    return min(filter(None, (n_trials, points)))


def _problems(settings: Mapping[str, Any], space: list[Dimension], objectives: Any) -> Iterator[str]:
    yield from filter(None, (dimension.problem() for dimension in space))
    yield from _setting_problems(settings)
    yield from _objective_problems(objectives)
    sampler, names = settings["sampler"], ", ".join(objectives) if isinstance(objectives, dict) else ""
    if settings["pruner"] and len(objectives) > 1:
        yield f"sweep.pruner={settings['pruner']} compares one objective, not {names}; take sweep.pruner=null"
    if sampler == "grid":
        for dimension in space:
            if dimension.values is None:
                yield (
                    f"sweep.sampler=grid tries every value, {dimension.key}={dimension.text} has no end of them; "
                    "take choice(…) or range(…), or sweep=optuna"
                )
        return
    if not space:
        yield f"sweep.sampler={sampler} has nothing to vary; give it something, such as optimizer.lr=choice(1e-3,3e-3)"
    if settings["n_trials"] is None:
        yield f"sweep.sampler={sampler} has no end of its own; give sweep.n_trials"
    if sampler in ("cma_es", "qmc"):
        for dimension in space:
            if not dimension.numeric:
                yield (
                    f"sweep.sampler={sampler} knows numbers only, {dimension.key}={dimension.text} is a choice; "
                    "take range(…) or interval(…), or sweep.sampler=tpe"
                )
    if sampler == "cma_es" and len(space) == 1:
        yield "sweep.sampler=cma_es needs two parameters or more; take sweep.sampler=gp for one"
    if sampler == "cma_es" and len(objectives) > 1:
        yield f"sweep.sampler=cma_es has one objective, not {names}; take sweep.sampler=tpe"


def _setting_problems(settings: Mapping[str, Any]) -> Iterator[str]:
    def whole(name: str, least: int) -> Iterator[str]:
        value = settings[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            yield f"sweep.{name} must be a whole number of at least {least}, not {value!r}"

    if settings["sampler"] not in SAMPLERS:
        yield f"sweep.sampler must be one of {', '.join(SAMPLERS)}, not {settings['sampler']!r}"
    if settings["pruner"] is not None and settings["pruner"] not in PRUNERS:
        yield f"sweep.pruner must be null or one of {', '.join(PRUNERS)}, not {settings['pruner']!r}"
    for name, least in (("min_validations", 1), ("reduction_factor", 2), ("n_jobs", 1), ("seed", 0)):
        yield from whole(name, least)
    if settings["n_trials"] is not None:
        yield from whole("n_trials", 1)
    minutes, rate = settings["max_minutes"], settings["max_failure_rate"]
    if minutes is not None and not (isinstance(minutes, int | float) and minutes > 0):
        yield f"sweep.max_minutes must be a number above 0, or null, not {minutes!r}"
    if not (isinstance(rate, int | float) and 0 <= rate <= 1):
        yield f"sweep.max_failure_rate must be a number from 0 to 1, not {rate!r}"
    start = settings["start"]
    if not (isinstance(start, list) and all(isinstance(values, dict) for values in start)):
        yield f"sweep.start must be a list of points such as [{{optimizer.lr: 1e-3}}], not {start!r}"


def _objective_problems(objectives: Any) -> Iterator[str]:
    if not isinstance(objectives, dict) or not all(mode in ("min", "max") for mode in objectives.values()):
        yield f"sweep.objectives must name metrics with min or max, as in {{val/loss: min}}, not {objectives!r}"
        return
    for name, mode in objectives.items():
        problem = direction_problem(f"sweep.objectives.{name}", name, mode)
        if problem:
            yield problem
        if not str(name).startswith("val/"):
            yield (
                f"the objective {name} is no val/ metric; a sweep chooses on the validation part, the winner is tested "
                "afterwards: scripts/report.py sweep=latest test_winner=true"
            )
