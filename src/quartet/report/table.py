"""runs.csv: one row for each run, for a spreadsheet or pandas."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from quartet.report.runs import Record, part
from quartet.report.settings import value_of
from quartet.report.study import Study

COUNTS = ("steps", "epochs", "seconds", "peak_memory_bytes", "parameters")


def write_table(study: Study, path: Path) -> None:
    """An empty cell where a run has no such value."""
    rows = [_row(study, record) for record in study.collection.records]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


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
