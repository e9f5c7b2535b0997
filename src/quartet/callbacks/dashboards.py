"""Figures of the predictions and samples of text, in TensorBoard and as files of the run."""

from __future__ import annotations

import html
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from quartet import sampling
from quartet.callbacks import figures
from quartet.callbacks.tensorboard import summary_writer
from quartet.distributed import gathered
from quartet.say import printable

TITLES = {"val": "validation", "test": "test"}
LONGEST_TEXT = 300  # characters of a mistaken text that are shown
FIRST_DRAWING = 1.0  # seconds it is expected to take, importing matplotlib included


class Figures(Callback):
    """Confusion matrix, curves and worst mistakes of a classifier; predicted against true of a regression.

    They go to TensorBoard (`val/…`, `test/…`) and to `figures/` in the run directory, where the newest one stays. Drawn
    after a validation while drawing takes less than `most_share` of the training time so far (and only after every
    `every_n_validations`), at the end of training, and after `trainer.validate` and `trainer.test`. Predictions of all
    workers are gathered on the CPU. `n_mistakes` is how many mistakes are shown.
    """

    def __init__(
        self,
        *,
        every_n_validations: int,
        most_share: float,
        n_mistakes: int,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.every_n_validations, self.most_share, self.n_mistakes = every_n_validations, most_share, n_mistakes
        self.clock = clock
        self._outputs: list[dict[str, Tensor]] = []
        self._validations, self._pending = 0, False
        self._started = self._drawing = 0.0
        self._longest = FIRST_DRAWING

    # hooks
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started, self._drawing = self.clock(), 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._outputs = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._outputs = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self._collect(outputs)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self._collect(outputs)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not self._outputs:
            return
        self._validations, self._pending = self._validations + 1, True
        if trainer.state.fn != "fit" or self._due(trainer):
            self._draw(trainer, pl_module, "val")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._pending:
            self._draw(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._outputs:
            self._draw(trainer, pl_module, "test")

    # work
    def _collect(self, outputs: Any) -> None:
        if outputs:
            self._outputs.append({name: value.detach().cpu() for name, value in outputs.items()})

    def _due(self, trainer: Trainer) -> bool:
        if self._validations % self.every_n_validations:
            return False
        allowed = self.most_share * (self.clock() - self._started)
        return trainer.strategy.broadcast(self._drawing + self._longest <= allowed)

    def _draw(self, trainer: Trainer, task: Any, part: str) -> None:
        start = self.clock()
        outputs = _gather(trainer, {name: torch.cat([o[name] for o in self._outputs]) for name in self._outputs[0]})
        self._outputs, self._pending = [], False
        if trainer.is_global_zero:
            fitting = trainer.state.fn == "fit"  # later the weights are the best checkpoint's, of another step
            title = f"{TITLES[part]}, step {trainer.global_step:,}" if fitting else TITLES[part]
            draw = self._classification if outputs["prediction"].ndim == 2 else self._regression
            with optional(f"figures of the {TITLES[part]} part"):
                draw(trainer, task, part, title, **{name: value.numpy() for name, value in outputs.items()})
        self._longest = self.clock() - start
        self._drawing += self._longest

    def _regression(
        self, trainer: Trainer, task: Any, part: str, title: str, *, prediction: Any, target: Any, index: Any
    ) -> None:
        show_figure(trainer, part, "predictions", figures.regression_figure(prediction, target, title))

    def _classification(
        self, trainer: Trainer, task: Any, part: str, title: str, *, prediction: Any, target: Any, index: Any
    ) -> None:
        classes, predicted = task.spec.classes, prediction.argmax(1)
        show_figure(trainer, part, "confusion_matrix", figures.confusion_figure(target, predicted, classes, title))
        show_figure(trainer, part, "curves", figures.curves_figure(prediction, target, classes, title))
        worst = figures.worst_mistakes(prediction, target, self.n_mistakes)
        names = [(classes[target[i]], classes[predicted[i]], prediction[i].max()) for i in worst]
        data: Any = getattr(trainer, "datamodule", None)
        if hasattr(data, "raw_images"):
            captions = [f"true {_brief(a)}\npredicted {_brief(b)}, {p:.0%}" for a, b, p in names]
            title = f"{title}: {'worst' if names else 'no'} mistakes"
            pictures = data.raw_images(part, index[worst]) if names else np.zeros((0, 1, 1, 1))
            show_figure(trainer, part, "mistakes", figures.pictures_figure(pictures, captions, title))
        else:
            samples = _describe(data, part, index[worst])
            told = zip(names, samples, strict=True)
            rows = [f"| {cell(a)} | {cell(b)} | {p:.0%} | {text} |" for (a, b, p), text in told]
            table = ["| true | predicted | probability | sample |", "|---|---|---|---|", *rows]
            show_text(trainer, f"{part}/mistakes", Path("figures", f"{part}_mistakes.md"), "\n".join(table))


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
        self.settings: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
        }

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # not on_validation_end: by then averaged weights (EMA) are swapped out again
        if trainer.state.fn != "fit" or trainer.sanity_checking or not is_language_model(pl_module):
            return
        text = self.write(trainer, pl_module)  # by all workers: where they hold shares they need each other
        if trainer.is_global_zero:
            file = Path("samples", f"step-{trainer.global_step:06}.txt")
            show_text(trainer, "val/sample", file, text, verbatim=True)

    def write(self, trainer: Trainer, task: Any) -> str:
        """The prompt and what the model writes after it."""
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        prompt = tokenizer.encode(self.prompt) if self.prompt else opening(trainer.datamodule)  # type: ignore[attr-defined]
        with evaluating(task.network):
            generator = torch.Generator().manual_seed(self.seed)
            never = {"stop_id": tokenizer.eos_id, "forbidden_ids": tokenizer.textless_ids}
            written = sampling.generate(task.network, prompt, generator=generator, **never, **self.settings)
            return tokenizer.decode([*prompt, *written])


def is_language_model(task: Any) -> bool:
    return "vocab_size" in task.spec.sizes and task.spec.sizes.get("n_classes") is None


def opening(data: Any, n_tokens: int = 32) -> list[int]:
    """The first tokens of the validation split."""
    first = data.datasets["val"].gather(torch.zeros(1, dtype=torch.int64))
    return first["inputs"]["tokens"][0, :n_tokens].tolist()


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


@contextmanager
def optional(what: str) -> Iterator[None]:
    """A training does not end for a picture that cannot be drawn; for a full disk it does."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(printable(f"no {what}: {reason}"), file=sys.stderr, flush=True)


def cell(value: Any) -> str:
    """Text in a Markdown table as it is: lines and indentation stay, no sign of it is taken for Markdown or HTML."""
    lines = figures.shorten(str(value).strip("\n"), LONGEST_TEXT).split("\n")
    escaped = (re.sub(r"([\\`*_{}\[\]()#+.!|~$-])", r"\\\1", html.escape(line, quote=False)) for line in lines)
    return "<br>".join(re.sub(r"^ +", lambda blanks: "&nbsp;" * len(blanks[0]), line) for line in escaped)


def show_figure(trainer: Trainer, part: str, name: str, figure: Any, tag: str | None = None) -> None:
    """A figure as `<tag or part>/<name>` in TensorBoard and as a PNG file of the run, drawn once for both."""
    picture = figures.render(figure)
    figures.save(picture, Path(trainer.default_root_dir, "figures", f"{part}_{name}.png"))
    writer = summary_writer(trainer.loggers)
    if writer is not None:
        writer.add_image(f"{tag or part}/{name}", picture, trainer.global_step, dataformats="HWC")


def show_text(trainer: Trainer, tag: str, file: Path, text: str, *, verbatim: bool = False) -> None:
    """Text in TensorBoard (Markdown; `verbatim` keeps it as it is) and as a file of the run."""
    path = Path(trainer.default_root_dir) / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    writer = summary_writer(trainer.loggers)
    if writer is not None:
        shown = "\n".join(f"    {line}" for line in text.splitlines()) if verbatim else text
        writer.add_text(tag, shown, trainer.global_step)


def _gather(trainer: Trainer, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of all workers, which may have different numbers of samples."""
    workers = gathered(trainer, outputs)
    return {name: torch.cat([worker[name] for worker in workers]) for name in outputs}


def _describe(data: Any, part: str, ids: Any) -> list[str]:
    """Texts on one line that a Markdown table can hold; the number of the sample where the data are no texts."""
    if not hasattr(data, "tokenizer"):
        return [f"number {i}" for i in ids]
    tokens = data.datasets[part].gather(torch.as_tensor(ids))["inputs"]["tokens"].cpu()
    pad = data.spec.sizes.get("pad_id")
    texts = [data.tokenizer.decode([t for t in row if t != pad]) for row in tokens.tolist()]
    return [figures.shorten(" ".join(text.split()).replace("|", "\\|"), LONGEST_TEXT) for text in texts]


def _brief(name: str) -> str:
    return figures.shorten(name, 12)
