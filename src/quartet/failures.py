"""What stops a training run, in words that say what to do."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator

import torch

from quartet.run import Run
from quartet.typed import argument

NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")
TOO_LARGE = "out of memory before the first step: the network or the data are too large for it; take smaller ones"


def explain(error: BaseException, run: Run) -> BaseException:
    """The error with a remedy where there is one, else the error itself."""
    if any(isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT) for e in _chain(error)):
        return OSError(f"the disk of {run} is full: make room, then go on with {argument('resume', run)}; {_kept(run)}")
    if _of_restoring(error):
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no more is known'}"
        return ValueError(
            f"{run.last_checkpoint} does not fit the run ({reason}); bring back the run's own, or train again"
        )
    if is_out_of_memory(error):
        return ValueError(f"out of memory with {_batch(run)}; {_smaller_batch(run)}")
    return error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came of: torch.save hides that of the file behind a RuntimeError of its own."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _of_restoring(error: BaseException) -> bool:
    """Whether Lightning was taking a checkpoint apart; what it does not find there are errors of all kinds."""
    frames = traceback.extract_tb(error.__traceback__) if isinstance(error, Exception) else []
    return any(f.filename.endswith("checkpoint_connector.py") and "restore" in f.name for f in frames)


def _kept(run: Run) -> str:
    return "its last checkpoint is whole" if run.last_checkpoint else "it has no checkpoint yet and would start anew"


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in NO_MEMORY)


def _batch(run: Run) -> str:
    return f"data.batch_size={run.config.data.batch_size}"


def _smaller_batch(run: Run) -> str:
    """Half the batch, gathered twice: the same samples make a step."""
    config = run.config
    size, gathered = config.data.batch_size, config.trainer.accumulate_grad_batches
    if size == 1:
        return (
            "one sample at a time is too much: use a smaller model or shorter samples, or trainer.precision=bf16-mixed"
        )
    return f"try data.batch_size={size // 2} trainer.accumulate_grad_batches={2 * gathered}"
