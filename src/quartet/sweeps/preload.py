"""Imports, once for all jobs of a sweep, what they need: in the process from which they are forked (see pool.py).

Nothing here may touch a GPU or leave a thread behind that a fork does not know of (OpenBLAS and jemalloc see to theirs).
"""

import importlib
from contextlib import suppress
from pathlib import Path

from quartet.system.quiet import quiet_libraries

FOLDERS = ("callbacks", "data", "engine", "models", "tasks")  # a config names what it needs of them
LATE = (  # imported inside functions, because many runs do without
    "quartet.sampling",
    "quartet.sweeps.study",
    "quartet.commands.generate",
    "quartet.engine.fit",
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


quiet_libraries()
package = Path(__file__).parents[1]
files = [path.relative_to(package) for folder in FOLDERS for path in (package / folder).rglob("[!_]*.py")]
for name in (*(f"quartet.{'.'.join(file.with_suffix('').parts)}" for file in files), *LATE):
    with suppress(Exception):  # a job that needs it will say what is wrong
        importlib.import_module(name)
