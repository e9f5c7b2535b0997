"""Pictures with one label each: held as uint8 in memory, normalised and augmented in batches on the device.

A source is a small object with `load() -> Pictures`; everything after that (split, normalisation, augmentation,
encoding for inference) is the same for all of them. A source of picture files brings each one to size with `to_uint8`,
which `ImageData.encode` uses too: a picture looks the same to the network in training and in inference.

Letters: N pictures, B batch, C channels (1 grey, 3 RGB), H, W height and width of a raw picture, S side in pixels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from quartet.data.base import DataModule
from quartet.data.memory import Samples
from quartet.data.spec import Spec

MODES = {1: "L", 3: "RGB"}  # channels -> PIL mode


@dataclass(frozen=True)
class Pictures:
    """`images` (N, C, S, S) uint8, `labels` (N,) places in `classes`."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self):
        assert self.images.dtype == np.uint8 and self.images.ndim == 4, "pictures are (N, C, S, S) uint8"
        assert len(self.images) == len(self.labels), "one label for each picture"

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, ids: Sequence[int]) -> Pictures:
        return Pictures(self.images[ids], self.labels[ids], self.classes)

    def class_counts(self) -> list[int]:
        return np.bincount(self.labels, minlength=len(self.classes)).tolist()

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.images.shape, self.classes)).encode())
        digest.update(self.images.tobytes())
        digest.update(self.labels.astype("<i8").tobytes())
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


class ImageData(DataModule):
    """Pictures of a source, split by class; mean and standard deviation per channel come from the training part.

    Training pictures are moved by up to `shift` pixels and, with `flip`, mirrored half of the time. The randomness is
    torch's global generator of the device: a run that restores its state sees the same augmentation again.
    """

    def __init__(
        self,
        *,
        source: PictureSource,
        shift: int,
        flip: bool,
        **common: Any,
    ):
        super().__init__(**common)
        self.source, self.shift, self.flip = source, shift, flip
        self._class_counts: dict[str, list[int]] = {}

    def read(self) -> tuple[dict[str, Pictures], str]:
        pictures = self.source.load()
        self.ids = self.split.assign(len(pictures), labels=pictures.labels)
        parts = {part: pictures.take(ids) for part, ids in self.ids.items()}
        self._class_counts = {part: x.class_counts() for part, x in parts.items()}
        return parts, pictures.fingerprint()

    def fit(self, train: Pictures) -> dict[str, Any]:
        mean, std = channel_statistics(train.images)
        _, channels, _, size = train.images.shape
        spec = Spec(
            sizes={"in_channels": channels, "image_size": size, "n_classes": len(train.classes)},
            classes=train.classes,
            class_counts=tuple(train.class_counts()),
        )
        return {"spec": spec.to_json(), "mean": mean, "std": std}

    def use(self, preprocessing: dict[str, Any]) -> None:
        size = self.spec.sizes["image_size"]
        if not 0 <= self.shift < size:
            raise ValueError(f"data.shift={self.shift} must be 0 … {size - 1} pixels for pictures of {size}×{size}")
        self.mean = torch.tensor(preprocessing["mean"])[:, None, None]  # (C, 1, 1)
        self.std = torch.tensor(preprocessing["std"])[:, None, None]

    def encode_split(self, examples: Pictures) -> Samples:
        return Samples({"image": torch.from_numpy(examples.images)}, torch.from_numpy(examples.labels.astype(np.int64)))

    def encode(self, examples: list[Any]) -> dict[str, Tensor]:
        """PIL pictures or uint8 arrays (H, W) or (H, W, 1|3|4) of any size -> {"image": (B, C, S, S) normalised}."""
        channels, size = self.spec.sizes["in_channels"], self.spec.sizes["image_size"]
        images = np.zeros((len(examples), channels, size, size), dtype=np.uint8)
        for i, picture in enumerate(examples):
            images[i] = to_uint8(picture, channels, size)
        return {"image": self.normalise(torch.from_numpy(images))}

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        image = batch["inputs"]["image"]  # (B, C, S, S) uint8
        if self.trainer is not None and self.trainer.training:
            image = self.augment(image)
        return {**batch, "inputs": {"image": self.normalise(image)}}

    def augment(self, images: Tensor) -> Tensor:
        if self.shift:
            images = random_shift(images, self.shift)
        return random_flip(images) if self.flip else images

    def normalise(self, images: Tensor) -> Tensor:
        self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        return (images.float() / 255 - self.mean) / self.std

    def pictures(self, part: str, ids: Sequence[int]) -> np.ndarray:
        """(n, S, S, C) uint8 as read, for figures; `ids` count within the part, like the `index` of a batch."""
        images = self.datasets[part].gather(torch.as_tensor(ids, dtype=torch.int64))["inputs"]["image"]
        return images.permute(0, 2, 3, 1).cpu().numpy()

    def report(self) -> dict[str, Any]:
        fitted = self.preprocessing()
        return {
            "samples": {part: len(ids) for part, ids in self.ids.items()},
            "class_counts": self._class_counts,
            "mean": fitted["mean"],
            "std": fitted["std"],
        }


def channel_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of (N, C, S, S) uint8, as shares of 255; a constant channel gets 1.

    Counted in integers, so the result is exact and the same on every machine.
    """
    means, stds = [], []
    for c in range(images.shape[1]):
        counts = np.bincount(images[:, c].ravel(), minlength=256)
        n, total = int(counts.sum()), int(counts @ np.arange(256))
        squares = int(counts @ np.arange(256) ** 2)
        means.append(total / n / 255)
        stds.append(math.sqrt(n * squares - total**2) / n / 255 or 1.0)
    return means, stds


def random_shift(images: Tensor, pixels: int) -> Tensor:
    """Each picture of (B, C, S, S) moved by -pixels … pixels in both directions; what is uncovered is black."""
    B, C, S, device = *images.shape[:3], images.device
    padded = F.pad(images, (pixels,) * 4)
    top, left = torch.randint(2 * pixels + 1, (2, B, 1), device=device)
    row, column = top + torch.arange(S, device=device), left + torch.arange(S, device=device)  # (B, S) each
    rows = padded.gather(2, row[:, None, :, None].expand(B, C, S, S + 2 * pixels))
    return rows.gather(3, column[:, None, None, :].expand(B, C, S, S))


def random_flip(images: Tensor) -> Tensor:
    """Each picture of (B, C, S, S) mirrored left to right with probability one half."""
    mirror = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirror, images.flip(-1), images)


def to_uint8(picture: Any, channels: int, size: int) -> np.ndarray:
    """A PIL picture or uint8 array (H, W) or (H, W, 1|3|4) to (C, S, S) uint8: upright, grey or RGB, a centred square.

    Raises ValueError for arrays of another type or shape.
    """
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(picture if isinstance(picture, Image.Image) else _from_array(picture))
    if upright.mode.startswith("I;16"):  # PIL would cut 16-bit values off at 255
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    square = ImageOps.fit(upright.convert(MODES[channels]), (size, size), method=Image.Resampling.BILINEAR)
    return np.asarray(square).reshape(size, size, channels).transpose(2, 0, 1)


def _from_array(picture: Any):
    from PIL import Image

    array = np.asarray(picture)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))):
        raise ValueError(f"a picture must be uint8 (H, W) or (H, W, 1|3|4), not {array.dtype} {array.shape}")
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)
