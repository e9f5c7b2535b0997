"""Everything that Quartet does with private parts of PyTorch Lightning, or relies on without a promise of its documentation.

The loop over batches has a file to itself, `system/loop.py`.

The places named below were read in pytorch-lightning 2.6.6. `tests/test_lightning_compat.py` looks for counters, states
and wrappers by name; the tests of resuming, steps and failures show whether the rest still does what it is for.
"""

from __future__ import annotations

import traceback
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch.optim import Optimizer


def dump_state(trainer: Trainer) -> dict[str, Any]:
    """The whole state of a training as `Trainer.save_checkpoint` writes it; of all ranks, if they hold shards.

    checkpoint_connector.py, `dump_checkpoint`. The public method writes a file itself, not atomically.
    """
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def count_completed_batches(state: dict[str, Any]) -> dict[str, Any]:
    """Write into a state that was taken before a step that this step has not begun."""
    # loops/training_epoch_loop.py, `advance`: the batch is counted as `ready` before its hooks are called, and what
    # becomes of such a batch after a restart differs by case
    progress = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["current"], progress["total"]):
        counts.update(dict.fromkeys(("ready", "started", "processed"), counts["completed"]))
    progress["is_last_batch"] = False
    return state


def logged_step(trainer: Trainer) -> int:
    """The step under which the loggers get the next values (training_epoch_loop.py, `_batches_that_stepped`)."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def correct_logged_step(trainer: Trainer) -> None:
    """At the start of a resumed training that has just validated, undo a count without a step."""
    # training_epoch_loop.py, `on_advance_end`: the loop begins with a round that makes no step, and counts it
    loop = trainer.fit_loop.epoch_loop
    if loop.restarting and loop._should_check_val_fx(trainer.fit_loop._data_fetcher):  # type: ignore[arg-type]
        loop._batches_that_stepped -= 1


def batches_seen(trainer: Trainer) -> tuple[int, int]:
    """Whole epochs, and batches of the present epoch, that training has seen before the next batch."""
    loop: Any = trainer.fit_loop
    return loop.epoch_progress.current.processed, loop.epoch_loop.batch_progress.current.ready


def align_validation(trainer: Trainer) -> None:
    """Validate after whole optimizer steps: Lightning counts batches, several per step if gradients accumulate."""
    # `val_check_batch` is set by fit_loop.py, `setup_data`, and read after each batch
    window = trainer.accumulate_grad_batches
    if isinstance(trainer.val_check_interval, int):
        trainer.val_check_batch = trainer.val_check_interval * window
    elif isinstance(trainer.val_check_batch, int):
        trainer.val_check_batch = max(window, trainer.val_check_batch // window * window)


def end_with_validation(trainer: Trainer) -> None:
    """After the last step validate, whatever the interval."""
    # training_epoch_loop.py, `_should_check_val_fx`: a loop that is asked to stop validates first
    trainer.should_stop = True


def is_restore_error(error: BaseException) -> bool:
    """Whether the error was raised while Lightning applied a checkpoint; it wraps none of them."""
    # checkpoint_connector.py, `restore…`
    frames = traceback.extract_tb(error.__traceback__) if isinstance(error, Exception) else []
    return any(f.filename.endswith("checkpoint_connector.py") and "restore" in f.name for f in frames)


def set_data_parallel_size(strategy: Any) -> None:
    """All processes of a `ModelParallelStrategy` share the data; "auto" would count those of one node."""
    strategy._data_parallel_size = strategy.num_nodes * strategy.num_processes


def unwrap_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer of the user inside Lightning's wrapper (core/optimizer.py)."""
    return optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
