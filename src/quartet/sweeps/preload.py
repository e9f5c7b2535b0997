"""Imported once, by the process from which the jobs of a sweep are forked (see pool.py), before anything else happens in it.

It ignores signals: Ctrl-C and a scheduler's SIGTERM reach everything that belongs to a sweep, and jobs that save a
checkpoint have to be waited for. Nothing here may touch a GPU or leave a thread behind that a fork does not know of
(OpenBLAS and jemalloc see to theirs). At its end the process does not take apart what it has imported.
"""

import atexit
import importlib
import os
import signal
from contextlib import suppress
from pathlib import Path

from quartet.cli import quiet_libraries
from quartet.interruption import SIGNALS

for signum in SIGNALS:
    signal.signal(signum, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked by the pool until here
atexit.register(lambda pid: os._exit(0) if os.getpid() == pid else None, os.getpid())

FOLDERS = ("callbacks", "data", "models", "tasks")  # a config names what it needs of them
LATE = (  # imported inside functions, because many runs do without
    "quartet.sampling",
    "quartet.sweeps.study",
    "quartet.train",
    "PIL.BmpImagePlugin",
    "PIL.GifImagePlugin",
    "PIL.JpegImagePlugin",
    "PIL.PpmImagePlugin",
    "fsspec.implementations.chained",
    "matplotlib.backends.backend_agg",
    "pandas",
    "pyarrow",
    "sklearn.datasets",
    "sklearn.preprocessing",
    "tensorboard.plugins.hparams.metadata",
    "torch.utils.serialization.config",
    "torch.utils.tensorboard",
    "torchvision.transforms.v2.functional",
)


def import_all() -> None:
    quiet_libraries()
    package = Path(__file__).parents[1]
    files = [path.relative_to(package) for folder in FOLDERS for path in (package / folder).rglob("[!_]*.py")]
    for name in (*(f"quartet.{'.'.join(file.with_suffix('').parts)}" for file in files), *LATE):
        with suppress(Exception):  # a job that needs it will say what is wrong
            importlib.import_module(name)


import_all()
