"""Well-known sets of pictures, read and downloaded by torchvision; their official test part is kept."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from quartet.data.base import user_path
from quartet.data.cache import cache_directory
from quartet.data.images import ImageData, Pictures
from quartet.say import say


@dataclass(frozen=True)
class Known:
    """What torchvision calls a set, where it lies below `data.path`, how much is downloaded."""

    name: str
    folder: str
    megabytes: int


SETS = {
    "cifar10": Known("CIFAR10", "cifar-10-batches-py", 170),  # Krizhevsky 2009, 60,000 in colour, 32×32
    "mnist": Known("MNIST", os.path.join("MNIST", "raw"), 12),  # LeCun et al. 1998, 70,000 grey, 28×28
    "fashion_mnist": Known(
        "FashionMNIST", os.path.join("FashionMNIST", "raw"), 31
    ),  # Xiao et al. 2017, arXiv:1708.07747
}


@dataclass(frozen=True)
class TorchvisionSet:
    """One of `SETS`, from the folder `path` or the cache; with `download` it is fetched where it is not there.

    Raises FileNotFoundError that says what to type, ConnectionError where the download fails.
    """

    name: str
    path: str | None
    download: bool

    def load(self) -> Pictures:
        train, test = self._read(train=True), self._read(train=False)
        images = np.concatenate([_channels_first(part.data) for part in (train, test)])
        labels = np.concatenate([np.asarray(part.targets) for part in (train, test)])
        given = np.repeat(["train", "test"], [len(train), len(test)])
        return Pictures(images, labels, tuple(name.split(" - ")[0] for name in train.classes), given)  # "0 - zero"

    @property
    def root(self) -> str:
        return str(cache_directory()) if self.path is None else user_path(self.path)

    def _read(self, *, train: bool) -> Any:
        from torchvision import datasets

        read = getattr(datasets, SETS[self.name].name)
        try:
            return read(self.root, train=train)
        except (RuntimeError, FileNotFoundError):
            if not self.download:
                raise FileNotFoundError(self._remedy()) from None
        say(f"fetching {SETS[self.name].name} into {self.root}")
        try:
            return read(self.root, train=train, download=True)
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())
            known = SETS[self.name]
            raise ConnectionError(
                f"{known.name} cannot be fetched into {self.root}: {reason}; try again, or give a copy of your own: "
                f"data.path=<the folder that holds {known.folder}>"
            ) from None

    def _remedy(self) -> str:
        known = SETS[self.name]
        where = f"data.path={self.path}" if self.path is not None else f"the cache, {self.root}"
        return (
            f"{known.name} is not in {where} (or is damaged: {os.path.join(self.root, known.folder)}); add "
            f"data.download=true to fetch {known.megabytes} MB, or data.path=<the folder that holds {known.folder}>"
        )


class TorchvisionData(ImageData):
    """The pictures of a `TorchvisionSet`; what is split off is taken of the official training part."""

    def __init__(self, *, name: str, path: str | None, download: bool, **common: Any):
        super().__init__(source=TorchvisionSet(name, path, download), **common)


def _channels_first(data: Any) -> np.ndarray:
    """(N, H, W) or (N, H, W, 3), an array or a tensor, to (N, C, H, W)."""
    images = np.asarray(data)
    return images[:, None] if images.ndim == 3 else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
