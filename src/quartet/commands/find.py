"""`find_lr=true` and `find_batch_size=true`: a few steps of training that answer a question, and leave no run."""

from __future__ import annotations

import csv
import io
import secrets
import sys
import time
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from quartet.config import check_pairing
from quartet.engine.workers import environment_rank, n_workers
from quartet.files import written
from quartet.run import make_paths_absolute, outputs
from quartet.say import printable, say
from quartet.system.signals import stoppable
from quartet.typed import command, shell

QUESTIONS = ("find_lr", "find_batch_size")
SHOWN = 15  # lines of losses on the terminal; all of them are in the file


def asked(config: Any) -> list[str]:
    """The questions that a command line asks instead of training."""
    return [name for name in QUESTIONS if config.get(name)]


def find(config: DictConfig) -> None:
    """Answer the question of this config; ValueError for what can be known to be wrong before anything is read."""
    # 1. what does not go together
    questions = asked(config)
    if config.resume is not None:
        raise ValueError(f"resume={config.resume} resumes a run as it was; leave out {questions[0]}=true")
    if len(questions) > 1:
        raise ValueError(
            "find_lr and find_batch_size are two questions, and the rate depends on the size: ask for find_batch_size "
            "first, then for find_lr with that data.batch_size"
        )
    if (environment_rank() or (0, 1))[0] > 0:
        return
    check_pairing(config)

    # 2. as for a run: checked before data are read
    with open_dict(config):
        config.pop("sweep", None)
        config.run.name = config.run.name or "{model}-{data}".format(**HydraConfig.get().runtime.choices)
    say(
        f"{config.run.name}, seed {config.seed}: {'learning-rate range test' if config.find_lr else 'sizes of a batch'}"
    )
    if "torch" not in sys.modules:
        say("loading PyTorch")
    from quartet import build
    from quartet.engine.weights import find_source
    from quartet.system.hardware import is_out_of_memory

    build.check(config)
    make_paths_absolute(config)
    find_source(config)
    n_devices = n_workers(config) * config.trainer.num_nodes
    if n_devices > 1:
        say(f"on one device, which adds up the gradients of {n_devices} batches as {n_devices} devices would")
    with stoppable():
        try:
            (find_lr if config.find_lr else find_batch_size)(config)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            where = f"data.batch_size={config.data.batch_size} takes more memory than there is"
            raise ValueError(f"{where}; find_batch_size=true looks for one that fits") from error


def find_lr(config: DictConfig) -> Path:
    """Print and draw the losses of a range test with the rate that they suggest; returns the directory of the files."""
    from quartet.engine import range_test

    if not isinstance(config.optimizer.get("lr"), int | float):
        raise ValueError(f"find_lr=true needs an optimizer.lr to change, and {config.optimizer._target_} has none")
    rates, losses = range_test.range_test(config)
    curve = range_test.smoothed(losses)
    directory = make_directory(config, "find_lr")
    rows = [["lr", "loss", "smoothed"], *zip(rates, losses, curve, strict=True)]
    write_table(directory / "losses.csv", rows)
    suggestion = range_test.suggest(rates, losses)
    title = f"{config.run.name}, seed {config.seed}: {config.optimizer._target_.rpartition('.')[2]}"
    figure = directory / "losses.png"
    range_test.draw(figure, rates, losses, suggestion, config.optimizer.lr, title)

    # lines of equal distance, up to the end of the test
    every = -(-len(rates) // SHOWN)
    print(f"\n  {'optimizer.lr':>12}  {'loss':>8}  smoothed")
    for rate, loss, mean in zip(rates[::every], losses[::every], curve[::every], strict=True):
        print(f"  {rate:>12.1e}  {loss:>8.4g}  {mean:.4g}")
    say(f"\nsuggestion: optimizer.lr={suggestion:g}, where it is {config.optimizer.lr:g} now")
    say(f"look at:    {figure}")
    print(f"train with: {repeated(f'optimizer.lr={suggestion:g}')}", flush=True)
    return directory


def find_batch_size(config: DictConfig) -> Path:
    """Print how fast each size of batch trains, and which to take; returns the directory of the files."""
    from quartet.engine import batch_size
    from quartet.engine.batch_size import Size

    def show(size: Size) -> None:
        speed, memory = f"{size.per_second:,.0f} {size.unit}/s", f"{size.memory_bytes / 2**30:.2f} GB"
        row = f"{speed:>19}  {1000 * size.step_seconds:>10,.1f}  {size.steps_per_epoch:>14,}  {memory:>9}"
        print(f"  {size.batch_size:>15,}  {row}", flush=True)

    print(f"\n  data.batch_size  {'speed':>19}  {'ms a step':>10}  {'steps an epoch':>14}  {'memory':>9}", flush=True)
    sizes, reason = batch_size.try_sizes(config, show)
    say(f"no larger size: {reason}")
    if not sizes:
        raise ValueError("not even the smallest batch fits into memory; use a smaller network, or another precision")
    best = batch_size.suggest(sizes)
    directory = make_directory(config, "find_batch_size")
    write_table(directory / "sizes.csv", [Size._fields, *sizes])
    say(f"\nsuggestion: data.batch_size={best.batch_size}, the smallest with {batch_size.CLOSE:.0%} of the best speed")
    say("            speed is not quality: fewer steps an epoch want another rate (find_lr=true) or more epochs")
    say(f"written to: {directory}")
    print(f"train with: {repeated(f'data.batch_size={best.batch_size}')}", flush=True)
    return directory


def make_directory(config: DictConfig, question: str) -> Path:
    """A directory of its own that no other command takes for a run: it has no config.yaml."""
    name = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{secrets.token_hex(3)}"
    directory = outputs(config.run.root) / question / config.run.name / name
    directory.mkdir(parents=True)
    return directory


def write_table(path: Path, rows: list[Any]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    with written(path) as file:
        file.write(text.getvalue().encode())


def repeated(answer: str) -> str:
    """The command of this process as one that trains, with the answer."""
    key = answer.partition("=")[0]
    left_out = (f"{key}=", *(f"{question}=" for question in QUESTIONS))
    words = [word for word in HydraConfig.get().overrides.task if not word.lstrip("+").startswith(left_out)]
    return printable(command("train", *map(shell, words), answer))
