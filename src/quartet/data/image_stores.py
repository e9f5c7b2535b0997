"""Where pictures are held: in memory, in a file of the cache that is mapped, or as files that workers decode in training.

Each store takes the pictures of a part and gives the same batches in the same order. Decoding is done by threads: PIL
lets other threads run meanwhile.

Letters: N pictures, B batch, C channels (1 grey, 3 RGB), S side in pixels.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import PIL
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from quartet.data.cache import Cache, Mapped
from quartet.data.image_folders import Look, PictureFile, Problems, in_threads
from quartet.data.images import Examples, Pictures, Span, moments, to_uint8
from quartet.data.memory import Batch, MemoryLoader
from quartet.say import say

PICTURES = Cache("pictures", version=2, room="as much as the decoded pictures take; data.disk_gb=0 does without")
FORGET_AFTER = 2**30  # bytes read from a map before its pages are given back; to touch them again costs time

Store = Callable[[list[PictureFile]], tuple[Examples, Problems]]  # the pictures, without those that cannot be decoded


@dataclass(frozen=True)
class Form:
    """What every picture becomes: (C, S, S), with a label among `classes`; `span` as of `to_uint8`."""

    classes: tuple[str, ...]
    channels: int
    size: int
    span: Span | None = None

    @property
    def n_bytes(self) -> int:
        return self.channels * self.size**2

    def read(self, path: str) -> np.ndarray:
        return to_uint8(path, self.channels, self.size, self.span)

    def empty(self, n: int) -> np.ndarray:
        return np.empty((n, self.channels, self.size, self.size), dtype=np.uint8)

    def labels(self, files: list[PictureFile]) -> np.ndarray:
        number = {label: i for i, label in enumerate(self.classes)}
        return np.array([number[file.label] for file in files], dtype=np.int64)


def decode(files: list[PictureFile], form: Form, keep: Callable[[int, np.ndarray], object], done: str) -> Problems:
    """`keep` gets the place of each file and its picture, in no order."""
    place = {file: i for i, file in enumerate(files)}
    return in_threads(lambda file: keep(place[file], form.read(file.path)), files, done)


def in_memory(form: Form) -> Store:
    def store(files: list[PictureFile]) -> tuple[Examples, Problems]:
        images = form.empty(len(files))
        problems = decode(files, form, images.__setitem__, "decoded")
        good = [i for i, file in enumerate(files) if file not in problems]
        labels = form.labels([files[i] for i in good])
        return Pictures(images[good] if problems else images, labels, form.classes), problems

    return store


def in_files(form: Form) -> Store:
    """Each is decoded once, to be sure that it can be."""

    def store(files: list[PictureFile]) -> tuple[Examples, Problems]:
        sums = np.zeros((len(files), form.channels, 2), dtype=np.int64)

        def keep(i: int, image: np.ndarray) -> None:
            sums[i] = moments(image[None])[0]

        problems = decode(files, form, keep, "checked")
        good = [file for file in files if file not in problems]
        read = Files([file.path for file in good], form)
        return StoredPictures(read, form.labels(good), form, sums.sum(0)), problems

    return store


def in_map(
    form: Form, files: list[PictureFile], looks: dict[PictureFile, Look], check: Callable[[Problems], None], path: str
) -> Store:
    """All `files`, whatever their part, are decoded once into a file of the cache; `check` may refuse the problems.

    It holds the pictures, (N, C, S, S), then their moments as npy, then [place, why] of the undecodable ones as JSON.
    """
    n_bytes, place = len(files) * form.n_bytes, {file: i for i, file in enumerate(files)}

    def write(file: BinaryIO) -> None:
        say(f"first use of {path}: decoding it into {PICTURES.path}, {n_bytes / 1e9:,.2f} GB, once")
        sums, lock = np.zeros((len(files), form.channels, 2), dtype=np.int64), threading.Lock()

        def keep(i: int, image: np.ndarray) -> None:
            sums[i] = moments(image[None])[0]
            with lock:
                file.seek(i * form.n_bytes)
                file.write(image.tobytes())

        problems = decode(files, form, keep, "decoded")
        check(problems)
        file.seek(n_bytes)
        np.save(file, sums)
        file.write(json.dumps([[place[bad], why] for bad, why in problems.items()]).encode())

    contents = hashlib.sha256(b"".join(looks[file].digest for file in files)).hexdigest()
    name = PICTURES.key("uint8", contents, form.channels, form.size, form.span, PIL.__version__)
    cached = PICTURES.made(name, write, n_bytes)
    with open(cached, "rb") as file:
        file.seek(n_bytes)
        sums, undecodable = np.load(file), {files[i]: why for i, why in json.load(file)}
    mapped = Mapped(cached, FORGET_AFTER)
    images = mapped.tensor(torch.uint8, n_bytes).view(-1, form.channels, form.size, form.size)

    def store(files: list[PictureFile]) -> tuple[Examples, Problems]:
        good = [file for file in files if file not in undecodable]
        rows = torch.tensor([place[file] for file in good], dtype=torch.int64)
        stored = StoredPictures(Rows(mapped, images, rows), form.labels(good), form, sums[rows.numpy()].sum(0))
        return stored, {file: undecodable[file] for file in files if file in undecodable}

    return store


# batches


class Files:
    """Pictures by their place in `paths`, decoded: (B,) -> (B, C, S, S)."""

    def __init__(self, paths: list[str], form: Form):
        self.paths, self.form = paths, form

    def __call__(self, ids: Tensor) -> Tensor:
        images = self.form.empty(len(ids))
        for i, place in enumerate(ids.tolist()):
            images[i] = self.form.read(self.paths[place])
        return torch.from_numpy(images)


class Rows:
    """Pictures by their place in `rows` of the mapped `images`: (B,) -> (B, C, S, S)."""

    def __init__(self, mapped: Mapped, images: Tensor, rows: Tensor):
        self.mapped, self.images, self.rows = mapped, images, rows

    def __call__(self, ids: Tensor) -> Tensor:
        images = self.images.index_select(0, self.rows.index_select(0, ids))
        self.mapped.count(images.nbytes)
        return images


@dataclass(frozen=True)
class StoredPictures:
    """Pictures that `read` brings into memory when a batch asks for them; `sums` (C, 2) are their moments."""

    read: Files | Rows
    labels: np.ndarray
    form: Form
    sums: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.form.classes

    @property
    def sizes(self) -> tuple[int, int]:
        return self.form.channels, self.form.size

    def moments(self) -> np.ndarray:
        return self.sums

    def dataset(self) -> StoredPictures:
        return self

    def gather(self, ids: Tensor) -> Batch:
        ids = ids.cpu()
        return {
            "inputs": {"image": self.read(ids)},
            "target": torch.from_numpy(self.labels).index_select(0, ids),
            "index": ids,
        }

    def to(self, device: torch.device) -> StoredPictures:
        return self  # batches are moved, by Lightning


class WorkerLoader(MemoryLoader):
    """The batches of a loader, made by worker processes ahead of time; 0 workers: by this process."""

    def __init__(self, loader: MemoryLoader, n_workers: int):
        super().__init__(
            loader.dataset,
            batch_size=loader.batch_size,
            order=loader.order,
            drop_last=loader.drop_last,
            rank=loader.rank,
            world=loader.world,
            window=loader.window,
        )
        self.n_workers = n_workers

    def batches(self, ids: Iterator[Tensor]) -> Iterator[Batch]:
        return iter(
            DataLoader(
                _Gathered(self.dataset),  # type: ignore[arg-type]
                sampler=[batch.tolist() for batch in ids],
                batch_size=None,  # a sample of the data loader is a batch of ours
                num_workers=self.n_workers,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator(),  # the global one is for augmentation: a resumed run must find it as it was
            )
        )


@dataclass(frozen=True)
class _Gathered:
    """A data set whose sample number `ids` is a batch."""

    dataset: Any

    def __getitem__(self, ids: list[int]) -> Batch:
        return self.dataset.gather(torch.tensor(ids))
