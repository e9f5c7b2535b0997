"""What a sweep is, on disk: `sweep.json`, written before the first job, compared when the sweep resumes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from quartet.config import OptionalPositiveFloat, OptionalPositiveInt, direction_problem
from quartet.signatures import Fraction, NonNegativeInt, PositiveInt, Rule, refuse, wrong_settings
from quartet.sweeps.space import Dimension, size, start_point

FILE, JOURNAL = "sweep.json", "journal.log"

SETTINGS: dict[str, Any] = {  # the keys of conf/sweep
    "sampler": Literal["grid", "tpe", "random", "gp", "cma_es", "qmc"],
    "pruner": Literal["asha", "hyperband", "median"] | None,
    "min_validations": PositiveInt,
    "reduction_factor": Annotated[int, Rule("an integer of at least 2", lambda n: n >= 2)],
    "n_jobs": PositiveInt,
    "seed": NonNegativeInt,
    "n_trials": OptionalPositiveInt,
    "max_minutes": OptionalPositiveFloat,
    "max_failure_rate": Fraction,
    "start": Annotated[list[dict], Rule("a list of points such as [{optimizer.lr: 1e-3}]", lambda _: True)],
}


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
        refuse(_problems(settings, space, objectives))
        # a grid has an end of its own
        n_points = size(space) if settings["sampler"] == "grid" else None
        return cls(
            command=list(command),
            space={dimension.key: dimension.text for dimension in space},
            fixed=fixed,
            objectives=dict(objectives),
            n_trials=min(filter(None, (settings["n_trials"], n_points))),
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
            raise FileNotFoundError(f"{directory} is not a sweep (no {FILE} in it); try sweep.resume=latest") from error
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); restore it, or start another sweep") from error

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


def _problems(settings: Mapping[str, Any], space: list[Dimension], objectives: Any) -> Iterator[str]:
    """Values that are out of range, and values that contradict each other; one sentence for each."""
    # 1. each by itself
    yield from filter(None, (dimension.problem() for dimension in space))
    yield from wrong_settings(SETTINGS, settings, "sweep.")

    # 2. objectives: val/ metrics, each with the direction in which it improves
    if not isinstance(objectives, dict) or not all(mode in ("min", "max") for mode in objectives.values()):
        yield f"sweep.objectives must name metrics with min or max, as in {{val/loss: min}}, not {objectives!r}"
        return
    for name, mode in objectives.items():
        yield from filter(None, [direction_problem(f"sweep.objectives.{name}", name, mode)])
        if not str(name).startswith("val/"):
            yield (
                f"the objective {name} is not a val/ metric; a sweep chooses on the validation part, the winner is tested "
                "afterwards: scripts/report.py sweep=latest test_winner=true"
            )
    names, sampler = ", ".join(objectives), settings["sampler"]
    if settings["pruner"] and len(objectives) > 1:
        yield f"sweep.pruner={settings['pruner']} compares one objective, not {names}; use sweep.pruner=null"

    # 3. what each sampler can do
    if sampler == "grid":
        for dimension in space:
            if dimension.values is None:
                yield (
                    f"sweep.sampler=grid tries every value, and {dimension.key}={dimension.text} has infinitely many; "
                    "use choice(…) or range(…), or sweep=optuna"
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
                    "use range(…) or interval(…), or sweep.sampler=tpe"
                )
    if sampler == "cma_es" and len(space) == 1:
        yield "sweep.sampler=cma_es needs two parameters or more; use sweep.sampler=gp for one"
    if sampler == "cma_es" and len(objectives) > 1:
        yield f"sweep.sampler=cma_es has one objective, not {names}; use sweep.sampler=tpe"
