"""Fair timing for the files beside this one: what is compared runs in turn, round after round, and ratios are of one round.

A shared machine is faster now and slower then; neighbours in time meet the same. Seconds are wall time.
"""

from __future__ import annotations

import contextlib
import io
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import hydra
import torch
from omegaconf import open_dict
from pytorch_lightning import Callback

PROJECT = Path(__file__).resolve().parents[1]
WARM_UP = 10  # steps before the clock runs
Kinds = dict[str, Callable[[], float]]


def compare(kinds: Kinds, *, rounds: int, base: str, unit: str) -> dict[str, list[float]]:
    """Time the kinds in turn and print a table: each one's median with its smallest and largest, and its ratio to `base`."""
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(rounds):
        for name, kind in kinds.items():
            times[name].append(kind())
            print(f"round {number + 1} of {rounds}: {name} {times[name][-1]:.3g} {unit}", file=sys.stderr, flush=True)
    width = max(map(len, kinds))
    print(f"{'':{width}s}  {unit:>24s}  {f'/ {base}':>24s}")
    for name, values in times.items():
        ratios = [a / b for a, b in zip(values, times[base], strict=True)]
        print(f"{name:{width}s}  {spread(values):>24s}  {spread(ratios):>24s}", flush=True)
    return times


def spread(values: list[float]) -> str:
    return f"{median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def machine() -> str:
    """What the figures were made on, in a line."""
    name, capability = platform.processor() or platform.machine(), torch.backends.cpu.get_cpu_capability()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"{name}, {capability}, {torch.get_num_threads()} threads, torch {torch.__version__}"


class Clock(Callback):
    """Seconds from the start of step `WARM_UP` to the end of the last one."""

    def __init__(self) -> None:
        self.first = self.last = 0.0
        self.n = 0

    def on_train_batch_start(self, *_: Any) -> None:
        if self.n == WARM_UP:
            self.first = time.perf_counter()
        self.n += 1

    def on_train_batch_end(self, *_: Any) -> None:
        self.last = time.perf_counter()


def compose(*words: str) -> Any:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(PROJECT / "conf")):
        return hydra.compose("train", list(words))


def network_of(words: list[str], **facts: Any) -> torch.nn.Module:
    """The network of a command line, with the sizes that its data would give it."""
    from quartet import build

    torch.manual_seed(0)
    return build.make(build.plain(compose(*words))["model"], "model", **facts)


def training_step(*words: str, steps: int) -> float:
    """Milliseconds of a step of `scripts/train.py` with these words, all that it does between two validations counted."""
    from quartet import build
    from quartet.commands.train import create_and_train

    length = ["length.max_epochs=-1", f"length.max_steps={steps}", f"length.val_check_interval={steps}"]
    short = ["+trainer.limit_val_batches=1", "trainer.accelerator=cpu", "test=false", "callbacks.data_report=null"]
    clock, callbacks = Clock(), build.build_callbacks
    with tempfile.TemporaryDirectory() as place:
        config = compose(*words, *length, *short, f"run.dir={place}/run")
        with open_dict(config):
            config.run.name = "benchmark"
            config.pop("sweep", None)
        build.build_callbacks = lambda *arguments: [clock, *callbacks(*arguments)]
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                create_and_train(config)
        finally:
            build.build_callbacks = callbacks
    return (clock.last - clock.first) / (steps - WARM_UP) * 1000


def loop_step(step: Callable[[], None], *, steps: int) -> float:
    """Milliseconds of one call of `step`."""
    for _ in range(WARM_UP):
        step()
    started = time.perf_counter()
    for _ in range(steps - WARM_UP):
        step()
    return (time.perf_counter() - started) / (steps - WARM_UP) * 1000
