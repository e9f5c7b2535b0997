"""What a job imports, once for all jobs of a sweep: imported by the process from which they are forked.

Nothing here may touch a GPU or leave a thread that a fork does not know of (OpenBLAS and jemalloc see to theirs).
"""

import importlib
from contextlib import suppress
from pathlib import Path

from quartet.cli import quiet_libraries

FOLDERS = ("callbacks", "data", "models", "tasks")  # a config names what it takes of them
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
package = Path(__file__).parents[1]
ours = [f"quartet.{folder}.{path.stem}" for folder in FOLDERS for path in (package / folder).glob("[!_]*.py")]
for name in (*ours, *LATE):
    with suppress(Exception):  # a job that needs it will say what is wrong
        importlib.import_module(name)
