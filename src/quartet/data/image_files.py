"""The user's own pictures: one folder for each class, with or without `train/`, `val/` and `test/` above them.

What `image_folders` finds is split. What fits into `memory_gb` is decoded once into memory, by threads: PIL lets other
threads run while it decodes. What does not is checked once, and decoded by worker processes in training: the same batches
in the same order.

Letters: N pictures, B batch, C channels (1 grey, 3 RGB), S side in pixels.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from quartet.data.image_folders import (
    Copies,
    Look,
    PictureFile,
    Problems,
    check_classes,
    check_trained,
    counted,
    find_copies,
    fingerprint,
    in_threads,
    list_files,
    look_at,
    n_cores,
    named,
    undecodable,
)
from quartet.data.images import MODES, Examples, PictureData, Pictures, class_counts, histogram, to_uint8
from quartet.data.memory import Batch, MemoryLoader, Order
from quartet.say import say

LARGEST_FOUND = 128  # pixels: larger pictures train slowly, their size must be asked for
USUAL_SIZE = 64  # pixels, for pictures of several sizes


class FolderData(PictureData):
    """Pictures in one folder for each class; folders above them that are named like parts (see `PART_NAMES`) are kept.

    - `image_size`: side in pixels; None takes the side that all training pictures share, if they are squares of at most
      `LARGEST_FOUND`, else `USUAL_SIZE`
    - `channels`: 1, 3 or "auto": 1 where all training pictures are grey by their format
    - `memory_gb`: most that the decoded pictures may take in memory, in 10⁹ bytes; more are decoded in training
    - `num_workers`: processes that do so; 0 is the training process itself, None one less than there are cores
    - `on_corrupt`: "error" names the pictures that cannot be read or are a single pixel, "skip" leaves them out
    - `on_overlap`: "error" names pictures that are in two parts or in two classes; "drop" leaves out the copy in train
      (of val and test: in val), and all copies where the classes differ

    A picture that is in train (or in a tree that is to be split) more than once counts once. The size and the channels
    are found in the training part alone.
    """

    def __init__(
        self,
        *,
        path: str | None,
        image_size: int | None,
        channels: int | str,
        memory_gb: float,
        num_workers: int | None,
        on_corrupt: str,
        on_overlap: str,
        **common: Any,
    ):
        super().__init__(**common)
        settings: dict[str, Any] = {"image_size": image_size, "channels": channels, "memory_gb": memory_gb}
        settings |= {"path": path, "num_workers": num_workers, "on_corrupt": on_corrupt, "on_overlap": on_overlap}
        problems = self.problems(settings)
        if problems or path is None:
            raise ValueError("\n".join(problems))
        self.path, self.image_size, self.channels = path, image_size, channels
        self.memory_gb, self.num_workers = memory_gb, num_workers
        self.on_corrupt, self.on_overlap = on_corrupt, on_overlap

    @staticmethod
    def problems(settings: dict[str, Any]) -> list[str]:
        problems = PictureData.problems(settings)
        if settings.get("path", "") is None:
            problems.append("data.path: say where your pictures are, data.path=<folder with one folder for each class>")
        for name, least in {"image_size": 1, "memory_gb": 0, "num_workers": 0}.items():
            value = settings.get(name)
            if isinstance(value, int | float) and value < least:
                problems.append(f"data.{name} must be {least} or more, not {value}")
        allowed = {"channels": ["auto", *MODES], "on_corrupt": ["error", "skip"], "on_overlap": ["error", "drop"]}
        for name, choices in allowed.items():
            if settings.get(name, choices[0]) not in choices:
                problems.append(f"data.{name} must be one of {', '.join(map(str, choices))}, not {settings[name]!r}")
        return problems

    def read(self) -> tuple[dict[str, Examples], str]:
        try:
            return self._read()
        except PermissionError as error:
            raise PermissionError(
                f"no permission to read {error.filename or 'a file'} in data.path={self.path}; "
                "allow it (chmod -R u+rX) or take it out"
            ) from None

    def _read(self) -> tuple[dict[str, Examples], str]:
        files, ignored = list_files(self.path)
        looks, unreadable = look_at(files)
        if unreadable and self.on_corrupt == "error":
            unreadable |= undecodable([*looks])  # so that all are named at once
        self._refuse(unreadable)
        copies = find_copies(looks)
        if self.on_overlap == "error":
            copies.refuse(self.path)
        parts = self._split([file for file in looks if file not in copies.left_out])
        channels, size = self._sizes([looks[file] for file in parts["train"]])
        examples, failed = self._decode(parts, channels, size)
        self._refuse(failed)
        check_trained(examples["train"], self.path)
        self._take_note(ignored, unreadable | failed, copies, isinstance(examples["train"], Pictures))
        return examples, fingerprint(files, looks)

    def _split(self, files: list[PictureFile]) -> dict[str, list[PictureFile]]:
        check_classes(files, self.path)
        given = [file.part for file in files] if files[0].part else None
        places = self.split.assign(len(files), labels=[file.label for file in files], given=given)
        return {part: [files[i] for i in ids] for part, ids in places.items()}

    def _sizes(self, train: list[Look]) -> tuple[int, int]:
        """C and S; those of the run where the module is restored."""
        if self._preprocessing is not None:
            return self.spec.sizes["in_channels"], self.spec.sizes["image_size"]
        channels = self.channels if isinstance(self.channels, int) else 1 if all(look.grey for look in train) else 3
        if self.image_size is not None:
            return channels, self.image_size
        sides = {side for look in train for side in look.size}
        if len(sides) == 1 and max(sides) <= LARGEST_FOUND:
            return channels, max(sides)
        say(f"pictures are brought to {USUAL_SIZE}×{USUAL_SIZE}; data.image_size=<pixels> says otherwise")
        return channels, USUAL_SIZE

    def _decode(
        self, parts: dict[str, list[PictureFile]], channels: int, size: int
    ) -> tuple[dict[str, Examples], Problems]:
        """The pictures of each part without those that cannot be decoded; sets `ids`."""
        in_memory = sum(map(len, parts.values())) * channels * size**2 <= self.memory_gb * 1e9
        classes = tuple(sorted({file.label for files in parts.values() for file in files}))
        examples, failed = {}, {}
        for part, files in parts.items():
            examples[part], problems = (decode if in_memory else verify)(files, classes, channels, size)
            self.ids[part] = [file.name for file in files if file not in problems]
            failed |= problems
        self._class_counts = {part: class_counts(pictures) for part, pictures in examples.items()}
        return examples, failed

    def _refuse(self, unreadable: Problems) -> None:
        if unreadable and self.on_corrupt == "error":
            raise ValueError(
                f"{counted(len(unreadable), 'picture')} in data.path={self.path} cannot be read: "
                f"{named([f'{file.name} ({why})' for file, why in unreadable.items()])}; "
                "repair or delete, or leave out with data.on_corrupt=skip"
            )

    def _take_note(self, ignored: int, unreadable: Problems, copies: Copies, in_memory: bool) -> None:
        """For the report; what was left out is printed too."""
        names = named([f"{file.name} ({why})" for file, why in unreadable.items()])
        told = {
            "left out, no pictures or in no class folder": ignored,
            f"left out, cannot be read: {names}": len(unreadable),
            "left out of train (or val), another part has the same picture": len(copies.overlapping),
            "left out, the same picture is in two classes": len(copies.contradicting),
            "left out of train, repeated": len(copies.repeated),
        }
        self._notes = [f"{counted(n, 'file')} {what}" for what, n in told.items() if n]
        for note in self._notes:
            say(note)
        if not in_memory:
            self._notes.append(f"decoded in training: more than data.memory_gb={self.memory_gb}")

    # batches
    def _loader(self, part: str, order: Order, *, drop_last: bool) -> MemoryLoader:
        loader = super()._loader(part, order, drop_last=drop_last)
        if not isinstance(loader.dataset, PictureFiles):
            return loader
        n_workers = max(1, n_cores() // self.world - 1) if self.num_workers is None else self.num_workers
        return WorkerLoader(loader, n_workers)


# decoding


def decode(files: list[PictureFile], classes: tuple[str, ...], channels: int, size: int) -> tuple[Pictures, Problems]:
    """The pictures in memory, without those that cannot be decoded."""
    images = np.empty((len(files), channels, size, size), dtype=np.uint8)
    place = {file: i for i, file in enumerate(files)}

    def work(file: PictureFile) -> None:
        images[place[file]] = to_uint8(file.path, channels, size)

    problems = in_threads(work, files, "decoded")
    if problems:
        images = images[[i for i, file in enumerate(files) if file not in problems]]
    return Pictures(images, _labels(files, classes, problems), classes), problems


def verify(
    files: list[PictureFile], classes: tuple[str, ...], channels: int, size: int
) -> tuple[PictureFiles, Problems]:
    """The pictures as files, without those that cannot be decoded; each was decoded once and counted."""
    counts, lock = np.zeros((channels, 256), dtype=np.int64), threading.Lock()

    def work(file: PictureFile) -> None:
        of_picture = histogram(to_uint8(file.path, channels, size)[None])
        with lock:
            np.add(counts, of_picture, out=counts)

    problems = in_threads(work, files, "checked")
    paths = [file.path for file in files if file not in problems]
    return PictureFiles(paths, _labels(files, classes, problems), classes, (channels, size), counts), problems


def _labels(files: list[PictureFile], classes: tuple[str, ...], problems: Problems) -> np.ndarray:
    number = {label: i for i, label in enumerate(classes)}
    return np.array([number[file.label] for file in files if file not in problems], dtype=np.int64)


@dataclass(frozen=True)
class PictureFiles:
    """Pictures that are decoded when a batch asks for them: `sizes` is C and S, `counts` (C, 256) their histogram."""

    paths: list[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    sizes: tuple[int, int]
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def histogram(self) -> np.ndarray:
        return self.counts

    def dataset(self) -> PictureFiles:
        return self

    def gather(self, ids: Tensor) -> Batch:
        channels, size = self.sizes
        images = np.empty((len(ids), channels, size, size), dtype=np.uint8)
        for i, place in enumerate(ids.tolist()):
            images[i] = to_uint8(self.paths[place], channels, size)
        target = torch.from_numpy(self.labels[ids.cpu().numpy()])
        return {"inputs": {"image": torch.from_numpy(images)}, "target": target, "index": ids}

    def to(self, device: torch.device) -> PictureFiles:
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
