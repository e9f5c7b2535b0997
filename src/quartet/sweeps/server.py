"""Imported by the process from which jobs are forked, before anything else: it ends when the sweep does.

Ctrl-C and a scheduler's SIGTERM go to everything that belongs to a sweep. The server stays, so that children which save a
checkpoint can still be waited for; they answer signals themselves. At its end it does not take apart what it has imported,
which takes a while and makes some libraries complain on the terminal.
"""

import atexit
import os
import signal

from quartet.interruption import SIGNALS

for signum in SIGNALS:
    signal.signal(signum, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # which the pool has blocked until here
atexit.register(lambda pid: os._exit(0) if os.getpid() == pid else None, os.getpid())
