"""runs.csv: one row for each run, for a spreadsheet or pandas."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

from quartet.files import written
from quartet.report.runs import Record, part
from quartet.report.settings import value_of
from quartet.report.study import Study

FORMULA = re.compile(r"[=+@\t\r]|-(?![\d.])")
COUNTS = ("steps", "epochs", "seconds", "peak_memory_bytes", "parameters")


def write_table(study: Study, path: Path) -> None:
    """An empty cell where a run has no such value."""
    rows = [_row(study, record) for record in study.collection.records]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with written(path) as file, io.TextIOWrapper(file, "utf-8", "replace", newline="") as text:
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows({column: _harmless(value) for column, value in row.items()} for row in rows)


def _harmless(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula is marked as text."""
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value


def _row(study: Study, record: Record) -> dict[str, Any]:
    known = bool(record.config)
    throughput = part(record.result, "throughput")
    validation = {name: value for name, value in record.metrics.items() if name.startswith("val")}
    return {
        "run": record.name,
        "directory": record.directory,
        "status": record.status,
        **{metric: validation.get(metric) for metric in study.objectives},
        **{key: value_of(record, key) if known else None for key in study.keys},
        "seed": record.seed,
        "fold": record.fold,
        **{name: record.result.get(name) for name in COUNTS},
        "throughput_per_second": throughput.get("per_second"),
        "throughput_unit": throughput.get("unit"),
        **validation,
        "reason": record.reason,
        "command": record.command,
    }
