"""A signal from outside: Ctrl-C, a scheduler that takes the machine back. Imports no torch.

While a network trains the signal is only noted; training stops at the next place from which it can resume exactly
(`request.deferred`). Anywhere else it stops the process at once. A second Ctrl-C always does.

In a job that submitit has handed to SLURM there is one signal more, by which submitit learns that the job's time is over:
it stops training like the others; submitit then learns of it and queues the job again. SIGTERM only makes a checkpoint
there: SLURM kills a preempted job later and starts it again itself, but not one that has ended by then.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXECUTOR, NOTICE = "SUBMITIT_EXECUTOR", "SUBMITIT_PREEMPT_SIGNAL"  # in the environment of submitit's jobs


def signals() -> tuple[signal.Signals, ...]:
    """Those that are answered here."""
    if EXECUTOR not in os.environ:
        return SIGNALS
    return (*SIGNALS, signal.Signals[f"SIG{os.environ.get(NOTICE, 'USR2')}"])


def stopping() -> tuple[signal.Signals, ...]:
    """Those that end training."""
    kept = os.environ.get(EXECUTOR) == "slurm"
    return tuple(signum for signum in signals() if not (kept and signum == signal.SIGTERM))


class Interrupted(BaseException):
    """The process was asked to stop by `signum`; no Exception, so that nothing takes it for a failure."""

    def __init__(self, signum: int):
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM and so on, as shells have it."""
        return 128 + self.signum


class StopRequest:
    """The signal that came, if any; `deferred` while somebody looks at it regularly. `save`: a checkpoint is wanted."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.deferred = self.save = False
        self.notice = "stopping after this step, with a checkpoint; Ctrl-C stops at once"

    def receive(self, signum: int, frame: FrameType | None) -> None:
        if signum not in stopping():
            self.save = True
            return
        # at once: nobody looks at the request, or Ctrl-C came again; else say on rank 0 that it was heard
        again = self.signum is not None
        self.signum = self.signum or signum
        if not self.deferred or (again and signum == signal.SIGINT):
            raise Interrupted(self.signum)
        if not again and os.environ.get("RANK", "0") == "0":
            print(f"\n{self.notice}", file=sys.stderr, flush=True)

    def listen(self) -> None:
        """Answer the signals from now on: libraries put handlers of their own in this one's place."""
        for signum in signals():
            signal.signal(signum, self.receive)


request = StopRequest()  # signals belong to the process, and so does this


@contextmanager
def stoppable() -> Iterator[StopRequest]:
    """Signals become a `request`; their former handlers are back afterwards, and submitit's hears of its signal then."""
    former = {signum: signal.getsignal(signum) for signum in signals()}
    request.__init__()
    request.listen()
    try:
        yield request
    except Interrupted as stop:
        # submitit's handler ends the process, in the first of several workers
        _restore(former)
        handler = former.get(signal.Signals(stop.signum))
        if stop.signum not in SIGNALS and callable(handler) and handler != request.receive:
            handler(stop.signum, None)
        raise
    finally:
        _restore(former)


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
