"""Data modules for images with one label each: uint8 until the device, normalised and augmented there in batches.

`ImageData` reads a source that is already in memory (see `sets.py`), `FolderData` the user's own files. `to_uint8` brings
every file to size, in training and in `encode`: an image looks the same to the network in both.

Letters: N images, B batch, C channels (1 grey, 3 RGB), S side in pixels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from quartet import signatures
from quartet.data.base import DataModule
from quartet.data.examples import STDIN, Examples, find_files
from quartet.data.image import decode, folders
from quartet.data.image.augment import Augment
from quartet.data.image.decode import ImageDataset, ImageFormat, ImageStore, to_uint8
from quartet.data.image.folders import ImageInfo, Problems, ValueRange, list_images, probe, run_in_threads
from quartet.data.memory import MemoryLoader, Order
from quartet.data.report import class_table
from quartet.data.spec import Spec
from quartet.data.splits import check_classes, check_duplicates, listed
from quartet.say import say
from quartet.signatures import NonNegativeFloat, NonNegativeInt, PositiveInt, Rule

N_STREAMED = 256  # images that are predicted together
NEARLY_FLAT = 0.02  # of white: images whose deviation is smaller are probably a mistake
LARGEST_FOUND = 128  # pixels: larger images train slowly, their size must be asked for
USUAL_SIZE = 64  # pixels, for images of several sizes
FolderOfClasses = Annotated[str, Rule("your folder with one folder of images for each class", bool)]


@dataclass(frozen=True)
class LabelledImages:
    """`images` (N, C, S, S) uint8, `labels` (N,) indices into `classes`, `given` (N,) the official parts, if any."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    given: np.ndarray | None = None

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.images.shape, self.classes)).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(self.labels.astype("<i8").tobytes())
        digest.update(b"" if self.given is None else " ".join(self.given).encode())
        return digest.hexdigest()


class ImageSource(Protocol):
    def load(self) -> LabelledImages: ...


