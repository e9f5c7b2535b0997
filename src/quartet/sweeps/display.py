"""What a person sees of a sweep: a line for each start and end, and on a terminal a table of what runs now."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from quartet.say import printable
from quartet.sweeps.child import Job
from quartet.sweeps.pool import Ending, Observer, in_words, log_tail

TAIL = 10  # lines of a failed job's log
BEST = "(best so far)"  # what a sweeper says of a completed job that is
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
        self.total, self.counts, self._best = total, Counter[str](), ""
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
            self.say(f"job {job.number} started: {job.label or 'defaults'}")
        self.tick(now=True)

    def overdue(self, job: Job, seconds: float) -> None:
        self.say(f"job {job.number} is past its time limit of {in_words(seconds)}: stopping it", sys.stderr)

    def retried(self, ending: Ending) -> None:
        again = "starting it again, from its last checkpoint if it has one"
        self.say(f"job {ending.job.number} {ending.message}; {again}", sys.stderr)

    def tick(self, now: bool = False) -> None:
        if self._live is not None and (now or time.monotonic() - self._refreshed > REFRESH):
            self._refreshed = time.monotonic()
            self._live.update(self._table(), refresh=True)

    # what the sweep tells
    def ended(self, ending: Ending, text: str) -> None:
        """`text` says what came of it and begins with the outcome: completed, pruned, failed, stopped."""
        outcome = text.split()[0].strip(":,")
        self.counts[outcome] += 1
        if BEST in text:
            self._best = f"best: job {ending.job.number}{text.removeprefix(outcome).replace(BEST, '').rstrip()}"
        self._rows.pop(ending.job.number, None)
        facts = [_duration(ending.seconds)]
        facts += [f"{ending.attempts} attempts"] if ending.attempts > 1 else []
        facts += [short(ending.job.label)] if self._live is not None and ending.job.label else []
        lines = [f"job {ending.job.number} {text} ({', '.join(facts)})"]
        if outcome == "failed":
            lines += [f"  | {line}" for line in ending.log_tail(TAIL)] + [f"  all of it: {_short(ending.log)}"]
        self.say("\n".join(lines), sys.stderr if outcome == "failed" else None)
        self.tick(now=True)

    def say(self, text: str, stream: TextIO | None = None) -> None:
        """Above the table, or a plain line to `stream`, else to standard output."""
        text = printable(text, keep="\n\t")
        if self._live is None:
            print(text, file=stream, flush=True)
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
        from rich.text import Text

        width, height = self._live.console.size
        shown = list(self._rows.values())[: max(1, height - 2)]
        for row in shown:
            row.note = _last_progress(row.log) or row.note
        rows = [(f"job {r.job.number}", printable(short(r.job.label)), printable(r.note), _elapsed(r)) for r in shown]
        return Text("\n".join([*table(rows, width), clip(self._summary(), width)]), no_wrap=True, overflow="crop")

    def _summary(self) -> str:
        ended = sum(self.counts.values())
        parts = [f"{ended} of {self.total} ended" if self.total else f"{ended} ended"]
        parts += [f"{n} {name}" for name, n in self.counts.items()]
        return " · ".join(filter(None, [*parts, f"{len(self._rows)} running", self._best]))


def table(rows: list[tuple[str, str, str, str]], width: int) -> list[str]:
    """Lines of at most `width`: what varies gets what it needs up to two fifths, the progress gets what is left."""
    job, label, _, elapsed = (max((len(row[i]) for row in rows), default=0) for i in range(4))
    label = min(label, 2 * width // 5)
    note = max(0, width - job - label - elapsed - 6)
    cells = [(row[0], clip(row[1], label), whole_parts(row[2], note), row[3]) for row in rows]
    lines = [f"{a:<{job}}  {b:<{label}}  {c:<{note}}  {d:>{elapsed}}" for a, b, c, d in cells]
    return [clip(line, width) for line in lines]


def clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"[:width]


def whole_parts(text: str, width: int) -> str:
    """As many of the parts that two spaces separate as there is room for."""
    parts = re.split(r" {2,}(?=\D|\d+%)", text)
    while parts and len("  ".join(parts)) > width:
        parts.pop()
    return "  ".join(parts)


def short(label: str) -> str:
    """optimizer.lr=0.1 as lr=0.1."""
    return re.sub(r"(^| )[+~]*[\w.]+\.(?=\w+=)", r"\1", label)


def _last_progress(log: Path) -> str:
    lines = [line for line in log_tail(log, 10) if PROGRESS.match(line)]
    return lines[-1] if lines else ""


def _elapsed(row: Row) -> str:
    return _duration(time.monotonic() - row.begun)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}" if minutes else f"{seconds:.1f} s"


def _short(path: Path | None) -> str:
    if path is None:
        return ""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
