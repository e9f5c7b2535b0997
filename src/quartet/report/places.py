"""Where things are, seen from a report: its runs, its figures, the rows that it leaves to runs.csv."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quartet.report import figures
from quartet.report.pages import Links, Picture
from quartet.report.runs import Record
from quartet.report.study import Study

SHOWN = 20  # rows of the long tables


def more(rows: Sequence[Any]) -> str:
    return f"; {SHOWN} of {len(rows)}, all of them in runs.csv" if len(rows) > SHOWN else ""


def links(study: Study, *records: Record) -> Links:
    """To the runs, where there is something to go to from the page."""

    def target(record: Record) -> str | None:
        there = record.directory.is_dir()
        return Path(os.path.relpath(record.directory, study.output)).as_posix() + "/" if there else None

    return Links([(record.name, target(record)) for record in records])


def picture(study: Study, name: str, drawn: Any, caption: str, alt: str) -> Picture:
    path = figures.save(drawn, study.output / "figures" / f"{name}.png")
    return Picture(path, path.relative_to(study.output).as_posix(), caption, alt)
