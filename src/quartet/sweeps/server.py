"""Imported by the process from which jobs are forked, before anything else: it ends when the sweep does.

A scheduler sends SIGTERM to everything that belongs to it. The server stays, so that children which save a checkpoint can
still be waited for; they answer the signal themselves. At its end it does not take apart what it has imported, which
takes a while and makes some libraries complain on the terminal.
"""

import atexit
import os
import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
atexit.register(lambda pid: os._exit(0) if os.getpid() == pid else None, os.getpid())
