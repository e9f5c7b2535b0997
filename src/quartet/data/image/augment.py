"""Augmentation of training images: whole batches at a time, on the device that holds them.

Every image draws its own numbers, from torch's global generator of the device: a run that restores its state sees the
same augmentation again. A step that is off draws nothing.

Sources: Zhong et al. 2017, random erasing (arXiv:1708.04896); Zhang et al. 2017, mixup (arXiv:1710.09412); Yun et al.
2019, CutMix (arXiv:1905.04899); Cubuk et al. 2019, RandAugment (arXiv:1909.13719), with torchvision's operations and
ranges. We differ from the usual code in one detail: mixup, CutMix and RandAugment draw for each image, not for the
batch.

Letters: B batch, C channels (1 grey, 3 RGB), S side in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from quartet import signatures
from quartet.signatures import Fraction, NonNegativeFloat, NonNegativeInt, Rule

MAX_MAGNITUDE = 30  # RandAugment's largest magnitude, where the ranges of its operations end
LUMA = (0.299, 0.587, 0.114)  # how bright red, green and blue look (ITU-R BT.601), as PIL turns colour into grey
Magnitude = Annotated[
    int, Rule(f"an integer from 0 (off) to {MAX_MAGNITUDE}", lambda magnitude: 0 <= magnitude <= MAX_MAGNITUDE)
]
Strength = Annotated[float, Rule("a number from 0 to below 1", lambda strength: 0 <= strength < 1)]


class Augment:
    """The augmentation of a batch, in this order; 0 or false leaves a step out.

    - `crop`: moved by -crop … crop pixels in both directions; what is uncovered is black (`fill` zero) or mirrored
      (`fill` reflect)
    - `flip`: mirrored left to right, half of the time
    - `randaugment`: two operations of fourteen, with this magnitude
    - `colour`: brightness, contrast and saturation, each times 1 - colour … 1 + colour
    - `erasing`: the probability that a box of 2 % to 33 % of the image is set to the mean of the training images
    - `mixup`, `cutmix`: blended with another image of the batch, or a box of it pasted in, as a whole or in part:
      the share of each image is drawn from Beta(value, value). With both, each image draws which one.

    Raises ValueError for values out of range, all of them in one message.
    """

    def __init__(
        self,
        *,
        crop: NonNegativeInt,
        fill: Literal["zero", "reflect"],
        flip: bool,
        randaugment: Magnitude,
        colour: Strength,
        erasing: Fraction,
        mixup: NonNegativeFloat,
        cutmix: NonNegativeFloat,
    ):
        signatures.check(Augment, locals(), "data.augment")
        self.crop, self.fill, self.flip = crop, fill, flip
        self.randaugment, self.colour = randaugment, colour
        self.erasing, self.mixup, self.cutmix = erasing, mixup, cutmix

    def raw(self, images: Tensor) -> Tensor:
        """(B, C, S, S) uint8 -> the same shape, uint8 or float, from 0 to 255."""
        if self.crop:
            images = random_crop(images, self.crop, self.fill)
        if self.flip:
            images = random_flip(images)
        if self.randaugment:
            images = rand_augment(images, self.randaugment)
        return colour_jitter(images, self.colour) if self.colour else images

    def normalised(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch whose images have mean 0: erased and mixed.

        A mixed batch has two more entries: `target_mix` (B,), the class of the partner, and `mix` (B,), the share of the
        image itself. `target` stays what it was.
        """
        images = batch["inputs"]["image"]
        if self.erasing:
            images = random_erase(images, self.erasing)
        if not (self.mixup or self.cutmix):
            return {**batch, "inputs": {"image": images}}
        partner = torch.randperm(len(images), device=images.device)
        # how much of each pixel is the image's own: (B, 1, S, S) or (B, 1, 1, 1)
        if not self.cutmix:
            shares = mixup_shares(images, self.mixup)
        elif not self.mixup:
            shares = cutmix_shares(images, self.cutmix)
        else:
            pasted = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
            shares = torch.where(pasted, cutmix_shares(images, self.cutmix), mixup_shares(images, self.mixup))
        images, target = images[partner].lerp(images, shares), batch["target"][partner]
        return {**batch, "inputs": {"image": images}, "target_mix": target, "mix": shares.mean((1, 2, 3))}


def random_crop(images: Tensor, pixels: int, fill: str) -> Tensor:
    """Each image of (B, C, S, S) moved by -pixels … pixels in both directions, onto black or its mirror image."""
    B, _, S, _ = images.shape
    # 1. Pad; mirrored by hand, because F.pad mirrors floats only
    if fill == "zero":
        padded = F.pad(images, (pixels,) * 4)
    else:
        place = torch.arange(-pixels, S + pixels, device=images.device)
        mirrored = S - 1 - (S - 1 - place.abs()).abs()  # -1 -> 1, S -> S - 2
        padded = images.index_select(2, mirrored).index_select(3, mirrored)
    # 2. One of all windows for each image
    windows = padded.unfold(2, S, 1).unfold(3, S, 1)  # (B, C, 2 pixels + 1, 2 pixels + 1, S, S), a view
    top, left = torch.randint(2 * pixels + 1, (2, B), device=images.device)
    return windows[torch.arange(B, device=images.device), :, top, left]


def random_flip(images: Tensor) -> Tensor:
    """Each image of (B, C, S, S) mirrored left to right with probability one half."""
    mirror = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirror, images.flip(-1), images)


