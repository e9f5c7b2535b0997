"""Pictures with one label each: held as uint8 in memory, normalised and augmented in batches on the device.

A source is a small object with `load() -> Pictures`; everything after that (split, normalisation, augmentation,
encoding for inference) is the same for all of them, and for the user's own files (`image_files.py`). Each picture file
is brought to size with `to_uint8`, which `encode` uses too: a picture looks the same to the network in training and in
inference.

Letters: N pictures, B batch, C channels (1 grey, 3 RGB), H, W height and width of a raw picture, S side in pixels.
"""

from __future__ import annotations

import hashlib
import math
import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from quartet.data.augment import Augment
from quartet.data.base import DataModule
from quartet.data.memory import Dataset, Samples
from quartet.data.report import class_table
from quartet.data.spec import Spec
from quartet.say import say

MODES = {1: "L", 3: "RGB"}  # channels -> PIL mode
LONGEST_PNG_TEXT = 2**26  # bytes; PIL's own limit, a sixty-fourth of it, refuses pictures of drawing programs
FLAT = 0.02  # of white: pictures that deviate less from one colour are hardly meant so
Span = tuple[float, float]


class Examples(Protocol):
    """Labelled pictures of one size, in memory or not."""

    @property
    def labels(self) -> np.ndarray:
        """(N,) places in `classes`."""
        ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def sizes(self) -> tuple[int, int]:
        """C and S."""
        ...

    def moments(self) -> np.ndarray:
        """(C, 2): of each channel the sum of all values and of their squares."""
        ...

    def dataset(self) -> Dataset: ...


