"""A signal from outside: Ctrl-C, a scheduler that takes the machine back. Imports no torch.

While a network trains the signal is only noted; training stops at the next place from which it can go on exactly
(`deferred`). Anywhere else it stops the process at once. A second Ctrl-C always does.
"""

from __future__ import annotations

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

    def receive(self, signum: int, frame: FrameType | None) -> None:
        first, self.signum = self.signum is None, self.signum or signum
        if not self.deferred or (signum == signal.SIGINT and not first):
            raise Interrupted(self.signum)
        if first:
            print("\nstopping after this step, with a checkpoint; Ctrl-C once more stops at once", file=sys.stderr)

    def listen(self) -> None:
        """Make this the answer to both signals; libraries put their own handlers in place and this one back."""
        for signum in SIGNALS:
            signal.signal(signum, self.receive)


@contextmanager
def stoppable() -> Iterator[StopRequest]:
    """Both signals end in a `StopRequest`; their former handlers are back afterwards."""
    request = StopRequest()
    former = {signum: signal.getsignal(signum) for signum in SIGNALS}
    request.listen()
    try:
        yield request
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)
