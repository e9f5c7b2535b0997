"""What stops a training run, in words that say what to do."""

from __future__ import annotations

import errno

import torch

from quartet.run import Run

NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")


def explain(error: BaseException, run: Run) -> BaseException:
    """The error with a remedy where there is one, else the error itself."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OSError(f"the disk of {run} is full: make room, then go on with resume={run}; {_kept(run)}")
    if _is_out_of_memory(error):
        return ValueError(f"out of memory with {_batch(run)}; {_smaller_batch(run)}")
    return error


def _kept(run: Run) -> str:
    return "its last checkpoint is whole" if run.last_checkpoint else "it has no checkpoint yet and would start anew"


def _is_out_of_memory(error: BaseException) -> bool:
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
        return "one sample at a time is too much: take a smaller model or shorter samples, or trainer.precision=bf16-mixed"
    return f"try data.batch_size={size // 2} trainer.accumulate_grad_batches={2 * gathered}"
