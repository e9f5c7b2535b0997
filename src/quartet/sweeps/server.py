"""Imported by the process from which jobs are forked, before anything else: it ends when the sweep does.

A scheduler sends SIGTERM to everything that belongs to it. The server stays, so that children which save a checkpoint can
still be waited for; they answer the signal themselves.
"""

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
