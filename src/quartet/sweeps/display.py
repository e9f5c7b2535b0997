"""What a person sees of a sweep: a line for each start and end, and on a terminal a table of what runs now."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quartet.sweeps.child import Job
from quartet.sweeps.pool import Ending, Observer, in_words, log_tail

TAIL = 10  # lines of a failed job's log
REFRESH = 0.5  # seconds between two looks at the logs
PROGRESS = re.compile(r"^(step|epoch|validation|test) +\d")  # a line of callbacks/progress.py


@dataclass
class Row:
    job: Job
    log: Path
    begun: float = field(default_factory=time.monotonic)
    note: str = ""


class Display(Observer):
    """`total` jobs are to come, if that is known. Use as a context manager, so that the terminal is left in order."""

    def __init__(self, total: int | None = None, live: bool | None = None):
        self.total, self.counts, self._status = total, Counter[str](), ""
        self._rows: dict[int, Row] = {}
        self._live: Any = None
        self._refreshed = 0.0
        if sys.stdout.isatty() if live is None else live:
            self._start_live()

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # what a pool tells
    def started(self, job: Job, log: Path) -> None:
        again = job.number in self._rows
        self._rows[job.number] = Row(job, log)
        if self._live is None and not again:
            self.line(f"job {job.number} started: {job.label or 'defaults'}")
        self.tick(now=True)

    def overdue(self, job: Job, seconds: float) -> None:
        self.line(f"job {job.number} is past its time limit of {in_words(seconds)}: stopping it")

    def retried(self, ending: Ending) -> None:
        self.line(f"job {ending.job.number} {ending.message}; starting it again, it goes on from its last checkpoint")

    def tick(self, now: bool = False) -> None:
        if self._live is not None and (now or time.monotonic() - self._refreshed > REFRESH):
            self._refreshed = time.monotonic()
            self._live.update(self._table(), refresh=True)

    # what the sweep tells
    def ended(self, ending: Ending, text: str) -> None:
        """`text` says what came of it and begins with the outcome: completed, pruned, failed, stopped."""
        outcome = text.split()[0].strip(":,")
        self.counts[outcome] += 1
        self._rows.pop(ending.job.number, None)
        facts = [_duration(ending.seconds)]
        facts += [f"{ending.attempts} attempts"] if ending.attempts > 1 else []
        facts += [ending.job.label] if self._live is not None and ending.job.label else []
        self.line(f"job {ending.job.number} {text} ({', '.join(facts)})")
        if outcome == "failed":
            for line in ending.log_tail(TAIL):
                self.line(f"  | {line}")
            self.line(f"  all of it: {_short(ending.log)}")
        self.tick(now=True)

    def line(self, text: str) -> None:
        if self._live is None:
            print(text, flush=True)
        else:
            from rich.text import Text

            self._live.console.print(Text(text, overflow="fold"))

    def close(self) -> None:
        if self._live is not None:
            self._live.update("", refresh=True)
            self._live.stop()
            self._live = None

    # the table
    def _start_live(self) -> None:
        from rich.live import Live

        self._live = Live(auto_refresh=False, transient=True)
        self._live.start()

    def _table(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for ratio in (None, 2, 3, None):
            table.add_column(no_wrap=True, overflow="ellipsis", ratio=ratio)
        for row in self._rows.values():
            row.note = _last_progress(row.log) or row.note
            elapsed = _duration(time.monotonic() - row.begun)
            table.add_row(*(Text(cell) for cell in (f"job {row.job.number}", row.job.label, row.note, elapsed)))
        return Group(table, Text(self._summary(), style="bold", overflow="ellipsis", no_wrap=True))

    def _summary(self) -> str:
        ended = sum(self.counts.values())
        parts = [f"{ended} of {self.total} ended" if self.total else f"{ended} ended"]
        parts += [f"{n} {name}" for name, n in self.counts.items()]
        return " · ".join(filter(None, [*parts, f"{len(self._rows)} running", self._status]))


def _last_progress(log: Path) -> str:
    lines = [line for line in log_tail(log, 10) if PROGRESS.match(line)]
    return lines[-1] if lines else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}" if minutes else f"{seconds:.1f} s"


def _short(path: Path | None) -> str:
    if path is None:
        return ""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
