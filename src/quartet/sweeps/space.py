"""What a sweep varies: Hydra's sweep words (`1,2`, choice, range, interval, tag) as dimensions that Optuna can sample.

A value travels as the text that Hydra would write, so that a job is composed as the command line composes it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep


@dataclass(frozen=True)
class Dimension:
    """One parameter: `values` in order where they can be counted, `low` to `high` where it is numeric."""

    key: str  # as typed, with + or ++ if there was one
    text: str  # as typed behind the =
    values: tuple[str, ...] | None = None  # None: an interval
    low: float | None = None
    high: float | None = None
    step: float | None = None
    whole: bool = False
    log: bool = False

    @property
    def numeric(self) -> bool:
        return self.low is not None

    @property
    def first(self) -> str:
        """A value of it, as text."""
        if self.values:
            return self.values[0]
        return str(int(self.low or 0) if self.whole else self.low)

    def distribution(self, *, enumerated: bool) -> Any:
        """Optuna's; `enumerated`: as a choice between the values, which keeps the order of a grid."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if enumerated or self.low is None or self.high is None:
            return CategoricalDistribution(self.values or ())
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def problem(self) -> str | None:
        """Why there is nothing in it, if there is nothing."""
        name = f"{self.key}={self.text}"
        if self.values is not None and not self.values:
            return f"{name} has no values; a range goes from a lower to a higher number, as in range(1,10)"
        if self.low is not None and self.high is not None:
            if self.low > self.high:
                return f"{name} begins above its end; write interval({self.high:g},{self.low:g})"
            if self.log and self.low <= 0:
                return f"{name} begins at {self.low:g}, which has no logarithm; begin above 0, or leave out tag(log,…)"
            if self.log and self.step is not None and self.step != 1:
                return f"{name} has a step and a logarithm; take choice(…) of the values, or leave out one of them"
        return None


def parse(params: Mapping[str, Any], arguments: Sequence[str], loader: Any) -> tuple[list[Dimension], list[str]]:
    """The dimensions and what stays fixed (as Hydra's overrides); the command line wins over `params`."""
    words = [f"{key}={_as_hydra(value)}" for key, value in params.items()] + list(arguments)
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(words)
    by_key = {override.key_or_group: override for override in overrides}

    varied = []
    for override in by_key.values():
        if not override.is_sweep_override():
            continue
        key, text, value = override.get_key_element(), override.get_value_string(), override.value()
        tags = getattr(value, "tags", set())
        values = low = high = step = None
        whole = False
        if isinstance(value, IntervalSweep):
            low, high, whole = value.start, value.end, "int" in tags or isinstance(value.start, int)
        else:
            # the order of shuffle(…) is the same when a sweep resumes
            state = random.getstate()
            random.seed(0)
            values = tuple(override.sweep_string_iterator())
            random.setstate(state)
            # a range has ends too, between which Optuna may sample
            if isinstance(value, RangeSweep) and not value.shuffle and values:
                numbers = sorted(Decimal(number) for number in values)
                low, high = float(numbers[0]), float(numbers[-1])
                step = float(numbers[1] - numbers[0]) if len(numbers) > 1 else None
                whole = all(number == int(number) for number in numbers) and "." not in "".join(values)
        varied.append(Dimension(key, text, values, low, high, step, whole, "log" in tags and low is not None))

    # what has one value does not vary
    space = [d for d in varied if d.values is None or len(d.values) != 1]
    single = [f"{d.key}={d.values[0]}" for d in varied if d.values is not None and len(d.values) == 1]
    return space, [str(o.input_line) for o in by_key.values() if not o.is_sweep_override()] + single


def _as_hydra(value: Any) -> str:
    """Text is Hydra's own already; other YAML values are written as Hydra writes them."""
    return value if isinstance(value, str) else Override._get_value_element_as_str(value)


def size(space: Sequence[Dimension]) -> int | None:
    """Points of the grid; None where a dimension is an interval."""
    n = 1
    for dimension in space:
        if dimension.values is None:
            return None
        n *= len(dimension.values)
    return n


def point(space: Sequence[Dimension], number: int) -> dict[str, str]:
    """Point `number` of the grid; the last dimension turns fastest, as in Hydra."""
    chosen: dict[str, str] = {}
    for dimension in reversed(space):
        assert dimension.values
        number, place = divmod(number, len(dimension.values))
        chosen[dimension.key] = dimension.values[place]
    return dict(reversed(chosen.items()))


def start_point(space: Sequence[Dimension], values: Mapping[str, Any]) -> dict[str, Any]:
    """A point that a person wrote down, as Optuna takes it; ValueError where it is not in the space."""
    keys = {dimension.key.lstrip("+"): dimension for dimension in space}
    chosen: dict[str, Any] = {}
    for key, value in values.items():
        if key not in keys:
            raise ValueError(f"sweep.start names {key}, which is not varied; varied are {', '.join(keys) or 'none'}")
        dimension, found = keys[key], None
        if dimension.low is not None and dimension.high is not None:
            if isinstance(value, int | float) and dimension.low <= value <= dimension.high:
                found = int(value) if dimension.whole else float(value)
        else:
            # numbers may be written otherwise, and texts with quotes
            for text in dimension.values or ():
                try:
                    same = float(text) == float(value)
                except (TypeError, ValueError):
                    same = text.strip("'\"") == _as_hydra(value).strip("'\"")
                if same:
                    found = text
                    break
        if found is None:
            raise ValueError(f"sweep.start has {dimension.key}={value}, which is not in {dimension.text}")
        chosen[dimension.key] = found
    return chosen
