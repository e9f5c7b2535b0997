"""The data report, `data.json` of a run: what was read, in one shape for every kind of data.

parts        {part: {fact: number}}                          samples first; a row of the table for each part
classes      {class: {part: count}}                          if the target has classes
histograms   {what: {"edges": […], "counts": {part: […]}}}   lengths of texts, a target that is a number
columns      [{"column", "kind", "missing", "distinct", "values"}]  tables; the values as a person says them
notes        [sentences]                                     what was dropped, chosen or cut, and how much of it
examples     [{field: value}]                                a few training samples as a person reads them
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

MOST_BINS = 30
SHOWN = 3  # categories that are named


def class_table(classes: Sequence[str], counts: dict[str, Sequence[int]]) -> dict[str, dict[str, int]]:
    """Counts of each part, in the order of the classes, as {class: {part: count}}."""
    return {name: {part: int(numbers[i]) for part, numbers in counts.items()} for i, name in enumerate(classes)}


def histogram(values: dict[str, Any]) -> dict[str, Any]:
    """The numbers of each part over common bins from the smallest to the largest."""
    arrays = {part: np.asarray(x, dtype=float) for part, x in values.items()}
    everything = np.concatenate(list(arrays.values()))
    distinct = len(np.unique(everything))
    edges = np.histogram_bin_edges(everything, bins=max(1, min(MOST_BINS, distinct)))
    counts = {part: np.histogram(x, edges)[0].tolist() for part, x in arrays.items()}
    return {"edges": edges.tolist(), "counts": counts}


def said_values(values: Sequence[Any]) -> str:
    """Numbers from the least to the largest; of names the most frequent ones, and how many more there are."""
    known = [value for value in values if value is not None and value == value]
    if not known:
        return ""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return f"{_number(min(known))} … {_number(max(known))}"
    frequent = [str(value) for value, _ in Counter(known).most_common()]
    more = f" and {len(frequent) - SHOWN:,} more" if len(frequent) > SHOWN else ""
    return ", ".join(name if len(name) <= 12 else name[:11] + "…" for name in frequent[:SHOWN]) + more


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:.4g}"
