"""What a job imports, once for all jobs of a sweep: imported by the process from which they are forked.

Nothing here may start a thread or touch a GPU: neither survives a fork.
"""

import importlib
from contextlib import suppress

from quartet.cli import quiet_libraries

MODULES = (
    "quartet.sweeps.job",
    "quartet.launch",
    "quartet.train",
)

quiet_libraries()
for name in MODULES:
    with suppress(Exception):  # a job that needs it will say what is wrong
        importlib.import_module(name)
