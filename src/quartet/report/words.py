"""Numbers as a person reads them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from quartet.report.runs import STATUSES, Record
from quartet.report.statistics import Estimate


def digits(value: float | None, places: int = 4) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{places}g}"


def uncertain(e: Estimate) -> str:
    """Mean ± std, both to the second digit of the std."""
    return _same_digits(e, e.mean) if e.std is None else f"{_same_digits(e, e.mean)} ± {_same_digits(e, e.std, 2)}"


def interval(e: Estimate) -> str:
    return "–" if e.low is None or e.high is None else f"{_same_digits(e, e.low)} to {_same_digits(e, e.high)}"


def _same_digits(e: Estimate, value: float, places: int = 4) -> str:
    if not e.std or not math.isfinite(e.std) or not 1e-4 <= max(abs(e.mean), e.std) < 1e5:
        return digits(value, places)
    return f"{value:.{max(0, 1 - math.floor(math.log10(e.std)))}f}"


def probability(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def counted(records: Sequence[Record]) -> str:
    counts = Counter(record.status for record in records)
    known = [*STATUSES, *sorted(counts.keys() - set(STATUSES))]
    return ", ".join(f"{counts[status]} {status}" for status in known if counts[status]) or "no runs"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
