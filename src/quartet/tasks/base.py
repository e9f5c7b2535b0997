"""What every task shares: one step for train, validation and test, penalties, parameter groups, schedules.

A task owns loss, metrics and optimisation; it never knows which network it trains. Batches are dicts
{"inputs": keyword arguments of the network, "target": …, "index": sample ids}.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric, Metric, MetricCollection

from quartet import optim
from quartet.data.spec import Spec
from quartet.system.distributed import total
from quartet.system.loop import is_logging_step, log_step

Batch = dict[str, Any]
MakeOptimizer = Callable[[nn.Module], Optimizer]
MakeScheduler = Callable[[Optimizer, int], dict[str, Any]]


def members(outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of an ensemble in training, (B, k, C), as (B·k, C) beside as many targets: the mean loss over members.

    It is not the loss of their mean, which would let them rely on each other (TabM, arXiv:2410.24210). One output for
    each sample, (B, C), stays as it is.
    """
    # evaluation has one output for each sample: networks average their members there
    if outputs.ndim < 3:
        return outputs, target
    return outputs.flatten(0, 1), target.repeat_interleave(outputs.shape[1], dim=0)


class Task(LightningModule):
    """A network with its loss, metrics and optimisation.

    `make_optimizer(network)` and `make_scheduler(optimizer, total_steps)` come from `build`; without them the task can
    only evaluate. `l1` and `l2` weigh the sums of absolute and of squared weights (decaying parameters only: no norms,
    biases, embeddings) that are added to the training loss; the logged loss is without them.
    `METRICS` names what validation logs as `val/<name>`.
    """

    METRICS: tuple[str, ...]
    network: Any

    def __init__(
        self,
        *,
        network: nn.Module,
        spec: Spec,
        make_optimizer: MakeOptimizer | None = None,
        make_scheduler: MakeScheduler | None = None,
        l1: float,
        l2: float,
    ):
        super().__init__()
        self.network, self.spec = network, spec
        self.make_optimizer, self.make_scheduler = make_optimizer, make_scheduler
        self.l1, self.l2 = l1, l2
        self._validated = False  # since the last step of a plateau schedule
        self._n_scored = 0  # samples of this validation or test, by this worker

    @abstractmethod
    def step(self, batch: Batch, part: str) -> tuple[Tensor, dict[str, Tensor] | None]:
        """The mean loss of a batch, with the metrics of `part` updated; and what figures are drawn from."""

    @abstractmethod
    def log_metrics(self, part: str) -> None:
        """Log and reset the metrics gathered over validation or test."""

    def undefined(self, targets: Tensor) -> set[str]:
        """Which of `METRICS` have no value for a part with these targets, whatever is predicted; they are not logged."""
        return set()

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        loss, _ = self.step(batch, "train")
        penalty = self.penalty()
        if penalty is None:
            return loss
        if self.logging_due:
            log_step(self.trainer, {"train/penalty": penalty.detach()})
        return loss + penalty

    @property
    def logging_due(self) -> bool:
        """Whether this training step's values reach the loggers; others are not worth their computation."""
        return is_logging_step(self.trainer, self.trainer.global_step + 1)

    def validation_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor] | None:
        return self._score(batch, "val")

    def test_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor] | None:
        return self._score(batch, "test")

    def on_validation_epoch_start(self) -> None:
        self._n_scored = 0

    def on_test_epoch_start(self) -> None:
        self._n_scored = 0

    def on_validation_epoch_end(self) -> None:
        self._check_count("val")
        self.log_metrics("val")
        self._validated = True

    def on_test_epoch_end(self) -> None:
        self._check_count("test")
        self.log_metrics("test")

    def _score(self, batch: Batch, part: str) -> dict[str, Tensor] | None:
        if "filler" in batch:  # workers that hold shares of the network wait for each other in it
            self.network(**batch["inputs"])
            return None
        # counted, so that a sample that two workers have scored, or none, is noticed
        self._n_scored += len(batch["target"])
        return self.step(batch, part)[1]

    def _check_count(self, part: str) -> None:
        """Metrics are of every sample, once, whatever the number of workers."""
        trainer: Any = self.trainer
        datasets = getattr(trainer.datamodule, "datasets", {})
        limit = getattr(trainer, f"limit_{part}_batches")
        if part in datasets and isinstance(limit, float) and limit == 1.0:  # 1 would be one batch
            n = total(trainer, self._n_scored)
            assert n == len(datasets[part]), f"{part}: {n} samples were scored, there are {len(datasets[part])}"

    def penalty(self) -> Tensor | None:
        if not (self.l1 or self.l2):
            return None
        # the group that weight decay would shrink; sharded weights are summed over all ranks
        weights = optim.parameter_groups(self.network, weight_decay=1.0)[0]["params"]
        total = torch.zeros((), device=self.device)
        for weight in weights:
            if self.l1:
                total = total + self.l1 * optim.whole(weight.abs().sum())
            if self.l2:
                total = total + self.l2 * optim.whole(weight.square().sum())
        return total

    def configure_optimizers(self) -> Any:
        assert self.make_optimizer and self.make_scheduler, "this task was built for evaluation"
        # the number of steps is known only now, when the trainer knows its loader
        optimizer = self.make_optimizer(self.network)
        total_steps = int(self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer, total_steps)}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Lightning's, with a norm that is the same for every strategy."""
        if not gradient_clip_val or gradient_clip_algorithm not in (None, "norm"):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        optim.clip_gradients((p for group in optimizer.param_groups for p in group["params"]), gradient_clip_val)

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        """Schedules follow the steps; plateau follows the validations, of which there are fewer."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()
        elif self._validated and metric is not None:
            self._validated = False
            scheduler.step(metric)


class ScoredTask(Task):
    """A task whose validation and test gather the mean loss and a collection of metrics of (prediction, target)."""

    def __init__(self, **common: Any):
        super().__init__(**common)
        self.losses = nn.ModuleDict({f"{part}_loss": MeanMetric() for part in ("val", "test")})
        self.scores = nn.ModuleDict({f"{part}_scores": self.new_metrics() for part in ("val", "test")})

    @abstractmethod
    def new_metrics(self) -> Metric | MetricCollection:
        """The metrics of (prediction, target); `compute` gives each under the name it is logged by."""

    def record(self, part: str, loss: Tensor, prediction: Tensor, target: Tensor) -> None:
        self.losses[f"{part}_loss"].update(loss, weight=len(target))  # type: ignore[operator]
        self.scores[f"{part}_scores"].update(prediction, target)  # type: ignore[operator]

    def log_metrics(self, part: str) -> None:
        loss, scores = self.losses[f"{part}_loss"], self.scores[f"{part}_scores"]
        self.log(f"{part}/loss", loss.compute())  # type: ignore[operator]
        self.log_dict({f"{part}{name}": value for name, value in self.defined(scores.compute()).items()})  # type: ignore[operator]
        loss.reset()  # type: ignore[operator]
        scores.reset()  # type: ignore[operator]

    @abstractmethod
    def predict(self, inputs: dict[str, Tensor]) -> Tensor:
        """What the network predicts: probabilities (B, C), or numbers (B,) in the target's own unit."""

    def defined(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """The metrics that have a value, by what follows the name of the part: "/accuracy", "_per_class/f1_of_cat"."""
        return {f"/{name}": value for name, value in scores.items()}

    def measure(self, prediction: Tensor, target: Tensor) -> dict[str, float]:
        """The metrics of predictions, as validation and test would log them."""
        scores = self.new_metrics()
        scores.update(prediction, target)
        return {name: float(value) for name, value in self.defined(scores.compute()).items()}
