"""Samples of text that a language model writes in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn

from quartet import sampling
from quartet.callbacks.tensorboard import show_text

OPENING = 32  # tokens of the validation text that are continued if no prompt is given


class TextSamples(Callback):
    """A language model writes after each validation: to TensorBoard (`val/sample`) and `samples/step-000120.txt`.

    `prompt` null takes the opening of the validation text. The same random numbers are used each time, so that samples
    differ by the model alone; training is left untouched (mode of each module, global random state).
    """

    def __init__(
        self,
        *,
        prompt: str | None,
        max_tokens: int,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        seed: int,
    ):
        self.prompt, self.seed = prompt, seed
        self.settings: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
        self.settings.update(top_k=top_k, top_p=top_p)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # not on_validation_end: by then averaged weights (EMA) are swapped out again
        task, data = pl_module, trainer.datamodule  # type: ignore[attr-defined]
        is_language_model = "vocab_size" in task.spec.sizes and task.spec.sizes.get("n_classes") is None  # type: ignore
        if trainer.state.fn != "fit" or not is_language_model:
            return
        tokenizer: Any = data.tokenizer
        if self.prompt:
            prompt = tokenizer.encode(self.prompt)
        else:
            first = data.datasets["val"].gather(torch.zeros(1, dtype=torch.int64))
            prompt = first["inputs"]["tokens"][0, :OPENING].tolist()
        # every rank writes: with a sharded network they need each other
        with evaluating(task.network):  # type: ignore[arg-type]
            generator = torch.Generator().manual_seed(self.seed)
            never = {"stop_id": tokenizer.eos_id, "forbidden_ids": tokenizer.textless_ids}
            written = sampling.generate(task.network, prompt, generator=generator, **never, **self.settings)  # type: ignore[arg-type]
        if trainer.is_global_zero:
            file = Path("samples", f"step-{trainer.global_step:06}.txt")
            show_text(trainer, "val/sample", file, tokenizer.decode([*prompt, *written]), verbatim=True)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode; afterwards each module is in its own mode again (some may be frozen)."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
