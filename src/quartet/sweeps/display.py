"""What a person sees of a sweep: a line for each start and end, and on a terminal a table of what runs now."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

from quartet.files import read_metrics
from quartet.say import elapsed, printable
from quartet.sweeps.jobs import Job, JobResult
from quartet.sweeps.pool import log_tail

TAIL = 10  # lines of a failed job's log
REFRESH = 0.5  # seconds between two looks at the metrics
SHOWN = ("train/loss", "val/loss", "val/bits_per_byte", "val/accuracy", "val/rmse")  # of a running job


class Display:
    """Watches a launcher; `total` jobs are to come. A context manager, so that the terminal is left in order."""

    def __init__(self, total: int | None = None, live: bool | None = None):
        self.total, self.counts, self.best = total, Counter[str](), ""
        self._rows: dict[int, tuple[Job, float]] = {}  # jobs that run, with the time at which they started
        self._live: Any = None
        self._refreshed = 0.0
        if sys.stdout.isatty() if live is None else live:
            from rich.live import Live

            self._live = Live(auto_refresh=False, transient=True)
            self._live.start()

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update("", refresh=True)
            self._live.stop()
            self._live = None

    def started(self, job: Job, log: Path | None = None) -> None:
        again = job.number in self._rows
        self._rows[job.number] = job, time.monotonic()
        if self._live is None and not again:
            self.say(f"job {job.number} started: {job.label or 'defaults'}")
        self.tick(now=True)

    def overdue(self, job: Job, seconds: float) -> None:
        self.say(f"job {job.number} is past its time limit of {elapsed(seconds)}: stopping it", sys.stderr)

    def retried(self, result: JobResult) -> None:
        what = f"job {result.job.number} {result.message}"
        self.say(f"{what}; starting it again, from its last checkpoint if it has one", sys.stderr)

    def ended(self, result: JobResult, outcome: str, facts: str, *, best: bool = False) -> None:
        """`outcome`: completed, pruned, failed or stopped, as the sweep counts it; `facts`: what is known beyond that."""
        job = result.job
        self.counts[outcome] += 1
        self._rows.pop(job.number, None)
        if best:
            self.best = f"best: job {job.number}{facts}"
        aside = [elapsed(result.seconds)]
        aside += [f"{result.attempts} attempts"] if result.attempts > 1 else []
        aside += [short(job.label)] if self._live is not None and job.label else []
        lines = [f"job {job.number} {outcome}{facts}{' (best so far)' if best else ''} ({', '.join(aside)})"]
        if outcome == "failed" and result.log is not None:
            here = Path.cwd()
            log = result.log.relative_to(here) if result.log.is_relative_to(here) else result.log
            lines += [f"  | {line}" for line in log_tail(result.log, TAIL)] + [f"  all of it: {log}"]
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

    def tick(self, now: bool = False) -> None:
        """Draw the table again, if there is one and its time has come."""
        if self._live is None or not (now or time.monotonic() - self._refreshed > REFRESH):
            return
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        self._refreshed = time.monotonic()
        width, height = self._live.console.size
        table = Table.grid(padding=(0, 2, 0, 0), expand=True)
        # what varies gets what it needs up to two fifths of the width, the progress gets what is left
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=max(1, 2 * width // 5))
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column(no_wrap=True, justify="right")
        for job, started_at in list(self._rows.values())[: max(1, height - 2)]:
            label, time_so_far = printable(short(job.label)), elapsed(self._refreshed - started_at)
            table.add_row(*map(Text, (f"job {job.number}", label, progress(job), time_so_far)))
        ended = sum(self.counts.values())
        parts = [f"{ended} of {self.total} ended" if self.total else f"{ended} ended"]
        parts += [*(f"{n} {name}" for name, n in self.counts.items()), f"{len(self._rows)} running", self.best]
        summary = Text(" · ".join(filter(None, parts)), no_wrap=True, overflow="ellipsis")
        self._live.update(Group(table, summary), refresh=True)


def progress(job: Job) -> str:
    """The last step that a run has logged, with the newest value of each metric that is worth showing."""
    rows = read_metrics(job.run.directory / "metrics.csv")
    if not rows:
        return ""
    newest = {name: value for row in rows for name, value in row.items() if value}
    metrics = [f"{name} {float(newest[name]):.4g}" for name in SHOWN if name in newest]
    return "  ".join([f"step {int(newest['step']) + 1:,}", *metrics])


def short(label: str) -> str:
    """optimizer.lr=0.1 as lr=0.1."""
    return re.sub(r"(^| )[+~]*[\w.]+\.(?=\w+=)", r"\1", label)
