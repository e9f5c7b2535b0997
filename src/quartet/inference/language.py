"""A trained language model: loaded, and asked how likely texts are."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

from quartet import build, sampling
from quartet.callbacks.progress import StderrProgress
from quartet.engine.weights import load_checkpoint
from quartet.inference.calibration import Calibration
from quartet.run import Run
from quartet.sampling import Token
from quartet.tasks.language_modeling import LanguageModeling


def is_language_model(values: DictConfig) -> bool:
    task = values.get("task")
    return isinstance(task, DictConfig) and str(task.get("_target_")).endswith(".LanguageModeling")


def load(run: Run) -> tuple[torch.nn.Module, Any]:
    """The network of a language-model run with its best weights, and the run's tokenizer."""
    task, data = load_task(run)
    return task.network, data.tokenizer


def load_task(run: Run) -> tuple[LanguageModeling, Any]:
    """The task of a language-model run with its best weights, in evaluation mode, and its data module, unread."""
    values = build.opened(run)
    task: Any = build.locate(values.task._target_, "task")
    if not issubclass(task, LanguageModeling):
        raise ValueError(
            f"{run} is not a language model ({values.run.name}); train one with data=stdlib, data=shakespeare or data=text"
        )
    data = build.restore_data(run, values, read=False)
    task = build.build_task(values, data.spec)
    load_checkpoint(task, run.best_checkpoint)
    return task.eval(), data


class Score(NamedTuple):
    """What a language model makes of a text; each of its tokens was predicted once."""

    tokens: list[Token]
    n_bytes: int
    n_unknown: int  # tokens that stand for what the vocabulary lacks: easier to predict than what they replace

    @property
    def logprob(self) -> float:
        return math.fsum(token.logprob for token in self.tokens)

    @property
    def perplexity(self) -> float:
        return float(torch.tensor(-self.logprob / len(self.tokens), dtype=torch.float64).exp())  # inf if too large

    @property
    def bits_per_byte(self) -> float:
        return -self.logprob / math.log(2) / self.n_bytes


def score(task: LanguageModeling, tokenizer: Any, text: str) -> Score:
    """Score a text as the beginning of a document, window by window.

    The state is carried from window to window if the run trained so; otherwise each window begins with the newer half of
    the one before, as in generation. A text of one window has the loss that the task would log for it.
    """
    ids = tokenizer.encode(text)
    known = getattr(task.network, "context_length", None) or task.spec.sizes.get("context_length")
    windows = sampling.log_probabilities(
        task.network, [tokenizer.eos_id, *ids], context_length=known or len(ids), carry_state=task.carries_state
    )
    progress, values = StderrProgress("scoring"), list[float]()
    for window in windows:
        values += window.tolist()
        progress.show(len(values) / len(ids))
    progress.hide()
    tokens = [Token(i, value) for i, value in zip(ids, values, strict=True)]
    return Score(tokens, sum(tokenizer.byte_counts[i] for i in ids), ids.count(tokenizer.unknown_id))


class LanguageModel:
    """A language model as what `scripts/predict.py` asks for: its prediction of a text is how likely it is."""

    classes: tuple[str, ...] = ()
    calibration = Calibration()

    def __init__(self, run: Run, batch_size: int | None):
        self.task, self.data = load_task(run)

    def encode(self, examples: Any) -> list[str]:
        """ValueError for a text that is missing or empty: nothing is predicted in it."""
        if not all(examples):
            raise ValueError("the text is empty")
        return list(examples)

    def predict(self, inputs: list[str]) -> dict[str, list[float]]:
        """Columns of numbers, one a text."""
        # one at a time: texts have windows of their own, and a state may be carried through them
        scores = [score(self.task, self.data.tokenizer, text) for text in inputs]
        return {
            "tokens": [len(one.tokens) for one in scores],
            "logprob": [one.logprob for one in scores],
            "perplexity": [one.perplexity for one in scores],
            "bits_per_byte": [one.bits_per_byte for one in scores],
        }
