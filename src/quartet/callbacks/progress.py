"""Where a run stands: a live bar on a terminal, plain lines elsewhere (pipes, files, sweep workers)."""

from __future__ import annotations

import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Timer

from quartet.callbacks.monitors import Throughput
from quartet.say import printable

Clock = Callable[[], float]


def progress(*, metrics: Iterable[str], every_seconds: float) -> Progress:
    """A live bar where standard output is a terminal, otherwise a plain line every `every_seconds`."""
    if sys.stdout.isatty():
        return LiveProgress(metrics=metrics, every_seconds=min(every_seconds, 0.2))
    return PlainProgress(metrics=metrics, every_seconds=every_seconds)


@dataclass(frozen=True, kw_only=True)
class Status:
    """One moment of a run, ready to be shown."""

    head: str  # "step 120/240", "epoch 12/60", "validation 3/10"
    share: float | None  # done so far, 0 … 1; None where no end is known
    details: tuple[str, ...]  # "train/loss 3.214", "23,400 tokens/s"
    times: str  # "elapsed 0:52  left 0:49"


class Progress(Callback, ABC):
    """Follows fit, validate and test, and shows a `Status` when `every_seconds` have passed and after each validation.

    `metrics` are the names to show, in this order, where they have been logged. Subclasses say how (`show`, `close`).
    Only the first worker shows anything.
    """

    pause_after_validation = 1.0  # seconds: short epochs shall not flood the log

    def __init__(self, *, metrics: Iterable[str], every_seconds: float, clock: Clock = time.monotonic):
        self.metrics, self.every_seconds, self.clock = tuple(metrics), every_seconds, clock
        self._enabled = True
        self._started = self._shown = clock()
        self._first_step, self._total_steps = 0, math.inf
        self._last: tuple[str, tuple[str, ...]] | None = None

    @abstractmethod
    def show(self, status: Status) -> None: ...

    def close(self) -> None:
        """Leave the last status standing; the next `show` starts anew."""

    # hooks
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._enabled = trainer.is_global_zero

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = self._shown = self.clock()
        self._first_step, self._total_steps = trainer.global_step, trainer.estimated_stepping_batches

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._due(self.every_seconds):
            self._show_training(trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if not trainer.sanity_checking and self._due(self.every_seconds):
            self.show(self.pass_status("validation", batch_idx + 1, trainer.num_val_batches))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._due(self.pause_after_validation):
            self._show_training(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._enabled:
            self._show_training(trainer)
        self.close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = self._shown = self.clock()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if self._due(self.every_seconds):
            self.show(self.pass_status("test", batch_idx + 1, trainer.num_test_batches))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.close()

    # what to show
    def _show_training(self, trainer: Trainer) -> None:
        status = self.training_status(trainer)
        if (status.head, status.details) != self._last:  # the end of training often follows a validation
            self.show(status)
        self._last = status.head, status.details

    def training_status(self, trainer: Trainer) -> Status:
        share = trainer.global_step / self._total_steps if 0 < self._total_steps < math.inf else None
        details = (*self._metric_texts(trainer), *_speed_texts(trainer))
        return Status(head=self._head(trainer), share=share, details=details, times=self._times(trainer))

    def pass_status(self, name: str, done: int, batches: Any) -> Status:
        total = sum(batches) if isinstance(batches, list) else batches
        times = f"elapsed {duration(self.clock() - self._started)}"
        return Status(head=count(name, done, total), share=min(done / total, 1.0), details=(), times=times)

    def _head(self, trainer: Trainer) -> str:
        if trainer.max_steps == -1 and trainer.max_epochs not in (None, -1):
            return count("epoch", min(trainer.current_epoch + 1, trainer.max_epochs), trainer.max_epochs)
        return count("step", trainer.global_step, self._total_steps)

    def _metric_texts(self, trainer: Trainer) -> list[str]:
        values = trainer.callback_metrics
        return [f"{name} {number(float(values[name]))}" for name in self.metrics if name in values]

    def _times(self, trainer: Trainer) -> str:
        elapsed = self.clock() - self._started
        done = trainer.global_step - self._first_step
        left = [elapsed / done * (self._total_steps - trainer.global_step)] if done else []
        left += [t for c in trainer.callbacks if isinstance(c, Timer) and (t := c.time_remaining()) is not None]  # type: ignore[attr-defined]
        soonest = min(left, default=math.inf)
        return f"elapsed {duration(elapsed)}" + (f"  left {duration(soonest)}" if soonest < math.inf else "")

    def _due(self, seconds: float) -> bool:
        now = self.clock()
        if not self._enabled or now - self._shown < seconds:
            return False
        self._shown = now
        return True


class PlainProgress(Progress):
    """Lines without control codes, for logs."""

    def show(self, status: Status) -> None:
        share = "" if status.share is None else f"{status.share:4.0%}"
        parts = (status.head, share, *status.details, status.times)
        print(printable("  ".join(part for part in parts if part)), flush=True)


class LiveProgress(Progress):
    """A bar that stays at the bottom of the terminal, with the metrics below it."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self._live: Any = None

    def show(self, status: Status) -> None:
        from rich.console import Group
        from rich.live import Live
        from rich.progress_bar import ProgressBar as Bar
        from rich.table import Table
        from rich.text import Text

        line = Table.grid(padding=(0, 2))
        share = "" if status.share is None else f"{status.share:.0%}"
        line.add_row(status.head, Bar(total=1.0, completed=status.share or 0.0, width=30), share, status.times)
        if self._live is None:
            self._live = Live(auto_refresh=False)
            self._live.start()
        self._live.update(Group(line, Text(printable("  ".join(status.details)), style="dim")), refresh=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _speed_texts(trainer: Trainer) -> list[str]:
    monitors = [c for c in trainer.callbacks if isinstance(c, Throughput) and c.seconds]  # type: ignore[attr-defined]
    return [f"{m.per_second:,.{0 if m.per_second >= 10 else 1}f} {m.unit}/s" for m in monitors]


def count(name: str, done: int, total: float) -> str:
    """`step   120/2400`, aligned so that lines stand below each other."""
    return f"{name} {done:>{len(str(total))}}/{total}" if total < math.inf else f"{name} {done}"


def number(value: float) -> str:
    """Four digits that count: 3.214, 0.9873, 12,345."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any: 0:52, 1:04:09."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
