"""Decoding image files, and the three places where decoded images are kept.

`decode_to_memory` fills one array; `decode_to_memmap` fills one file of the cache, which is mapped into memory;
`decode_lazily` keeps nothing, and worker processes decode during training. Batches and their order are the same.

Letters: N images, B batch, C channels (1 grey, 3 RGB), H, W height and width of a file, S side in pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader

from quartet.data.cache import Cache, Mapped
from quartet.data.image.folders import (
    ImageFile,
    ImageInfo,
    Problems,
    ValueRange,
    is_deep,
    open_image,
    run_in_threads,
)
from quartet.data.memory import Batch, Dataset, Samples
from quartet.say import say

MODES = {1: "L", 3: "RGB"}  # channels -> PIL mode
CACHE = Cache("pictures", version=2, room="as much as the decoded images take; data.disk_gb=0 does without")
FORGET_AFTER = 2**30  # bytes read from a map before its pages are given back; reading them again costs time


def to_uint8(image: Any, channels: int, size: int, value_range: ValueRange | None = None) -> np.ndarray:
    """An image to (C, S, S) uint8: upright, grey or RGB, transparency on white, the centred square.

    `image`: a PIL image, a uint8 array (H, W) or (H, W, 1|3|4), or the path of a file; of an animation the first frame.
    `value_range`: black and white of images of 16 or 32 bits. Raises ValueError for arrays of another type or shape, and
    for values whose black and white are unknown, OSError for files that cannot be read.
    """
    # 1. Any input to a PIL image
    if isinstance(image, str | os.PathLike):
        with open_image(image) as file:
            file.draft(None, (2 * size, 2 * size))  # type: ignore[arg-type]  # a large JPEG is decoded at 1/2, 1/4, …
            return to_uint8(file, channels, size, value_range)
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))):
            raise ValueError(f"an image must be uint8 (H, W) or (H, W, 1|3|4), not {array.dtype} {array.shape}")
        image = Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
    # 2. Upright as its EXIF says; a damaged EXIF says nothing, but damaged pixels raise their own error
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:
        image.load()
    # 3. Eight bits: the range of 16 bits is a convention, others come from the training images
    if is_deep(image):
        values = np.asarray(image)
        if value_range is not None:
            low, high = value_range
            inside = np.nan_to_num(values.astype(np.float64), nan=low).clip(low, high)
            values = np.rint(255 * (inside - low) / (high - low))
        elif values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"its values, {values.min():g} … {values.max():g}, have no agreed black and white; the model was trained "
                "on images of 8 or 16 bits, convert it to these"
            )
        else:
            values = values >> 8
        image = Image.fromarray(values.astype(np.uint8))
    # 4. Colours and size
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    square = ImageOps.fit(image.convert(MODES[channels]), (size, size), method=Image.Resampling.BILINEAR)
    return np.asarray(square).reshape(size, size, channels).transpose(2, 0, 1)


def find_undecodable(files: list[ImageFile]) -> Problems:
    return run_in_threads(lambda file: to_uint8(file.path, 1, 8, (0, 1)), files, "checked")  # small: costs least


def moments(images: np.ndarray) -> np.ndarray:
    """(N, C, S, S) uint8 -> (N, C, 2): the sum of the values of each channel and of their squares."""
    values = images.astype(np.int64)
    return np.stack([values.sum((2, 3)), np.einsum("ncxy,ncxy->nc", values, values)], axis=-1)


@dataclass(frozen=True)
class ImageFormat:
    """What every file is decoded to: (C, S, S) uint8; its label is an index into `classes`."""

    classes: tuple[str, ...]
    channels: int
    size: int
    value_range: ValueRange | None = None

    @property
    def n_bytes(self) -> int:
        return self.channels * self.size**2

    def read(self, image: Any) -> np.ndarray:
        return to_uint8(image, self.channels, self.size, self.value_range)

    def empty(self, n: int) -> np.ndarray:
        return np.empty((n, self.channels, self.size, self.size), dtype=np.uint8)

    def labels(self, files: list[ImageFile]) -> np.ndarray:
        index = {label: i for i, label in enumerate(self.classes)}
        return np.array([index[file.label] for file in files], dtype=np.int64)


class DecodedImages(NamedTuple):
    """The images of one part as the data module needs them: see `LabelledImages` for those that are in memory."""

    dataset: Dataset
    labels: np.ndarray  # (N,) indices into `format.classes`
    moments: np.ndarray  # (C, 2) sums over all pixels
    format: ImageFormat


Decoder = Callable[[list[ImageFile]], tuple[DecodedImages, Problems]]  # leaves out what cannot be decoded


def decode(
    files: list[ImageFile], format: ImageFormat, keep: Callable[[int, np.ndarray], object], done: str
) -> tuple[np.ndarray, Problems]:
    """Calls `keep` with the index of each file and its image, in any order; returns their moments (N, C, 2)."""
    sums = np.zeros((len(files), format.channels, 2), dtype=np.int64)
    index = {file: i for i, file in enumerate(files)}

    def work(file: ImageFile) -> None:
        i, image = index[file], format.read(file.path)
        sums[i] = moments(image[None])[0]
        keep(i, image)

    return sums, run_in_threads(work, files, done)


def decode_to_memory(format: ImageFormat, files: list[ImageFile]) -> tuple[DecodedImages, Problems]:
    images = format.empty(len(files))
    sums, problems = decode(files, format, images.__setitem__, "decoded")
    good = [i for i, file in enumerate(files) if file not in problems]
    if problems:
        images = images[good]
    labels = format.labels([files[i] for i in good])
    dataset = Samples({"image": torch.from_numpy(images)}, torch.from_numpy(labels))
    return DecodedImages(dataset, labels, sums[good].sum(0), format), problems


def decode_lazily(format: ImageFormat, files: list[ImageFile]) -> tuple[DecodedImages, Problems]:
    """Each file is decoded once for the moments, and to be sure that it can be decoded."""
    sums, problems = decode(files, format, lambda i, image: None, "checked")
    good = [i for i, file in enumerate(files) if file not in problems]
    labels = format.labels([files[i] for i in good])
    dataset = LazyImages([files[i].path for i in good], labels, format)
    return DecodedImages(dataset, labels, sums[good].sum(0), format), problems


def decode_to_memmap(
    format: ImageFormat,
    files: list[ImageFile],
    infos: dict[ImageFile, ImageInfo],
    check: Callable[[Problems], None],
    path: str,
) -> Decoder:
    """Decode all `files`, of every part, into one file of the cache; `check` may refuse those that cannot be decoded.

    The file holds the images, (N, C, S, S), their moments as npy, and [index, reason] of the undecodable ones as JSON.
    It does not depend on the split, so all splits and folds of a folder share it.
    """
    n_bytes = len(files) * format.n_bytes

    def write(file: BinaryIO) -> None:
        say(f"first use of {path}: decoding it into {CACHE.path}, {n_bytes / 1e9:,.2f} GB, once")
        lock = threading.Lock()

        def keep(i: int, image: np.ndarray) -> None:
            with lock:  # written, not mapped: a full disk is an error here, and would be a SIGBUS in a map
                file.seek(i * format.n_bytes)
                file.write(image.tobytes())

        sums, problems = decode(files, format, keep, "decoded")
        check(problems)
        file.seek(n_bytes)
        np.save(file, sums)
        file.write(json.dumps([[i, problems[bad]] for i, bad in enumerate(files) if bad in problems]).encode())

    contents = hashlib.sha256(b"".join(infos[file].digest for file in files)).hexdigest()
    key = CACHE.key("uint8", contents, format.channels, format.size, format.value_range, PIL.__version__)
    cached = CACHE.made(key, write, n_bytes)
    with open(cached, "rb") as file:
        file.seek(n_bytes)
        sums, undecodable = np.load(file), {files[i]: reason for i, reason in json.load(file)}
    mapped, index = Mapped(cached, FORGET_AFTER), {file: i for i, file in enumerate(files)}

    def select(files: list[ImageFile]) -> tuple[DecodedImages, Problems]:
        good = [file for file in files if file not in undecodable]
        rows, labels = np.array([index[file] for file in good], dtype=np.int64), format.labels(good)
        dataset = MappedImages(mapped, torch.from_numpy(rows), len(index), labels, format)
        problems = {file: undecodable[file] for file in files if file in undecodable}
        return DecodedImages(dataset, labels, sums[rows].sum(0), format), problems

    return select


class LazyImages:
    """A data set of files that are decoded when a batch asks for them."""

    def __init__(self, paths: list[str], labels: np.ndarray, format: ImageFormat):
        self.paths, self.labels, self.format = paths, torch.from_numpy(labels), format

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, ids: Tensor) -> Tensor:
        """(B,) -> (B, C, S, S) uint8."""
        images = self.format.empty(len(ids))
        for i, place in enumerate(ids.tolist()):
            images[i] = self.format.read(self.paths[place])
        return torch.from_numpy(images)

    def gather(self, ids: Tensor) -> Batch:
        ids = ids.cpu()
        return {"inputs": {"image": self.read(ids)}, "target": self.labels.index_select(0, ids), "index": ids}

    def to(self, device: torch.device) -> Dataset:
        return self  # Lightning moves the batches

    def __getitem__(self, ids: list[int]) -> Batch:
        """What a DataLoader asks for: its "sample" is a whole batch."""
        return self.gather(torch.tensor(ids))


class MappedImages(LazyImages):
    """A data set of `rows` of a mapped file, which holds `n` images."""

    def __init__(self, mapped: Mapped, rows: Tensor, n: int, labels: np.ndarray, format: ImageFormat):
        super().__init__([], labels, format)
        images = mapped.tensor(torch.uint8, n * format.n_bytes)
        self.mapped, self.rows, self.images = mapped, rows, images.view(n, format.channels, format.size, format.size)

    def read(self, ids: Tensor) -> Tensor:
        images = self.images.index_select(0, self.rows.index_select(0, ids))
        self.mapped.count(images.nbytes)
        return images


def batches_from_workers(dataset: LazyImages, n_workers: int, ids: Iterator[Tensor]) -> Iterator[Batch]:
    """A batch for each row of sample ids, decoded ahead of time by worker processes; 0 workers: by this process."""
    return iter(
        DataLoader(
            dataset,  # type: ignore[arg-type]
            sampler=[batch.tolist() for batch in ids],
            batch_size=None,
            num_workers=n_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # the global one is for augmentation: a resumed run must find it as it was
        )
    )
