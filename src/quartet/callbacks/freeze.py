"""Fine-tuning in two phases: the head alone, then the whole network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer


class Freeze(Callback):
    """For the first `epochs` epochs trains the head only; everything else stays as it is, to the bit.

    A frozen module is in evaluation mode: batch norm uses its statistics and does not move them, dropout is off. What
    is frozen depends on the epoch alone and the optimizer holds all parameters from the start, so a resumed run continues
    as it was. (Lightning's BaseFinetuning adds parameter groups on the way and freezes again on resume.)
    """

    def __init__(self, *, epochs: int):
        self.epochs = epochs
        self._frozen: bool | None = None  # not known before the first batch of a process

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # not at the start of an epoch, which Lightning does not announce when it resumes in the middle of one
        frozen = trainer.current_epoch < self.epochs
        if frozen == self._frozen:
            return
        self._frozen = frozen
        for module in backbone_modules(pl_module.network):
            module.training = not frozen
        # DDP waits for a gradient of each parameter that it was given
        if trainer.world_size == 1:
            for parameter in backbone_parameters(pl_module.network):
                parameter.requires_grad_(not frozen)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # optimizers skip what has no gradient: neither momentum nor weight decay moves it
        if self._frozen:
            for parameter in backbone_parameters(pl_module.network):
                parameter.grad = None


def backbone_modules(network: Any) -> Iterator[nn.Module]:
    """All modules outside the head that behave otherwise in evaluation; cuDNN's cells learn in training mode only."""
    head = set(network.head.modules())
    return (module for module in network.modules() if module not in head and not isinstance(module, nn.RNNBase))


def backbone_parameters(network: Any) -> Iterator[nn.Parameter]:
    head = {id(p) for p in network.head.parameters()}
    return (parameter for parameter in network.parameters() if id(parameter) not in head)
