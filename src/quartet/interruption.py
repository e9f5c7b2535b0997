"""A signal from outside: Ctrl-C, a scheduler that takes the machine back. Imports no torch.

While a network trains the signal is only noted; training stops at the next place from which it can go on exactly
(`request.deferred`). Anywhere else it stops the process at once. A second Ctrl-C always does.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """The process was asked to stop by `signum`; no Exception, so that nothing takes it for a failure."""

    def __init__(self, signum: int):
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM, as shells have it."""
        return 128 + self.signum


class StopRequest:
    """The signal that came, if any; `deferred` while somebody looks at it regularly."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.deferred = False
        self.notice = "stopping after this step, with a checkpoint; Ctrl-C stops at once"

    def receive(self, signum: int, frame: FrameType | None) -> None:
        again = self.signum is not None
        self.signum = self.signum or signum
        if not self.deferred or (again and signum == signal.SIGINT):
            raise Interrupted(self.signum)
        if not again and os.environ.get("RANK", "0") == "0":
            print(f"\n{self.notice}", file=sys.stderr, flush=True)

    def listen(self) -> None:
        """Answer both signals from now on: libraries put handlers of their own in this one's place."""
        for signum in SIGNALS:
            signal.signal(signum, self.receive)


request = StopRequest()  # signals belong to the process, and so does this


@contextmanager
def stoppable() -> Iterator[StopRequest]:
    """Both signals become a `request`; their former handlers are back afterwards."""
    former = {signum: signal.getsignal(signum) for signum in SIGNALS}
    request.__init__()
    request.listen()
    try:
        yield request
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)
