"""Images in files: seconds until they can be trained on, and whether the loader outruns the smallest network.

    python benchmarks/image_input.py                      50,000 JPEG files of 32×32, made in a temporary folder
    python benchmarks/image_input.py data.path=photos/    your own; other data.… keys as in conf/data/image_folder.yaml

Held in memory, mapped from a cache (a temporary one: the first start decodes, the second does not), and decoded by worker
processes. The network is the compact one with a single stage of four channels, trained with SGD: hardly anything that
learns is faster. Augmentation is crop and flip. Wanted: 50,000 images within 30 seconds, ten times the samples of the
network.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from quartet import build
from quartet.models.image import SmallResNet

CONFIG = Path(__file__).parents[1] / "conf/data/image_folder.yaml"
N_IMAGES, N_CLASSES, SIZE = 50_000, 10, 32
ROUNDS, PATIENCE = 5, 1.0  # loaders and network take turns, so many seconds each; the median counts


def write_class(folder: str, label: int) -> None:
    """Smooth random colours with some noise, so that the files are as large as those of photographs (1 kB)."""
    random = np.random.default_rng(label)
    os.makedirs(f"{folder}/{label}")
    for i in range(N_IMAGES // N_CLASSES):
        coarse = Image.fromarray(random.integers(256, size=(6, 6, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = (smooth + random.integers(-12, 13, size=smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(f"{folder}/{label}/{i:05}.jpg", quality=80)


@contextlib.contextmanager
def images() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor() as pool:
        list(pool.map(write_class, [folder] * N_CLASSES, range(N_CLASSES)))
        yield folder


def load(arguments: list[str]) -> Any:
    config = OmegaConf.create({"seed": 0, "data": OmegaConf.load(CONFIG)})
    del config.data["defaults"]
    augment = ["data.augment.crop=4", "data.augment.flip=true"]
    return build.build_data(OmegaConf.merge(config, OmegaConf.from_dotlist([*augment, *arguments])))  # type: ignore


def rate(batches: Iterable[int]) -> float:
    """Samples a second; the first batch, which waits for imports and workers, is left out."""
    samples, start = 0, 0.0
    for n in batches:
        if not start:
            start = time.perf_counter()
            continue
        samples += n
        if time.perf_counter() - start > PATIENCE:
            break
    return samples / (time.perf_counter() - start)


def epochs(loader: Any) -> Iterator[dict[str, Any]]:
    while True:
        yield from loader


def augmented(data: Any) -> Iterator[int]:
    """The sizes of batches that are ready for the network."""
    for batch in epochs(data.train_dataloader()):
        yield len(data.on_after_batch_transfer(batch, 0)["target"])


def trained(data: Any) -> Iterator[int]:
    """The sizes of batches that the smallest network has learned from, the same one again and again."""
    sizes = data.spec.sizes
    network = SmallResNet(**sizes, widths=[4], dropout=0.0, logit_scale=0.125, channels_last=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    while True:
        loss = torch.nn.functional.cross_entropy(network(**batch["inputs"]), batch["target"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield len(batch["target"])


class Training:
    """Stands for the trainer, so that batches are augmented."""

    training, world_size, global_rank = True, 1, 0
    strategy = type("Strategy", (), {"root_device": torch.device("cpu")})


STORES = {
    "memory": [],
    "map": ["data.memory_gb=0"],
    "workers": ["data.memory_gb=0", "data.disk_gb=0"],
}


def start(arguments: list[str]) -> tuple[Any, float]:
    data = load(arguments)
    begin = time.perf_counter()
    data.setup()
    data.trainer = Training()
    return data, time.perf_counter() - begin


def measure(arguments: list[str]) -> None:
    seconds, loaders = {}, {}
    for store, limits in STORES.items():
        (_, first), (data, second) = start([*arguments, *limits]), start([*arguments, *limits])
        seconds[store], loaders[store] = (first, second), augmented(data)
    steps = trained(data)
    rounds = [[rate(batches) for batches in [*loaders.values(), steps]] for _ in range(ROUNDS)]
    *rates, network = np.median(rounds, axis=0)
    ratios = np.median([np.divide(x[:-1], x[-1]) for x in rounds], axis=0)
    print(f"smallest network in training: {network:,.0f} samples/s, {torch.get_num_threads()} threads")
    print(f"{'store':<10}{'first start':>13}{'second start':>14}{'augmented':>20}{'ratio':>8}")
    for (store, (first, second)), loading, ratio in zip(seconds.items(), rates, ratios, strict=True):
        print(f"{store:<10}{first:>11.1f} s{second:>12.1f} s{loading:>10,.0f} samples/s{ratio:>8.1f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ["QUARTET_CACHE"] = cache
        if any(argument.startswith("data.path=") for argument in sys.argv[1:]):
            measure(sys.argv[1:])
        else:
            with images() as folder:
                measure([*sys.argv[1:], f"data.path={folder}"])
