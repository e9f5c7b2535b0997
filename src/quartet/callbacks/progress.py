"""Where a run stands: a live bar on a terminal, plain lines elsewhere (pipes, files, sweep workers)."""

from __future__ import annotations

import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Timer

from quartet.callbacks.monitors import Throughput
from quartet.say import duration, printable


def progress(*, metrics: Iterable[str], every_seconds: float) -> Progress:
    """A live bar if standard output is a terminal, otherwise a plain line every `every_seconds`."""
    if sys.stdout.isatty():
        return LiveProgress(metrics=metrics, every_seconds=min(every_seconds, 0.2))
    return PlainProgress(metrics=metrics, every_seconds=every_seconds)


class Progress(Callback, ABC):
    """Follows fit, validate and test; shows something every `every_seconds` and after each validation, on rank 0 only.

    `metrics` are the names to show, in this order, if they have been logged.
    """

    pause_after_validation = 1.0  # seconds: short epochs must not flood the log

    def __init__(self, *, metrics: Iterable[str], every_seconds: float, clock: Callable[[], float] = time.monotonic):
        self.metrics, self.every_seconds, self.clock = tuple(metrics), every_seconds, clock
        self._enabled = True
        self._started = self._shown = clock()
        self._first_step, self._total_steps = 0, math.inf
        self._last: Any = None  # what was shown of the training

    @abstractmethod
    def show(self, head: str, share: float | None, details: list[str], times: str) -> None:
        """`head`: "step 120/240"; `share`: done so far, 0 to 1, None if no end is known; `details`: metrics and speed."""

    def close(self) -> None:
        """Leave what was shown last; the next `show` starts anew."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._enabled = trainer.is_global_zero

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = self._shown = self.clock()
        self._first_step, self._total_steps = trainer.global_step, trainer.estimated_stepping_batches

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = self._shown = self.clock()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._is_due(self.every_seconds):
            self.show_training(trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._is_due(self.every_seconds):
            name, batches = "validation", trainer.num_val_batches
            if trainer.testing:
                name, batches = "test", trainer.num_test_batches
            done, total = batch_idx + 1, sum(batches) if isinstance(batches, list) else batches
            elapsed = f"elapsed {duration(self.clock() - self._started)}"
            self.show(count(name, done, total), min(done / total, 1.0), [], elapsed)

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and self._is_due(self.pause_after_validation):
            self.show_training(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._enabled:
            self.show_training(trainer)
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.close()

    def _is_due(self, seconds: float) -> bool:
        now = self.clock()
        if not self._enabled or now - self._shown < seconds:
            return False
        self._shown = now
        return True

    def show_training(self, trainer: Trainer) -> None:
        # 1. where: epochs if they limit the run, else steps
        step, total = trainer.global_step, self._total_steps
        head = count("step", step, total)
        if trainer.max_steps == -1 and trainer.max_epochs not in (None, -1):
            head = count("epoch", min(trainer.current_epoch + 1, trainer.max_epochs), trainer.max_epochs)
        share = step / total if 0 < total < math.inf else None

        # 2. how well and how fast
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        values = trainer.callback_metrics
        details = [f"{name} {number(float(values[name]))}" for name in self.metrics if name in values]
        for monitor in callbacks:
            if isinstance(monitor, Throughput) and monitor.seconds:
                digits = 0 if monitor.per_second >= 10 else 1
                details.append(f"{monitor.per_second:,.{digits}f} {monitor.unit}/s")
        # the end of training often follows a validation
        if (head, details) == self._last:
            return
        self._last = head, details

        # 3. how long still: by the steps of this process, or by a limit of time
        elapsed, done = self.clock() - self._started, step - self._first_step
        left = [elapsed / done * (total - step)] if done else []
        left += [t for c in callbacks if isinstance(c, Timer) and (t := c.time_remaining()) is not None]
        soonest = min(left, default=math.inf)
        remaining = f"  left {duration(soonest)}" if soonest < math.inf else ""
        self.show(head, share, details, f"elapsed {duration(elapsed)}{remaining}")


class PlainProgress(Progress):
    """Lines without control codes, for logs."""

    def show(self, head: str, share: float | None, details: list[str], times: str) -> None:
        parts = (head, "" if share is None else f"{share:4.0%}", *details, times)
        print(printable("  ".join(part for part in parts if part)), flush=True)


class LiveProgress(Progress):
    """A bar that stays at the bottom of the terminal, with the metrics below it."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self._live: Any = None

    def show(self, head: str, share: float | None, details: list[str], times: str) -> None:
        from rich.console import Group
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        line = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=1.0, completed=share or 0.0, width=30)
        line.add_row(head, bar, "" if share is None else f"{share:.0%}", times)
        if self._live is None:
            self._live = Live(auto_refresh=False)
            self._live.start()
        self._live.update(Group(line, Text(printable("  ".join(details)), style="dim")), refresh=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


class StderrProgress:
    """How far work without a trainer is: a bar on a terminal, else a line every few seconds; standard output stays clean."""

    def __init__(self, what: str, every_seconds: float = 5.0):
        self.what, self.every_seconds = what, every_seconds
        self._shown, self._bar = time.monotonic(), None

    def show(self, share: float) -> None:
        """`share`: done so far, 0 to 1."""
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bar

            if self._bar is None:
                self._bar: Any = Bar(console=Console(stderr=True), transient=True)
                self._bar.add_task(self.what, total=1.0)
            self._bar.start()
            self._bar.update(self._bar.task_ids[0], completed=share)
        elif time.monotonic() - self._shown >= self.every_seconds:
            self._shown = time.monotonic()
            print(f"{self.what} {share:.0%}", file=sys.stderr, flush=True)

    def hide(self) -> None:
        """Take the bar away until the next `show`, so that something else can be printed."""
        if self._bar is not None:
            self._bar.stop()


def count(name: str, done: int, total: float) -> str:
    """`step   120/2400`, aligned so that lines stand below each other."""
    return f"{name} {done:>{len(str(total))}}/{total}" if total < math.inf else f"{name} {done}"


def number(value: float) -> str:
    """Four significant digits: 3.214, 0.9873, 12,345."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"