@dataclass(frozen=True)
class Pictures:
    """`images` (N, C, S, S) uint8, `labels` (N,) places in `classes`, `given` (N,) the official part of each, if any."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    given: np.ndarray | None = None

    def __post_init__(self):
        assert self.images.dtype == np.uint8 and self.images.ndim == 4, "pictures are (N, C, S, S) uint8"
        assert len(self.images) == len(self.labels), "one label for each picture"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def sizes(self) -> tuple[int, int]:
        return self.images.shape[1], self.images.shape[3]

    def take(self, ids: Sequence[int]) -> Pictures:
        return Pictures(self.images[ids], self.labels[ids], self.classes)

    def moments(self) -> np.ndarray:
        chunks = (moments(self.images[i : i + 64]).sum(0) for i in range(0, len(self), 64))
        return sum(chunks, np.zeros((self.sizes[0], 2), dtype=np.int64))

    def dataset(self) -> Samples:
        return Samples({"image": torch.from_numpy(self.images)}, torch.from_numpy(self.labels.astype(np.int64)))

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.images.shape, self.classes)).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(self.labels.astype("<i8").tobytes())
        digest.update(b"" if self.given is None else " ".join(self.given).encode())
        return digest.hexdigest()


class PictureSource(Protocol):
    def load(self) -> Pictures: ...


@dataclass(frozen=True)
class Digits:
    """1,797 handwritten digits, 8×8 grey, inside scikit-learn (UCI, Alpaydin & Kaynak 1998)."""

    def load(self) -> Pictures:
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # ink counts 0 … 16
        return Pictures(images[:, None], digits.target, tuple(map(str, digits.target_names)))


class PictureData(DataModule):
    """Labelled pictures; mean and standard deviation per channel come from the training part, which alone is augmented.

    Subclasses `read` them.
    """

    def __init__(self, *, augment: Augment, **common: Any):
        super().__init__(**common)
        self.augment = augment
        self.span: Span | None = None
        self._class_counts: dict[str, Sequence[int]] = {}
        self._notes: list[str] = []  # what reading left out, for the report

    @staticmethod
    def problems(settings: dict[str, Any]) -> list[str]:
        """What is wrong with these `conf/data` values, one sentence each; keys may be missing."""
        return Augment.problems(settings["augment"]) if isinstance(settings.get("augment"), dict) else []

    @abstractmethod
    def read(self) -> tuple[dict[str, Examples], str]: ...

    def fit(self, train: Examples) -> dict[str, Any]:
        channels, size = train.sizes
        mean, std = channel_statistics(train.moments(), len(train.labels) * size**2)
        if not any(std):
            raise ValueError(
                "the training pictures are all of one and the same colour; there is nothing to learn in them"
            )
        if max(std) < FLAT:
            say(
                f"the training pictures are nearly of one colour: deviation {max(std):.4f} of white; are they meant so?"
            )
        std = [value or 1.0 for value in std]
        spec = Spec(
            sizes={"in_channels": channels, "image_size": size, "n_classes": len(train.classes)},
            classes=train.classes,
            class_counts=tuple(class_counts(train)),
        )
        return {"spec": spec.to_json(), "mean": mean, "std": std}

    def use(self, preprocessing: dict[str, Any]) -> None:
        size = self.spec.sizes["image_size"]
        if self.augment.crop >= size:
            raise ValueError(
                f"data.augment.crop={self.augment.crop} must be 0 … {size - 1} pixels for pictures of {size}×{size}"
            )
        self.mean = torch.tensor(preprocessing["mean"])[:, None, None]  # (C, 1, 1)
        self.std = torch.tensor(preprocessing["std"])[:, None, None]
        span = preprocessing.get("span")
        self.span = span and (float(span[0]), float(span[1]))
        if self.span and not self.span[0] < self.span[1]:
            raise ValueError("black is not below white")
        shape = (self.spec.sizes["in_channels"], 1, 1)
        if self.mean.shape != shape or self.std.shape != shape or not bool((self.std > 0).all()):
            raise ValueError("mean and std are not a number for each channel")

    def encode_split(self, examples: Examples) -> Dataset:
        return examples.dataset()

    def encode(self, examples: list[Any]) -> dict[str, Tensor]:
        """Pictures of any size -> {"image": (B, C, S, S) normalised}.

        A picture is a PIL picture, a uint8 array (H, W) or (H, W, 1|3|4), or the path of a picture file.
        """
        channels, size = self.spec.sizes["in_channels"], self.spec.sizes["image_size"]
        images = np.zeros((len(examples), channels, size, size), dtype=np.uint8)
        for i, picture in enumerate(examples):
            images[i] = to_uint8(picture, channels, size, self.span)
        return {"image": self.normalise(torch.from_numpy(images))}

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        images = batch["inputs"]["image"]  # (B, C, S, S) uint8
        training = self.trainer is not None and self.trainer.training
        images = self.normalise(self.augment.raw(images) if training else images)
        batch = {**batch, "inputs": {"image": images}}
        return self.augment.normalised(batch) if training else batch

    def normalise(self, images: Tensor) -> Tensor:
        self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        return (images.float() / 255 - self.mean) / self.std

    def pictures(self, part: str, ids: Sequence[int]) -> np.ndarray:
        """(n, S, S, C) uint8 as read, for figures; `ids` count within the part, like the `index` of a batch."""
        images = self.datasets[part].gather(torch.as_tensor(ids, dtype=torch.int64))["inputs"]["image"]
        return images.permute(0, 2, 3, 1).cpu().numpy()

    def labels(self, part: str, ids: Sequence[int]) -> list[int]:
        """The classes of these pictures, as places in `spec.classes`."""
        return self.datasets[part].gather(torch.as_tensor(ids, dtype=torch.int64))["target"].tolist()

    def report(self) -> dict[str, Any]:
        """In the shape of `quartet.data.report`."""
        sizes, fitted = self.spec.sizes, self.preprocessing()
        mean, std = (", ".join(f"{value:.3f}" for value in fitted[name]) for name in ("mean", "std"))
        side, colours = sizes["image_size"], "grey" if sizes["in_channels"] == 1 else "in colour"
        return {
            "parts": {part: {"samples": len(ids)} for part, ids in self.ids.items()},
            "classes": class_table(self.spec.classes, self._class_counts),
            "notes": [f"{side}×{side} pixels, {colours}; of white, mean {mean}, deviation {std}", *self._notes],
        }


class ImageData(PictureData):
    """The pictures of a source, split by class; official parts are kept."""

    def __init__(self, *, source: PictureSource, **common: Any):
        super().__init__(**common)
        self.source = source

    def read(self) -> tuple[dict[str, Examples], str]:
        pictures = self.source.load()
        self.ids = self.split.assign(len(pictures), labels=pictures.labels, given=pictures.given)
        parts: dict[str, Examples] = {part: pictures.take(ids) for part, ids in self.ids.items()}
        self._class_counts = {part: class_counts(x) for part, x in parts.items()}
        return parts, pictures.fingerprint()


def class_counts(examples: Examples) -> list[int]:
    return np.bincount(examples.labels, minlength=len(examples.classes)).tolist()


def moments(images: np.ndarray) -> np.ndarray:
    """(N, C, S, S) uint8 -> (N, C, 2): the sum of the values of each channel and of their squares."""
    values = images.astype(np.int64)
    return np.stack([values.sum((2, 3)), np.einsum("ncxy,ncxy->nc", values, values)], axis=-1)


def channel_statistics(moments: np.ndarray, n: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of n pixels, in units of 255.

    The moments (C, 2) are integers, so the result is exact and the same on every machine.
    """
    means, stds = [], []
    for total, squares in moments.tolist():
        means.append(total / n / 255)
        stds.append(math.sqrt(n * squares - total**2) / n / 255)
    return means, stds


