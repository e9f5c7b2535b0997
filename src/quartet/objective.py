"""Which of two values of a metric is better. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Objective:
    """A metric and its `mode`, "min" or "max". A value that is None or NaN is worse than every number."""

    metric: str
    mode: str

    @property
    def sign(self) -> int:
        """By what a value is multiplied so that smaller is better."""
        return 1 if self.mode == "min" else -1

    def better(self, a: float | None, b: float | None) -> bool:
        """Whether `a` is strictly better than `b`: of equal values the earlier one stays the best."""
        if a is None or a != a:
            return False
        return b is None or b != b or self.sign * a < self.sign * b

    def best(self, items: Iterable[T], value: Callable[[T], float | None]) -> T | None:
        """The first item with the best value; None if no item has a number."""
        best, best_value = None, None
        for item in items:
            if self.better(value(item), best_value):
                best, best_value = item, value(item)
        return best
