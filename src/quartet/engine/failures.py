"""What stops a training run, in words that say what to do."""

from __future__ import annotations

import errno

from quartet.run import Run
from quartet.system.hardware import is_out_of_memory
from quartet.system.lightning_compat import is_restore_error
from quartet.typed import argument

TOO_LARGE = "out of memory before the first step: the network or the data are too large for it; use smaller ones"


def explain(error: BaseException, run: Run) -> BaseException:
    """The error with a remedy if there is one, else the error itself."""
    # a full disk: torch.save hides the file's error behind a RuntimeError of its own
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            kept = (
                "its last checkpoint is intact" if run.last_checkpoint else "it has no checkpoint yet and would restart"
            )
            return OSError(f"the disk of {run} is full: make room and retry with {argument('resume', run)}; {kept}")
        cause = cause.__cause__ or cause.__context__

    if is_restore_error(error):
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no more is known'}"
        return ValueError(
            f"{run.last_checkpoint} does not fit the run ({reason}); restore the run's own, or train again"
        )

    if is_out_of_memory(error):
        # half the batch, accumulated twice as often: the same samples make a step
        size, window = run.config.data.batch_size, run.config.trainer.accumulate_grad_batches
        remedy = f"try data.batch_size={size // 2} trainer.accumulate_grad_batches={2 * window}"
        if size == 1:
            remedy = "one sample is too much: use a smaller model or shorter samples, or trainer.precision=bf16-mixed"
        return ValueError(f"out of memory with data.batch_size={size}; {remedy}")
    return error
