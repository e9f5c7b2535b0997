"""Image classifiers: any torchvision classifier by name, and a compact residual network for small images.

Sources: torchvision's models, as its documentation cites them; Goyal et al. 2017, a small normal head
(arXiv:1706.02677); He et al. 2015, section 4.2, a 3×3 stem for small images (arXiv:1512.03385); Page 2018, "How to
Train Your ResNet", and Jordan 2024, airbench (arXiv:2404.00498), for the compact network. We differ from torchvision in
three details: the head starts small for every family, `dropout` stands before it in every family and replaces the
family's own, and auxiliary classifiers (googlenet, inception) are left out.

Letters: B batch, S side of the square image in pixels, D width, C classes.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision import models

from quartet import signatures
from quartet.signatures import PositiveInt, Probability, nearest

SMALL_SIDE = 64  # pixels; up to here a stem that shrinks the image fourfold throws away too much
_RESNETS = ("resnet", "resnext", "wide_resnet")
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # classifiers in the middle of googlenet and inception
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # how files of 2017 name its layers


class TorchvisionClassifier(nn.Module):
    """Any torchvision classifier, its first and last layer fitted to the data: (B, 1 or 3, S, S) -> (B, C).

    `in_channels`, `image_size` and `n_classes` are facts of the data; the rest is `conf/model`. With `small_stem` the
    ResNet family starts with a 3×3 convolution and does not shrink the image before its first stage ("auto": images
    of at most 64 pixels). One channel is read by the sum of the first convolution's filters, as if it were grey colour.
    `weights` names the pretrained weights that will be loaded, or a file of them: "auto" then keeps the stem they are
    made for. The constructor loads nothing. They were trained on ImageNet's own normalisation; ours, by the statistics
    of the training images, is close enough for fine-tuning.

    Raises ValueError for an unknown name (with the nearest ones) and where the images are too small for the network.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        n_classes: int,
        name: str,
        weights: str | None,
        small_stem: bool | Literal["auto"],
        dropout: Probability,
        channels_last: bool,
    ):
        signatures.check(TorchvisionClassifier, locals())
        super().__init__()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

        # 1. torchvision's network, without weights
        options: dict[str, Any] = {}
        if name.startswith("vit_"):
            options = {"image_size": image_size}
        elif name.startswith("maxvit_"):
            options = {"input_size": (image_size, image_size)}
        elif name in ("googlenet", "inception_v3"):
            options = {"aux_logits": False, "init_weights": True}
        try:
            self.backbone = models.get_model(name, weights=None, num_classes=n_classes, **options)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ValueError(_does_not_fit(name, image_size, error)) from error

        # 2. small images: 3×3 with stride 1 for 7×7 with stride 2 and no max-pool, so the first stage sees every pixel
        if small_stem == "auto":
            small_stem = image_size <= SMALL_SIDE and weights is None
        self.small_stem = small_stem and isinstance(self.backbone, models.ResNet)
        if self.small_stem:
            _, first = _first_convolution(self.backbone)
            stem = nn.Conv2d(3, first.out_channels, kernel_size=3, padding=1, bias=False)
            nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
            self.backbone.set_submodule("conv1", stem)
            self.backbone.set_submodule("maxpool", nn.Identity())

        # 3. one channel: the sum over the first convolution's three filters keeps its responses to grey images
        _, first = _first_convolution(self.backbone)
        if first.in_channels != in_channels:
            assert in_channels == 1 and first.groups == 1, "images have 1 or 3 channels"
            first.in_channels = in_channels
            first.weight = nn.Parameter(first.weight.detach().sum(dim=1, keepdim=True))

        # 4. the last layer starts small, behind our dropout; the family's own is switched off
        for module in self.backbone.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        layers = [(n, m) for n, m in self.backbone.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        self.head_name, last = layers[-1]
        nn.init.normal_(last.weight, std=0.01)
        if last.bias is not None:
            nn.init.zeros_(last.bias)
        self.backbone.set_submodule(self.head_name, nn.Sequential(nn.Dropout(dropout), last))

        # 5. classify one black image: the only check of the size that holds for every family
        try:
            with torch.no_grad():
                self.eval().forward(torch.zeros(1, in_channels, image_size, image_size))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ValueError(_does_not_fit(name, image_size, error)) from error
        self.train()
        self.to(memory_format=self.memory_format)

    @staticmethod
    def problems(settings: dict[str, Any]) -> list[str]:
        """What is wrong with these `conf/model` values, one sentence each; keys may be missing."""
        name, small_stem, known = settings.get("name"), settings.get("small_stem"), models.list_models(module=models)
        problems = []
        if isinstance(name, str) and name not in known:
            problems.append(
                f"model.name={name} is not a torchvision classifier; the nearest are {nearest(name, known)}"
            )
        elif isinstance(name, str) and small_stem is True and not name.startswith(_RESNETS):
            problems.append(f"model.small_stem=true is for the ResNet family, not {name}; use auto or false")
        weights = settings.get("weights")
        if name in known and isinstance(weights, str) and not is_file(weights) and weights not in known_weights(name):
            problems.append(
                f"model.weights={weights} is unknown: {name} has {', '.join(known_weights(name))}; or name a .pth file"
            )
        return problems

    @property
    def head(self) -> nn.Module:
        return self.backbone.get_submodule(self.head_name)

    @property
    def fresh(self) -> tuple[str, ...]:
        """What begins so in `backbone` has no counterpart in torchvision's weights: the head, and a stem of our own."""
        return (f"{self.head_name}.", *(["conv1."] if self.small_stem else []))

    def fit_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Torchvision's state dict of this network as `backbone` takes it: without what is fresh, for our channels.

        Changed in place, as torch keeps the versions of modules beside the tensors.
        """
        first_name, first = _first_convolution(self.backbone)
        for key in list(state):
            name = _OLD_DENSENET.sub(r"\1\2", key)
            value = state.pop(key)
            if name == f"{first_name}.weight" and first.in_channels == 1 and value.ndim == 4:
                # colour filters as one of grey
                value = value.sum(dim=1, keepdim=True)
            if not name.startswith((*self.fresh, *_AUXILIARY)):
                state[name] = value
        return state

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1 or 3, S, S) normalised -> (B, C)."""
        return self.backbone(image.contiguous(memory_format=self.memory_format))


def known_weights(name: str) -> list[str]:
    """Names of the pretrained weights that torchvision has for a network."""
    return list(models.get_model_weights(name).__members__)


def is_file(weights: str) -> bool:
    """Whether `weights` is the path of a file, by its ending, and not the name of one of torchvision's."""
    return weights.endswith((".pth", ".pt"))


def _does_not_fit(name: str, image_size: int, error: Exception) -> str:
    reason = str(error).splitlines()[0]
    return (
        f"model.name={name} cannot work on images of {image_size}×{image_size} pixels ({reason}); "
        "use larger images, model.name=resnet18 or model=image_small"
    )


def _first_convolution(backbone: nn.Module) -> tuple[str, nn.Conv2d]:
    return next((name, module) for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d))