def channel_statistics(moments: np.ndarray, n: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of n pixels, in units of 255.

    The moments (C, 2) are integers, so the result is exact and the same on every machine.
    """
    sums = moments.tolist()
    means = [total / n / 255 for total, _ in sums]
    return means, [math.sqrt(n * squares - total**2) / n / 255 for total, squares in sums]


class ImageDataModule(DataModule):
    """Labelled images; mean and standard deviation per channel come from the training part, which alone is augmented.

    Subclasses `read` them.
    """

    def __init__(self, *, augment: Augment, **common: Any):
        super().__init__(**common)
        self.augment = augment
        self.value_range: ValueRange | None = None
        self._notes: list[str] = []  # for the report: what reading left out

    @staticmethod
    def problems(settings: dict[str, Any]) -> list[str]:
        """What is wrong with data.augment, one sentence each; keys may be missing."""
        augment = settings.get("augment")
        given = {key: value for key, value in augment.items() if key != "_target_"} if isinstance(augment, dict) else {}
        return list(signatures.problems(Augment, given, "data.augment"))

    def fit(self, train: ImageDataset) -> dict[str, Any]:
        channels, size = train.store.format.channels, train.store.format.size
        mean, std = channel_statistics(train.moments, len(train) * size**2)
        # a set of one colour is a broken export; a nearly flat one may be meant
        if not any(std):
            raise ValueError(
                "the training images are all of one and the same colour; there is nothing to learn in them"
            )
        if max(std) < NEARLY_FLAT:
            say(f"the training images are nearly of one colour: deviation {max(std):.4f} of white; are they meant so?")
        spec = Spec(
            sizes={"in_channels": channels, "image_size": size, "n_classes": len(train.classes)},
            classes=train.classes,
            class_counts=tuple(train.class_counts),
        )
        return {"spec": spec.to_json(), "mean": mean, "std": [value or 1.0 for value in std], "span": self.value_range}

    def use(self, preprocessing: dict[str, Any]) -> None:
        """Raises ValueError for values that `fit` cannot have written: they may come from a damaged file."""
        channels, size = self.spec.sizes["in_channels"], self.spec.sizes["image_size"]
        if self.augment.crop >= size:
            raise ValueError(
                f"data.augment.crop={self.augment.crop} must be 0 … {size - 1} pixels for images of {size}×{size}"
            )
        self.mean = torch.tensor(preprocessing["mean"])[:, None, None]  # (C, 1, 1)
        self.std = torch.tensor(preprocessing["std"])[:, None, None]
        # older runs, from before images of 16 bits, have no range
        span = preprocessing.get("span")
        self.value_range = span and (float(span[0]), float(span[1]))
        if self.value_range and not self.value_range[0] < self.value_range[1]:
            raise ValueError("black is not below white")
        shape = (channels, 1, 1)
        if self.mean.shape != shape or self.std.shape != shape or not bool((self.std > 0).all()):
            raise ValueError("mean and std are not a number for each channel")

    def encode(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Images of any size, as `to_uint8` accepts them -> {"image": (B, C, S, S) normalised}."""
        return {"image": self.normalise(torch.from_numpy(self._format().read_in_threads(examples)))}

    def _format(self) -> ImageFormat:
        sizes = self.spec.sizes
        return ImageFormat(sizes["in_channels"], sizes["image_size"], self.value_range)

    def examples(self, source: str) -> Iterator[Examples]:
        """Images of a file, a folder or a glob; a folder on the way to an image that is called like a class labels it."""
        if source == STDIN:
            raise ValueError("input=-: images are files; name one, a folder or a glob")
        files = find_files(source, folders.SUFFIXES)
        if files is None:
            raise FileNotFoundError(f"input={source}: no such image, folder or glob")
        names, classes = list(files), {*self.spec.classes}
        found = [[word for word in name.split("/")[:-1] if word in classes] for name in names]
        found_labels = [words[-1] if words else None for words in found]
        for i in range(0, len(names), N_STREAMED):
            span = slice(i, i + N_STREAMED)
            own = found_labels[span] if any(found_labels) else None
            yield Examples("file", names[span], [files[name] for name in names[span]], own)

    def read_new(self, path: str) -> ImageDataset:
        """All images below a folder of class folders, whatever parts they are in."""
        files, _ = list_images(path)
        unknown = sorted({file.label for file in files} - {*self.spec.classes})
        if unknown:
            raise ValueError(
                f"data.path={path} has the class folders {listed(unknown)}, and the run knows "
                f"{listed(self.spec.classes, 12)}; rename or remove them"
            )
        store, undecodable = decode.decode_to_memory(files, self._format())
        if undecodable:
            raise ValueError(unreadable(undecodable, path))
        self.ids["test"] = [file.name for file in files]
        return ImageDataset(store, range(len(files)), self.targets([file.label for file in files]), self.spec.classes)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        images = batch["inputs"]["image"]  # (B, C, S, S) uint8
        training = self.trainer is not None and self.trainer.training
        # crops and colours work on pixel values, erasing and mixing on normalised ones, whose mean is 0
        images = self.normalise(self.augment.raw(images) if training else images)
        batch = {**batch, "inputs": {"image": images}}
        return self.augment.normalised(batch) if training else batch

    def normalise(self, images: Tensor) -> Tensor:
        self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        return (images.float() / 255 - self.mean) / self.std

    def raw_images(self, part: str, ids: Sequence[int]) -> np.ndarray:
        """(n, S, S, C) uint8 as read, for figures; `ids` count within the part, like the `index` of a batch."""
        images = self.datasets[part].gather(torch.as_tensor(ids, dtype=torch.int64))["inputs"]["image"]
        return images.permute(0, 2, 3, 1).cpu().numpy()

    def labels(self, part: str, ids: Sequence[int]) -> list[int]:
        """The classes of these images, as indices into `spec.classes`."""
        return self.datasets[part].gather(torch.as_tensor(ids, dtype=torch.int64))["target"].tolist()

    def report(self) -> dict[str, Any]:
        """In the shape of `quartet.data.report`."""
        sizes, fitted, datasets = self.spec.sizes, self.preprocessing(), cast("dict[str, ImageDataset]", self.datasets)
        mean, std = (", ".join(f"{value:.3f}" for value in fitted[name]) for name in ("mean", "std"))
        side, colours = sizes["image_size"], "grey" if sizes["in_channels"] == 1 else "in colour"
        return {
            "parts": {part: {"samples": len(ids)} for part, ids in self.ids.items()},
            "classes": class_table(self.spec.classes, {part: x.class_counts for part, x in datasets.items()}),
            "notes": [f"{side}×{side} pixels, {colours}; of white, mean {mean}, deviation {std}", *self._notes],
        }


class ImageData(ImageDataModule):
    """The images of a source, split by class; official parts are kept."""

    def __init__(self, *, source: ImageSource, **common: Any):
        super().__init__(**common)
        self.source = source

    def read(self) -> tuple[dict[str, ImageDataset], str]:
        images = self.source.load()
        n, channels, size, _ = images.images.shape
        assert images.images.dtype == np.uint8 and n == len(images.labels), "uint8 images, with one label each"
        self.ids = self.split.assign(n, labels=images.labels, given=images.given)
        # in chunks, because the int64 copy of an image is eight times as large
        moments = np.concatenate([decode.moments(images.images[i : i + 64]) for i in range(0, n, 64)])
        store = ImageStore(ImageFormat(channels, size), moments, torch.from_numpy(images.images))
        parts = {part: ImageDataset(store, self.ids[part], images.labels, images.classes) for part in self.ids}
        return parts, images.fingerprint()


class FolderData(ImageDataModule):
    """Images in one folder for each class; folders above them that are named like parts (see `PART_NAMES`) are kept.

    An image that is in train (or in a tree that is to be split) more than once counts once. With `on_overlap` "drop", of
    copies in two parts the one in test stays, else the one in val; of copies in two classes none does. The size, the
    channels, and black and white of images of 16 or 32 bits are found in the training part alone.
    """

    def __init__(
        self,
        *,
        path: FolderOfClasses,
        image_size: PositiveInt | None,
        channels: Literal["auto", 1, 3],
        memory_gb: NonNegativeFloat,
        disk_gb: NonNegativeFloat,
        num_workers: NonNegativeInt | None,
        on_corrupt: Literal["error", "skip"],
        on_overlap: Literal["error", "drop"],
        **common: Any,
    ):
        signatures.check(FolderData, {k: v for k, v in locals().items() if k != "common"}, "data")
        super().__init__(**common)
        self.path, self.image_size, self.channels = path, image_size, channels
        self.memory_gb, self.disk_gb, self.num_workers = memory_gb, disk_gb, num_workers
        self.on_corrupt, self.on_overlap = on_corrupt, on_overlap

    def read(self) -> tuple[dict[str, ImageDataset], str]:
        source = f"data.path={self.path}"
        # 1. Find and probe the files; if any is damaged, all are decoded once, so that one message names all of them
        files, n_ignored = list_images(self.path)
        infos, failed = run_in_threads(lambda file: probe(file.path), files, "probed")
        if failed and self.on_corrupt == "error":
            small = partial(to_uint8, channels=1, size=8, value_range=(0, 1))  # costs least
            failed |= run_in_threads(lambda file: small(file.path), [*infos], "checked")[1]
        self._refuse(failed)
        # 2. Copies of images in another part or class would spoil the evaluation
        readable = [*infos]
        contents, given = [info.digest for info in infos.values()], [file.part for file in readable]
        copies = check_duplicates(contents, given, [file.label for file in readable])
        problems = []
        for kind, pairs in (("parts", copies.overlapping), ("classes", copies.contradicting)):
            if pairs and self.on_overlap == "error":
                names = listed(f"{readable[i].name} = {readable[j].name}" for i, j in pairs)
                problems.append(
                    f"{counted(len(pairs), 'image')} in {source} are in two {kind}: {names}; "
                    "delete one of each, or leave out with data.on_overlap=drop"
                )
        signatures.refuse(problems)
        left_out = copies.left_out
        kept = [file for i, file in enumerate(readable) if i not in left_out]  # sorted, however they are split
        if not kept:
            raise ValueError(f"{source} has no image that can be read and is in one part and class; bring some")

        # 3. Split; every class must train
        def names_of(ids: Sequence[int]) -> str:
            return listed(kept[i].name for i in ids)

        labels = [file.label for file in kept]
        trainable = [file for file in kept if file.part in (None, "train")]
        check_classes([x.label for x in trainable], source, where=lambda ids: listed(trainable[i].name for i in ids))
        given = [file.part for file in kept] if kept[0].part else None
        ids = self.split.assign(len(kept), labels=labels, given=given)
        check_classes(labels, source, parts=ids, where=names_of)
        # 4. Decode; what fails only now is refused, or left out if each class still trains
        format = self.choose_format([infos[kept[i]] for i in ids["train"]])
        gigabytes, over = len(kept) * math.prod(format.shape) / 1e9, f"more than data.memory_gb={self.memory_gb}"
        places: list[str] = []
        if gigabytes <= self.memory_gb:
            store, undecodable = decode.decode_to_memory(kept, format)
        elif gigabytes <= self.disk_gb:  # `kept` does not depend on the split: all splits and folds share the file
            places = [f"mapped from the cache: {over}"]
            contents = hashlib.sha256(b"".join(infos[file].digest for file in kept)).hexdigest()
            store, undecodable = decode.decode_to_memmap(kept, format, contents, self._refuse, self.path)
        else:
            places = [f"decoded in training: {over} and data.disk_gb={self.disk_gb}"]
            store, undecodable = decode.decode_lazily(kept, format)
        self._refuse(undecodable)
        rows = {part: [i for i in ids[part] if kept[i] not in undecodable] for part in ids}
        if undecodable:
            check_classes(labels, source, parts=rows, where=names_of)
        self.ids = {part: [kept[i].name for i in rows[part]] for part in rows}
        classes = tuple(sorted({*labels}))
        targets = np.searchsorted(classes, labels)
        parts = {part: ImageDataset(store, rows[part], targets, classes) for part in rows}
        # 5. Tell what was left out, here and in the report
        failed |= undecodable
        counts = {
            "left out, not images or not in a class folder": n_ignored,
            f"left out, cannot be read: {with_reasons(failed)}": len(failed),
            "left out of train (or val), another part has the same image": len(copies.overlapping),
            "left out, the same image is in two classes": len(copies.contradicting),
            "left out of train, repeated": len(copies.repeated),
        }
        notes = [f"{counted(n, 'file')} {what}" for what, n in counts.items() if n]
        for note in notes:
            say(note)
        self._notes = [*notes, *places]
        return parts, folders.fingerprint(files, infos)

    def choose_format(self, train: list[ImageInfo]) -> ImageFormat:
        """Channels, size and value range of the training images; those of the run if the module is restored."""
        if self._preprocessing is not None:
            return self._format()
        # 1. One channel if nothing is lost by it
        channels = self.channels if isinstance(self.channels, int) else 1 if all(info.grey for info in train) else 3
        # 2. The size that all share, unless training on it would be slow
        size, sides = self.image_size, {side for info in train for side in info.size}
        if size is None and len(sides) == 1 and max(sides) <= LARGEST_FOUND:
            size = max(sides)
        elif size is None:
            size = USUAL_SIZE
            say(f"images are resized to {size}×{size}; data.image_size=<pixels> says otherwise")
        # 3. The smallest value of deep images is black, the largest white
        ranges = [info.value_range for info in train if info.value_range is not None]
        if ranges:
            low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
            if low == high:
                raise ValueError(
                    f"data.path={self.path}: every value of the training images is {low:g}; "
                    "there is nothing to learn in them"
                )
            say(f"values {low:g} … {high:g} of the training images are black … white")
            self.value_range = low, high
        return ImageFormat(channels, size, self.value_range)

    def _refuse(self, damaged: Problems) -> None:
        if damaged and self.on_corrupt == "error":
            raise ValueError(
                f"{unreadable(damaged, self.path)}; repair or delete, or leave out with data.on_corrupt=skip"
            )

    def _loader(self, part: str, order: Order, *, drop_last: bool) -> MemoryLoader:
        loader = super()._loader(part, order, drop_last=drop_last)
        dataset = loader.dataset
        assert isinstance(dataset, ImageDataset)
        if dataset.store.images is None:
            n_workers = max(1, folders.n_cores() // self.world - 1) if self.num_workers is None else self.num_workers
            loader.batches = partial(dataset.batches, n_workers)
        return loader


def with_reasons(problems: Problems) -> str:
    return listed(f"{file.name} ({reason})" for file, reason in problems.items())


def unreadable(problems: Problems, path: str) -> str:
    return f"{counted(len(problems), 'image')} in data.path={path} cannot be read: {with_reasons(problems)}"


def counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
