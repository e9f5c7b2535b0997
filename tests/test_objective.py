"""One rule for the best value, wherever it is asked for."""

from __future__ import annotations

import math

import pytest

from quartet.objective import Objective


@pytest.mark.parametrize(("mode", "best"), [("min", 1.0), ("max", 3.0)])
def test_the_best_is_the_first_of_equals_and_never_nan(mode, best):
    objective, items = (
        Objective("val/loss", mode),
        [("nan", math.nan), ("none", None), ("a", 3.0), ("b", 1.0), ("c", best)],
    )
    found = objective.best(items, lambda item: item[1])
    assert found is not None and found[1] == best and found[0] != "c"
    assert objective.best(items[:2], lambda item: item[1]) is None
    assert not objective.better(2.0, 2.0) and objective.better(2.0, math.nan) and not objective.better(math.nan, None)
