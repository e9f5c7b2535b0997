"""What a job imports, once for all jobs of a sweep: imported by the process from which they are forked.

Nothing here may touch a GPU or leave a thread that a fork does not know of (OpenBLAS and jemalloc see to theirs).
"""

import importlib
import pkgutil
from contextlib import suppress

import quartet.callbacks
import quartet.data
import quartet.models
import quartet.tasks
from quartet.cli import quiet_libraries

FOLDERS = (quartet.callbacks, quartet.data, quartet.models, quartet.tasks)  # a config names what it takes of them
LATE = (  # what is imported within functions, because many runs do without
    "quartet.sampling",
    "quartet.sweeps.job",
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

quiet_libraries()
ours = (found.name for package in FOLDERS for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."))
for name in (*ours, *LATE):
    with suppress(Exception):  # a job that needs it will say what is wrong
        importlib.import_module(name)
