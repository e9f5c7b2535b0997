"""Classification: logits (B, C) against class numbers (B,); losses, weights, and metrics per class and overall."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassAveragePrecision,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from quartet.system.loop import log_step
from quartet.tasks.base import Batch, ScoredTask, members
from quartet.tasks.metrics import ClassCounts


def cross_entropy(logits: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """Softmax cross-entropy against target probabilities (B, C), a loss for each sample (B,)."""
    return F.cross_entropy(logits, target, weight=weights, reduction="none")


def binary_cross_entropy(logits: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """One sigmoid for each class against the rest, summed over classes."""
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (losses if weights is None else losses * weights).sum(-1)


def mean_squared_error(logits: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """Squared distance between probabilities and target (the Brier score)."""
    losses = (logits.softmax(-1) - target).square()
    return (losses if weights is None else losses * weights).sum(-1)


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "mean_squared_error": mean_squared_error,
}


class Classification(ScoredTask):
    """`class_weights` is None, "auto" (inverse to the training counts, mean 1) or a list with one weight for each class.

    Label smoothing and weights shape the training loss; validation and test report the plain one. Raises ValueError for
    an unknown loss or a list of weights of the wrong length.
    """

    METRICS = (
        "loss",
        "accuracy",
        "precision",
        "recall",
        "f1",
        "auroc",
        "average_precision",
        "calibration_error",
    )
    weights: Tensor | None

    def __init__(self, *, loss: str, label_smoothing: float, class_weights: str | list[float] | None, **common: Any):
        super().__init__(**common)
        if loss not in LOSSES:
            raise ValueError(f"task.loss must be one of {', '.join(LOSSES)}, not {loss!r}")
        if loss == "binary_cross_entropy" and getattr(self.network, "n_members", 1) > 1:
            raise ValueError(
                "task.loss=binary_cross_entropy and model.ensemble do not go together: softmax probabilities are averaged; "
                "use task.loss=cross_entropy"
            )
        self.loss, self.label_smoothing = LOSSES[loss], label_smoothing
        self.register_buffer("weights", self._class_weights(class_weights), persistent=False)

    @property
    def n_classes(self) -> int:
        return len(self.spec.classes)

    def step(self, batch: Batch, part: str) -> tuple[Tensor, dict[str, Tensor]]:
        outputs, target = self.network(**batch["inputs"]).float(), batch["target"]
        # 1. the loss: smoothing and weights shape training only, so that validations can be compared
        training = part == "train"
        smoothing = self.label_smoothing if training else 0.0
        weights = self.weights if training else None
        if self.loss is cross_entropy and "mix" not in batch:
            # against class numbers it needs no table of probabilities
            logits, wanted = members(outputs, target)
            losses = F.cross_entropy(logits, wanted, weight=weights, reduction="none", label_smoothing=smoothing)
        else:
            logits, wanted = members(outputs, self.wanted(batch) * (1 - smoothing) + smoothing / self.n_classes)
            losses = self.loss(logits, wanted, weights)
        loss = losses.mean()
        # 2. what is logged
        if training:
            if self.logging_due:
                accuracy = (logits.argmax(-1) == members(outputs, target)[1]).float().mean()
                log_step(self.trainer, {"train/loss": loss.detach(), "train/accuracy": accuracy})
            return loss, {}
        probabilities = self.probabilities(logits)
        self.record(part, loss, probabilities, target)
        return loss, {"prediction": probabilities.detach(), "target": target, "index": batch["index"]}

    def wanted(self, batch: Batch) -> Tensor:
        """(B, C) probabilities: one class each, or two where augmentation mixed samples (`target_mix`, `mix`)."""
        one_hot = F.one_hot(batch["target"], self.n_classes)
        if "mix" not in batch:
            return one_hot
        # mixup and CutMix: the loss of a mixed target is the mixture of the two losses
        share = batch["mix"][:, None]
        return share * one_hot + (1 - share) * F.one_hot(batch["target_mix"], self.n_classes)

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, C) that sum to 1: normalised sigmoids where the loss has one for each class."""
        if self.loss is not binary_cross_entropy:
            return logits.softmax(-1)
        scores = logits.sigmoid()
        return (scores / scores.sum(-1, keepdim=True).clamp(min=1e-12)).clamp(max=1)

    def predict(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.probabilities(self.network(**inputs).float())

    def defined(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is averaged over classes is so over those that occur; what is not defined is left out.

        A class without samples has neither AUROC nor average precision, nor recall, and one without any other class
        beside it has no AUROC. Precision, recall and F1 are averaged over the classes that occur or are predicted. All
        of it is as scikit-learn has it.
        """
        counts, found = scores["counts"], {}
        occurs = counts > 0
        defined = {"auroc": occurs & (counts < counts.sum()), "average_precision": occurs}
        for name, value in scores.items():
            if name == "counts":
                continue
            if value.ndim == 0:
                found[f"/{name}"] = value
            elif name not in defined:
                for label, of_class, there in zip(self.spec.classes, value, occurs, strict=True):
                    if there:
                        found[f"_per_class/{name}_{label}"] = of_class
            elif defined[name].any():
                found[f"/{name}"] = value[defined[name]].mean()
        return found

    def undefined(self, targets: Tensor) -> set[str]:
        return {"auroc"} if len(targets.unique()) < 2 else set()

    def _class_weights(self, given: str | list[float] | None) -> Tensor | None:
        if given is None:
            return None
        if given == "auto":
            # a class that training does not have counts as one sample: its weight stays finite
            counts = torch.tensor(self.spec.class_counts, dtype=torch.float32)
            return counts.sum() / (len(counts) * counts.clamp(min=1))
        if isinstance(given, str) or len(given) != self.n_classes:
            raise ValueError(
                f"task.class_weights must be null, auto or {self.n_classes} numbers "
                f"(for {', '.join(self.spec.classes)}), not {given}"
            )
        return torch.tensor(given, dtype=torch.float32)

    def new_metrics(self) -> MetricCollection:
        # the arguments are right, and checking those of each batch would wait for the device
        n = self.n_classes
        unchecked: dict[str, Any] = {"validate_args": False}
        each = {"average": None, **unchecked}
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(n, average="micro", **unchecked),
                "precision": MulticlassPrecision(n, **unchecked),
                "recall": MulticlassRecall(n, **unchecked),
                "f1": MulticlassF1Score(n, **unchecked),
                "auroc": MulticlassAUROC(n, **each),
                "average_precision": MulticlassAveragePrecision(n, **each),
                "calibration_error": MulticlassCalibrationError(n, **unchecked),
                "precision_of": MulticlassPrecision(n, **each),
                "recall_of": MulticlassRecall(n, **each),
                "f1_of": MulticlassF1Score(n, **each),
                "counts": ClassCounts(n),
            },
            compute_groups=False,
        )
