"""What it costs to be able to go on: seconds for a checkpoint beside the seconds of a training step.

    python benchmarks/checkpoint.py        the default Transformer and ResNet-18 on digits, a minute

A checkpoint is the whole state (weights, optimizer, schedule, counters), written to a temporary file, flushed to the disk
and renamed. `write` is that, without the fsync in brackets; `load` reads it back as resuming does.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from pytorch_lightning import Callback, Trainer

from quartet import build
from quartet.commands.train import create
from quartet.config_errors import compose
from quartet.engine import checkpoint
from quartet.engine.fit import train
from quartet.engine.weights import read_checkpoint
from quartet.system.quiet import quiet_libraries

SETTINGS = {
    "transformer": ["model=transformer"],
    "resnet18": ["model=image"],
}
COMMON = ["run.name=checkpoint", "trainer.max_steps=12", "trainer.max_epochs=-1", "trainer.val_check_interval=12"]
COMMON += ["callbacks=none", "callbacks.checkpoint.every_n_steps=1", "++trainer.limit_val_batches=1"]
COMMON += ["++trainer.limit_test_batches=1"]


class Steps(Callback):
    """Seconds of each step, without what happens between steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_before_zero_grad(self, trainer: Trainer, *_: Any) -> None:
        self.begun = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds.append(time.perf_counter() - self.begun)


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        begun = time.perf_counter()
        result = function(*arguments)
        seconds.append(time.perf_counter() - begun)
        return result

    return call


def measure(name: str) -> None:
    steps, writes, syncs, made = Steps(), [], [], build.build_callbacks
    build.build_callbacks = lambda *arguments: [*made(*arguments), steps]
    write, sync = checkpoint.write, os.fsync
    checkpoint.write, os.fsync = timed(write, writes), timed(sync, syncs)
    try:
        run, data = create(compose("train", [*SETTINGS[name], *COMMON]))
        train(run, data)
    finally:
        build.build_callbacks, checkpoint.write, os.fsync = made, write, sync
    assert run.last_checkpoint
    begun = time.perf_counter()
    read_checkpoint(run.last_checkpoint)
    load = time.perf_counter() - begun
    step, one, flushed = (statistics.median(x) for x in (steps.seconds[2:], writes[2:], syncs))
    size = run.last_checkpoint.stat().st_size / 1e6
    print(
        f"{name:12s} {size:7.1f} MB  step {step:.3f} s  write {one:.3f} s (fsync {2 * flushed:.3f})  load {load:.3f} s  "
        f"a checkpoint costs {one / step:.2f} steps",
        flush=True,
    )


def main() -> None:
    quiet_libraries()
    with tempfile.TemporaryDirectory(dir=".") as folder:  # on the disk of the project, not in memory
        os.environ["QUARTET_OUTPUTS"] = folder
        for name in SETTINGS:
            measure(name)


if __name__ == "__main__":
    main()
