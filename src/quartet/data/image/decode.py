"""Decoding image files, and the three places where decoded images are kept.

`decode_to_memory` fills one array; `decode_to_memmap` fills one file of the cache, which is mapped into memory;
`decode_lazily` keeps nothing, and worker processes decode during training. Batches and their order are the same.

Letters: N images, B batch, C channels (1 grey, 3 RGB), H, W height and width of a file, S side in pixels.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader

from quartet.data.cache import Cache, Mapped
from quartet.data.image.folders import ImageFile, Problems, ValueRange, fault, run_in_threads
from quartet.data.memory import Batch
from quartet.say import say
from quartet.system.cores import n_cores

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
        with Image.open(image) as file:
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
    if image.mode[0] in "IF":  # 16 or 32 bits, or floating point
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


def moments(images: np.ndarray) -> np.ndarray:
    """(N, C, S, S) uint8 -> (N, C, 2): the sum of the values of each channel and of their squares."""
    # integers: the sums are exact, and the same in whatever order threads decode
    values = images.astype(np.int64)
    return np.stack([values.sum((2, 3)), np.einsum("ncxy,ncxy->nc", values, values)], axis=-1)


@dataclass(frozen=True)
class ImageFormat:
    """What every file is decoded to: (C, S, S) uint8."""

    channels: int
    size: int
    value_range: ValueRange | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.size, self.size

    def read(self, images: Sequence[Any]) -> np.ndarray:
        """Images as `to_uint8` accepts them -> (B, C, S, S)."""
        decoded = np.empty((len(images), *self.shape), dtype=np.uint8)
        for i, image in enumerate(images):
            decoded[i] = to_uint8(image, self.channels, self.size, self.value_range)
        return decoded

    def read_in_threads(self, images: Sequence[Any]) -> np.ndarray:
        """The same on all cores, for PIL releases the interpreter lock; ValueError names a file that cannot be read."""

        def read_one(image: Any) -> np.ndarray:
            try:
                return self.read([image])
            except Exception as error:  # PIL raises a dozen kinds on damaged files
                if not isinstance(image, str | os.PathLike):
                    raise
                raise ValueError(f"{image} cannot be read as an image ({fault(error)})") from error

        with ThreadPoolExecutor(n_cores()) as pool:
            return np.concatenate([np.empty((0, *self.shape), dtype=np.uint8), *pool.map(read_one, images)])


@dataclass
class ImageStore:
    """`images` (N, C, S, S) in memory, or in a file of the cache that is `mapped`; without them, `paths` to decode.

    `moments` (N, C, 2): of each image the sums of its values and of their squares.
    """

    format: ImageFormat
    moments: np.ndarray
    images: Tensor | None = None
    mapped: Mapped | None = None
    paths: Sequence[str] = ()

    def read(self, rows: Tensor) -> Tensor:
        """(B,) -> (B, C, S, S) uint8."""
        if self.images is None:
            return torch.from_numpy(self.format.read([self.paths[row] for row in rows.tolist()]))
        if self.mapped is not None:
            self.mapped.count(len(rows) * math.prod(self.format.shape))
        # parts share a store: another part may have moved it already
        return self.images.index_select(0, rows.to(self.images.device))

    def to(self, device: torch.device) -> torch.device:
        """Move what is in memory to the device that trains; of the rest, Lightning moves the batches."""
        if self.images is None or self.mapped is not None:
            return torch.device("cpu")
        self.images = self.images.to(device)
        return device


Decoded = tuple[ImageStore, Problems]  # a file with a problem has a row in the store, but no image


def decode_to_memory(files: list[ImageFile], format: ImageFormat) -> Decoded:
    images = np.empty((len(files), *format.shape), dtype=np.uint8)
    sums, problems = _decode(files, format, images.__setitem__, "decoded")
    return ImageStore(format, sums, torch.from_numpy(images)), problems


def decode_lazily(files: list[ImageFile], format: ImageFormat) -> Decoded:
    """Each file is decoded once for the moments, and to be sure that it can be decoded."""
    sums, problems = _decode(files, format, lambda i, image: None, "checked")
    return ImageStore(format, sums, paths=[file.path for file in files]), problems


def decode_to_memmap(
    files: list[ImageFile], format: ImageFormat, contents: str, check: Callable[[Problems], None], path: str
) -> Decoded:
    """Decode into a file of the cache, whose name depends on the hash of `contents`; `check` may refuse the problems.

    The file holds the images, (N, C, S, S), their moments as npy, and [row, reason] of the undecodable ones as JSON.
    """
    # 1. Write the file if no earlier run has, under a name that says everything it depends on
    image_bytes = math.prod(format.shape)
    n_bytes = len(files) * image_bytes

    def write(file: BinaryIO) -> None:
        say(f"first use of {path}: decoding it into {CACHE.path}, {n_bytes / 1e9:,.2f} GB, once")
        lock = threading.Lock()

        def keep(i: int, image: np.ndarray) -> None:
            # written, not mapped: a full disk is an error here, and would be a SIGBUS in a map
            with lock:
                file.seek(i * image_bytes)
                file.write(image.tobytes())

        sums, problems = _decode(files, format, keep, "decoded")
        check(problems)
        file.seek(n_bytes)
        np.save(file, sums)
        file.write(json.dumps([[i, problems[bad]] for i, bad in enumerate(files) if bad in problems]).encode())

    key = CACHE.key("uint8", contents, format.channels, format.size, format.value_range, PIL.__version__)
    cached = CACHE.made(key, write, n_bytes)
    # 2. The moments are read, the images are mapped
    with open(cached, "rb") as file:
        file.seek(n_bytes)
        sums, problems = np.load(file), {files[i]: reason for i, reason in json.load(file)}
    mapped = Mapped(cached, FORGET_AFTER)
    images = mapped.tensor(torch.uint8, n_bytes).view(-1, *format.shape)
    return ImageStore(format, sums, images, mapped), problems


def _decode(
    files: list[ImageFile], format: ImageFormat, keep: Callable[[int, np.ndarray], object], done: str
) -> tuple[np.ndarray, Problems]:
    """Call `keep` with the row of each file and its image, in any order; returns the moments (N, C, 2)."""
    sums = np.zeros((len(files), format.channels, 2), dtype=np.int64)
    rows = {file: i for i, file in enumerate(files)}

    def work(file: ImageFile) -> None:
        image = format.read([file.path])
        sums[rows[file]] = moments(image)[0]
        keep(rows[file], image[0])

    _, problems = run_in_threads(work, files, done)
    return sums, problems


class ImageDataset:
    """One part of the data: `rows` (N,) of a store and their `labels` (N,), indices into `classes`.

    `moments` (C, 2): the sums over all of its pixels.
    """

    def __init__(self, store: ImageStore, rows: Sequence[int], labels: np.ndarray, classes: tuple[str, ...]):
        chosen = np.array(rows, dtype=np.int64)
        self.store, self.classes, self.moments = store, classes, store.moments[chosen].sum(0)
        self.class_counts: list[int] = np.bincount(labels[chosen], minlength=len(classes)).tolist()
        self.rows, self.labels = torch.from_numpy(chosen), torch.from_numpy(labels[chosen].astype(np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, ids: Tensor) -> Batch:
        ids = ids.to(self.rows.device)
        images = self.store.read(self.rows.index_select(0, ids))  # (B, C, S, S) uint8
        return {"inputs": {"image": images}, "target": self.labels.index_select(0, ids), "index": ids}

    def to(self, device: torch.device) -> ImageDataset:
        home = self.store.to(device)
        self.rows, self.labels = self.rows.to(home), self.labels.to(home)
        return self

    def __getitem__(self, ids: list[int]) -> Batch:
        """What a DataLoader asks for: its "sample" is a whole batch."""
        return self.gather(torch.tensor(ids))

    def batches(self, n_workers: int, ids: Iterator[Tensor]) -> Iterator[Batch]:
        """A batch for each row of sample ids, made ahead of time by worker processes; 0 workers: by this process."""
        loader = DataLoader(
            self,  # type: ignore[arg-type]
            sampler=[batch.tolist() for batch in ids],
            batch_size=None,
            num_workers=n_workers,
            pin_memory=torch.cuda.is_available(),
            # the global generator is for augmentation: a resumed run must find it as it was
            generator=torch.Generator(),
        )
        return iter(loader)