def colour_jitter(images: Tensor, strength: float) -> Tensor:
    """Brightness, contrast and saturation of (B, C, S, S), each times 1 - strength … 1 + strength; floats, 0 to 255."""
    draws = torch.rand(3, len(images), 1, 1, 1, device=images.device)
    brightness, contrast, saturation = 1 + strength * (2 * draws - 1)
    images = (images.float() * brightness).clamp(0, 255)
    images = grey(images).mean((1, 2, 3), keepdim=True).lerp(images, contrast).clamp(0, 255)
    return grey(images).lerp(images, saturation).clamp(0, 255)


def grey(images: Tensor) -> Tensor:
    """(B, C, S, S) floats -> (B, 1, S, S)."""
    if images.shape[1] == 1:
        return images
    return (images * torch.tensor(LUMA, device=images.device)[:, None, None]).sum(1, keepdim=True)


def rand_augment(images: Tensor, magnitude: int) -> Tensor:
    """Two operations on each image of (B, C, S, S) uint8; images that drew the same one are changed together."""
    operations = randaugment_operations(magnitude / MAX_MAGNITUDE, images.shape[-1])
    for _ in range(2):
        # a number stands for an operation and a sign
        drawn = torch.randint(2 * len(operations), (len(images),), device=images.device).cpu()
        changed = images.clone()
        for number in drawn.unique().tolist():
            ids = (drawn == number).nonzero()[:, 0].to(images.device)
            changed[ids] = operations[number // 2](images[ids], 1 - 2 * (number % 2))
        images = changed
    return images


def randaugment_operations(m: float, size: int) -> list[Callable[[Tensor, int], Tensor]]:
    """RandAugment's operations on uint8 images at magnitude 0 to 1; the second argument is a sign, 1 or -1."""
    from torchvision.transforms.v2 import functional as T  # here: the import takes longer than digits take to train

    # the paper moves images of 331 pixels by up to 150
    shear = math.degrees(math.atan(0.3 * m))
    move = int(150 / 331 * size * m)  # pixels

    def affine(x: Tensor, translate: list[int], sheared: list[float]) -> Tensor:
        return T.affine(x, angle=0.0, translate=translate, scale=1.0, shear=sheared, center=[0.0, 0.0])  # type: ignore

    return [
        lambda x, sign: x,
        lambda x, sign: affine(x, [0, 0], [sign * shear, 0.0]),
        lambda x, sign: affine(x, [0, 0], [0.0, sign * shear]),
        lambda x, sign: affine(x, [sign * move, 0], [0.0, 0.0]),
        lambda x, sign: affine(x, [0, sign * move], [0.0, 0.0]),
        lambda x, sign: T.rotate(x, sign * 30.0 * m),
        lambda x, sign: T.adjust_brightness(x, 1 + sign * 0.9 * m),
        lambda x, sign: T.adjust_saturation(x, 1 + sign * 0.9 * m),
        lambda x, sign: T.adjust_contrast(x, 1 + sign * 0.9 * m),
        lambda x, sign: T.adjust_sharpness(x, 1 + sign * 0.9 * m),
        lambda x, sign: T.posterize(x, 8 - round(4 * m)),
        lambda x, sign: T.solarize(x, 255.0 * (1 - m)),
        lambda x, sign: T.autocontrast(x),
        lambda x, sign: T.equalize(x),
    ]


def random_erase(images: Tensor, probability: float) -> Tensor:
    """In some images of (B, C, S, S) a box of 2 % to 33 % of the area and sides of up to 3.3 to 1 becomes 0."""
    B, S = len(images), images.shape[-1]
    hit, area, aspect, y, x = torch.rand(5, B, device=images.device)
    area, aspect = 0.02 + 0.31 * area, torch.exp((2 * aspect - 1) * math.log(3.3))
    height, width = ((S * (area * a).sqrt()).round().clamp(1, S) for a in (aspect, 1 / aspect))
    box = boxes((y * (S - height + 1)).floor(), (x * (S - width + 1)).floor(), height, width, S)
    return images.masked_fill(box & (hit < probability)[:, None, None, None], 0)


def mixup_shares(images: Tensor, alpha: float) -> Tensor:
    """(B, 1, 1, 1): one share for the whole image, from Beta(alpha, alpha)."""
    a = torch.full((len(images), 1, 1, 1), float(alpha), device=images.device)
    return torch.distributions.Beta(a, a).sample()


def cutmix_shares(images: Tensor, alpha: float) -> Tensor:
    """(B, 1, S, S): 0 in a box around a random centre and 1 elsewhere; the box may reach beyond the image."""
    B, S = len(images), images.shape[-1]
    side = (S * (1 - mixup_shares(images, alpha).flatten()).sqrt()).round()
    y, x = torch.randint(S, (2, B), device=images.device)
    return 1 - boxes(y - (side / 2).floor(), x - (side / 2).floor(), side, side, S).to(images.dtype)


def boxes(top: Tensor, left: Tensor, height: Tensor, width: Tensor, size: int) -> Tensor:
    """(B, 1, S, S) true inside the boxes; all in pixels, (B,) each."""
    place = torch.arange(size, device=top.device)
    rows = (place >= top[:, None]) & (place < (top + height)[:, None])  # (B, S)
    columns = (place >= left[:, None]) & (place < (left + width)[:, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]