class SmallResNet(nn.Module):
    """A compact residual network for images from 8 to about 64 pixels: (B, 1 or 3, S, S) -> (B, C).

    A stem, then one stage per entry of `widths`: a convolution that halves the side (while it is above 4 pixels) and a
    residual one; the maximum over the positions; a linear head whose logits are multiplied by `logit_scale`.

    Raises ValueError where a size does not fit, all problems in one message.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        n_classes: int,
        widths: list[PositiveInt],
        dropout: Probability,
        logit_scale: float,
        channels_last: bool,
    ):
        signatures.check(SmallResNet, locals())
        super().__init__()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.logit_scale = logit_scale
        width, side = max(1, widths[0] // 2), image_size

        # the side is halved only while it is above 4 pixels: 8×8 images keep something to convolve
        self.stem = _convolution(in_channels, width)
        self.stages = nn.Sequential()
        for d_out in widths:
            self.stages.append(Stage(width, d_out, halve=side > 4))
            width, side = d_out, side // 2 if side > 4 else side

        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, n_classes))
        self.to(memory_format=self.memory_format)

    @staticmethod
    def problems(settings: dict[str, Any]) -> list[str]:
        """What is wrong with these `conf/model` values, one sentence each; keys may be missing."""
        size, problems = settings.get("image_size", 8), []
        if settings.get("widths") == []:
            problems.append("model.widths is empty; give one width for each stage")
        if size < 8:
            problems.append(f"images of {size}×{size} pixels are too small; use data of 8×8 or more")
        return problems

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1 or 3, S, S) normalised -> (B, C)."""
        x = self.stem(image.contiguous(memory_format=self.memory_format))  # (B, D/2, S, S)
        x = self.stages(x).amax((2, 3))  # (B, D)
        return self.head(x) * self.logit_scale


class Stage(nn.Module):
    """A convolution to the new width that may halve the side, then a residual one."""

    def __init__(self, width: int, d_out: int, *, halve: bool):
        super().__init__()
        self.widen = _convolution(width, d_out, halve)
        self.refine = _convolution(d_out, d_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.widen(x)  # (B, D, S, S) or (B, D, S/2, S/2)
        return x + self.refine(x)


def _convolution(width: int, d_out: int, halve: bool = False) -> nn.Sequential:
    """3×3, maximum of each 2×2 where the side is halved (odd sides round down), batch norm, activation."""
    return nn.Sequential(
        nn.Conv2d(width, d_out, kernel_size=3, padding=1, bias=False),
        nn.MaxPool2d(2) if halve else nn.Identity(),
        nn.BatchNorm2d(d_out),
        nn.ReLU(inplace=True),
    )