def to_uint8(picture: Any, channels: int, size: int, span: Span | None = None) -> np.ndarray:
    """A picture to (C, S, S) uint8: upright, grey or RGB, what is transparent on white, a centred square.

    It is a PIL picture, a uint8 array (H, W) or (H, W, 1|3|4), or the path of a picture file; of an animation the first
    frame counts. `span`: the values that are black and white in pictures of 16 or 32 bits. Raises ValueError for arrays of
    another type or shape, and for values that have no black and white, OSError for files that cannot be read.
    """
    from PIL import Image, ImageOps

    if isinstance(picture, str | os.PathLike):
        with opened(picture) as file:
            file.draft(None, (2 * size, 2 * size))  # a large JPEG is decoded at half, a quarter, … of its size
            return to_uint8(file, channels, size, span)
    upright = _upright(picture if isinstance(picture, Image.Image) else _from_array(picture))
    if is_deep(upright):
        upright = Image.fromarray(_eight_bits(np.asarray(upright), span))
    if upright.has_transparency_data:
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
    square = ImageOps.fit(upright.convert(MODES[channels]), (size, size), method=Image.Resampling.BILINEAR)
    return np.asarray(square).reshape(size, size, channels).transpose(2, 0, 1)


def opened(file: Any) -> Any:
    """The PIL picture in a file or path; a long text beside the pixels of a PNG is no fault of the picture."""
    from PIL import Image, PngImagePlugin

    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = LONGEST_PNG_TEXT
    return Image.open(file)


def _upright(picture: Any) -> Any:
    """Turned as its EXIF says; an EXIF that cannot be read says nothing."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(picture)
    except Exception:
        picture.load()  # raises what is wrong with the pixels
        return picture


def is_deep(picture: Any) -> bool:
    """Whether a PIL picture has grey values of 16 or 32 bits, or floating point."""
    return picture.mode[0] in "IF"


def _eight_bits(values: np.ndarray, span: Span | None) -> np.ndarray:
    """Black and white of 16 bits are agreed; others come from the pictures that were trained on."""
    if span is not None:
        low, high = span
        inside = np.nan_to_num(values.astype(np.float64), nan=low).clip(low, high)
        return np.rint(255 * (inside - low) / (high - low)).astype(np.uint8)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"its values, {values.min():g} … {values.max():g}, have no agreed black and white; the model was trained on "
            "pictures of 8 or 16 bits, convert it to these"
        )
    return (values >> 8).astype(np.uint8)


def _from_array(picture: Any):
    from PIL import Image

    array = np.asarray(picture)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))):
        raise ValueError(f"a picture must be uint8 (H, W) or (H, W, 1|3|4), not {array.dtype} {array.shape}")
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
