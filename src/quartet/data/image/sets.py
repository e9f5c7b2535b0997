"""Well-known sets of images: digits of scikit-learn, and three that torchvision reads and downloads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from quartet.data.base import user_path
from quartet.data.cache import cache_directory
from quartet.data.image.images import ImageData, LabelledImages
from quartet.say import say


@dataclass(frozen=True)
class Digits:
    """1,797 handwritten digits, 8×8 grey, inside scikit-learn (UCI, Alpaydin & Kaynak 1998)."""

    def load(self) -> LabelledImages:
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # ink counts 0 … 16
        return LabelledImages(images[:, None], digits.target, tuple(map(str, digits.target_names)))


class KnownSet(NamedTuple):
    """torchvision's name, the folder below `data.path`, the size of the download."""

    name: str
    folder: str
    megabytes: int


SETS = {
    "cifar10": KnownSet("CIFAR10", "cifar-10-batches-py", 170),  # Krizhevsky 2009, 60,000 in colour, 32×32
    "mnist": KnownSet("MNIST", "MNIST/raw", 12),  # LeCun et al. 1998, 70,000 grey, 28×28
    "fashion_mnist": KnownSet("FashionMNIST", "FashionMNIST/raw", 31),  # Xiao et al. 2017, arXiv:1708.07747
}


@dataclass(frozen=True)
class TorchvisionSet:
    """One of `SETS`, from the folder `path` or the cache; with `download` it is fetched if it is missing.

    Its official test part is kept. Raises FileNotFoundError that says what to type, ConnectionError if the download fails.
    """

    name: str
    path: str | None
    download: bool

    def load(self) -> LabelledImages:
        from torchvision import datasets

        known = SETS[self.name]
        root = str(cache_directory()) if self.path is None else user_path(self.path)
        own_copy = f"data.path=<the folder that holds {known.folder}>"
        parts: list[Any] = []
        # 1. Both official parts, downloaded if that is allowed
        for train in (True, False):
            try:
                parts.append(getattr(datasets, known.name)(root, train=train))
                continue
            except (RuntimeError, FileNotFoundError):
                if not self.download:
                    where = f"the cache, {root}" if self.path is None else f"data.path={self.path}"
                    raise FileNotFoundError(
                        f"{known.name} is not in {where} (or is damaged: {os.path.join(root, known.folder)}); "
                        f"add data.download=true to fetch {known.megabytes} MB, or {own_copy}"
                    ) from None
            say(f"fetching {known.name} into {root}")
            try:
                parts.append(getattr(datasets, known.name)(root, train=train, download=True))
            except (RuntimeError, OSError) as error:
                reason = " ".join(str(error).split())
                raise ConnectionError(
                    f"{known.name} cannot be fetched into {root}: {reason}; try again, or give a copy of your own: "
                    f"{own_copy}"
                ) from None
        # 2. One array of both, channels first
        images = np.concatenate([np.asarray(part.data) for part in parts])  # (N, H, W) or (N, H, W, 3)
        images = images[:, None] if images.ndim == 3 else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        labels = np.concatenate([np.asarray(part.targets) for part in parts])
        given = np.repeat(["train", "test"], [len(part) for part in parts])
        classes = tuple(name.split(" - ")[0] for name in parts[0].classes)  # MNIST says "0 - zero"
        return LabelledImages(images, labels, classes, given)


class TorchvisionData(ImageData):
    """The images of a `TorchvisionSet`; val is taken from the official training part."""

    def __init__(self, *, name: str, path: str | None, download: bool, **common: Any):
        super().__init__(source=TorchvisionSet(name, path, download), **common)
