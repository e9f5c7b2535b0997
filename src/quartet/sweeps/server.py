"""Imported first by the process from which the jobs of a sweep are forked: it ends when the sweep does, see pool.py.

It ignores signals: Ctrl-C and a scheduler's SIGTERM reach everything that belongs to a sweep, and jobs that save a
checkpoint have to be waited for. At its end it does not take apart what it has imported.
"""

import atexit
import os
import signal

from quartet.system.signals import SIGNALS

for signum in SIGNALS:
    signal.signal(signum, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked by the pool until here
atexit.register(lambda pid: os._exit(0) if os.getpid() == pid else None, os.getpid())
