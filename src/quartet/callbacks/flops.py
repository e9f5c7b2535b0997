"""How much of the device a training uses: FLOPs a second, and their share of what the device could do."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from quartet.callbacks.monitors import Throughput
from quartet.system.flops import StepFlops, peak_flops
from quartet.system.loop import is_logging_step, log_step


class ModelFlops(Callback):
    """Logs `throughput/teraflops_per_second` of all workers, and `throughput/model_flops_utilisation` of known devices.

    FLOPs are those of the network, forward and backward (see `quartet.system.flops`), counted once, before the first step.
    Time is that of `Throughput`, which has to stand before this callback. Nothing is logged without it, or for a network
    whose shapes depend on the values of its inputs.
    """

    def __init__(self) -> None:
        self._flops: StepFlops | None = None
        self._speed: Throughput | None = None
        self._numbers, self._seconds, self._step = 0, 0.0, 0  # in the inputs since the last logging step; at it

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # before the strategy shards the weights
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        self._speed = next((callback for callback in callbacks if isinstance(callback, Throughput)), None)
        if stage == "fit" and self._speed:
            with suppress(Exception):  # a network of the user's that cannot be copied
                self._flops = StepFlops(pl_module.network)  # type: ignore[arg-type]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._numbers, self._seconds = 0, self._speed.seconds if self._speed else 0.0
        self._step = trainer.global_step
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._count(pl_module, data.first_inputs(data.batch_size))  # before the clock runs

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        speed = self._speed
        if speed is None:
            return
        for x in batch["inputs"].values():
            self._numbers += x.numel()
        # while gradients accumulate, several batches end in the same step
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if not (stepped and is_logging_step(trainer, self._step)):
            return
        seconds, self._seconds = speed.seconds - self._seconds, speed.seconds
        # batches of other lengths are taken to cost as much for each number
        size = sum(x.numel() for x in batch["inputs"].values())
        rate = self._count(pl_module, batch["inputs"]) / size * self._numbers * trainer.world_size / max(seconds, 1e-9)
        self._numbers = 0
        if rate > 0:
            values = {"throughput/teraflops_per_second": rate / 1e12}
            peak = peak_flops(pl_module.device, str(trainer.precision), pl_module.network)  # type: ignore[arg-type]
            if peak is not None:
                values["throughput/model_flops_utilisation"] = rate / (peak * trainer.world_size)
            log_step(trainer, values)

    def _count(self, pl_module: LightningModule, inputs: dict[str, Tensor]) -> float:
        try:
            return self._flops.of(inputs, pl_module.network) if self._flops else 0.0  # type: ignore[arg-type]
        except Exception:  # whatever a network of the user's may do without values
            self._flops = None
            return 0.0
