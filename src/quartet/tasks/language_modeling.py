"""Language modelling: predict the next token; cross-entropy, perplexity, bits per byte, accuracy."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import SumMetric

from quartet.system.distributed import gathered
from quartet.system.loop import log_step
from quartet.tasks.base import Batch, Task
from quartet.tasks.metrics import argmax


class LanguageModeling(Task):
    """Batches: tokens (B, T) and the tokens that follow them (B, T); the network gives logits (B, T, V).

    With `order` "contiguous" the rows of successive batches continue each other, and the network's state is carried from
    one to the next without gradient (truncated back-propagation through time, Williams & Peng 1990); it starts anew with
    each epoch. Losses are in nats per token; bits per byte are comparable between tokenizers. Accuracy is the share of
    tokens that the network held for the likeliest.
    """

    METRICS = ("loss", "perplexity", "bits_per_byte", "accuracy")
    token_bytes: Tensor
    sums: Any

    def __init__(self, *, order: str, label_smoothing: float, **common: Any):
        super().__init__(**common)
        self.carries_state, self.label_smoothing = order == "contiguous", label_smoothing
        if self.carries_state and not getattr(self.network, "carries_state", hasattr(self.network, "advance")):
            kind = type(self.network).__name__
            raise ValueError(
                "contiguous windows need a network with advance(tokens, state) whose state carries over to the next window, "
                f"and that of {kind} does not; pairing.window_order=shuffled does without"
            )
        self.state: dict[str, Any] = {}  # one per part
        self.keeps_windows = (
            False  # for evaluation: steps return the sums of each window, from which intervals are made
        )
        self.register_buffer("token_bytes", torch.tensor(self.spec.token_bytes), persistent=False)
        self.sums = nn.ModuleDict({f"{part}_sums": _Sums() for part in ("val", "test")})

    def step(self, batch: Batch, part: str) -> tuple[Tensor, dict[str, Tensor] | None]:
        rows = batch["target"]
        logits, target = self._logits(batch["inputs"]["tokens"], part).flatten(0, 1), rows.flatten()
        if part == "train":
            loss = F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
            if self.logging_due:
                bits = loss.detach() / math.log(2) * len(target) / self.token_bytes[target].sum().clamp(min=1)
                log_step(self.trainer, {"train/loss": loss.detach(), "train/bits_per_byte": bits})
            return loss, None
        loss = F.cross_entropy(logits, target)
        n_right = (argmax(logits) == target).sum()
        self.sums[f"{part}_sums"].update(loss * len(target), len(target), self.token_bytes[target].sum(), n_right)
        if not self.keeps_windows:
            return loss, None
        nats = F.cross_entropy(logits, target, reduction="none").view(rows.shape).sum(1)
        right = (argmax(logits) == target).view(rows.shape).sum(1)
        sums = {"nats": nats, "tokens": torch.full_like(nats, rows.shape[1]), "bytes": self.token_bytes[rows].sum(1)}
        return loss, {**{f"sum_{k}": x for k, x in sums.items()}, "sum_correct": right, "index": batch["index"]}

    def _logits(self, tokens: Tensor, part: str) -> Tensor:
        if not self.carries_state:
            return self.network(tokens)
        logits, state = self.network.advance(tokens, _rows(self.state.get(part), len(tokens)))
        self.state[part] = _detached(state)
        return logits

    def on_train_epoch_start(self) -> None:
        self.state.pop("train", None)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.state.pop("val", None)

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        self.state.pop("test", None)

    def log_metrics(self, part: str) -> None:
        sums = self.sums[f"{part}_sums"]
        nats, tokens, n_bytes, n_right = sums.compute()
        sums.reset()
        self.log(f"{part}/loss", nats / tokens)
        self.log(f"{part}/perplexity", (nats / tokens).exp())
        self.log(f"{part}/bits_per_byte", nats / math.log(2) / n_bytes)
        self.log(f"{part}/accuracy", n_right / tokens)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The carried state of each worker; the same call is made on all of them."""
        own = {part: state for part, state in self.state.items() if part == "train"}
        checkpoint["carried_state"] = gathered(self.trainer, own)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.state = checkpoint["carried_state"][self.trainer.global_rank]


class _Sums(nn.Module):
    """Nats, tokens, bytes and tokens predicted right of a pass over a split, summed over workers."""

    def __init__(self) -> None:
        super().__init__()
        # float64: a float32 sum of millions of nats loses the sixth digit
        self.parts = nn.ModuleList(SumMetric().set_dtype(torch.float64) for _ in range(4))

    def update(self, *values: Any) -> None:
        for part, value in zip(self.parts, values, strict=True):
            part.update(value)  # type: ignore[operator]

    def compute(self) -> list[Tensor]:
        return [part.compute() for part in self.parts]  # type: ignore[operator]

    def reset(self) -> None:
        for part in self.parts:
            part.reset()  # type: ignore[operator]


def _detached(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach()
    return None if state is None else type(state)(_detached(part) for part in state)


def _rows(state: Any, n: int) -> Any:
    """The carried state of the first `n` streams (the last batch of a split may hold fewer); (layers, B, …) tensors."""
    if isinstance(state, Tensor):
        return state[:, :n]
    return None if state is None else type(state)(_rows(part, n) for part in state)
