"""Predictions for new data, from the run directory alone: streamed, so that memory does not grow with the input."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import torch
from omegaconf import DictConfig

from quartet.config import OptionalPositiveInt
from quartet.data.examples import Examples
from quartet.inference.ensemble import Loaded, open_model
from quartet.inference.outputs import Write, check_output, writer
from quartet.run import Run
from quartet.say import printable, say
from quartet.signatures import Rule, wrong_settings

SETTINGS: dict[str, Any] = {
    "input": Annotated[str, Rule('a file, a folder, a glob, "some text", or - for standard input', bool)],
    "on_error": Literal["stop", "skip"],
    "top_k": OptionalPositiveInt,
    "batch_size": OptionalPositiveInt,
}
MEASURED = 500_000  # examples with a target that are kept to measure them: tens of megabytes
SAID = 10  # examples that were skipped and are named, each with its reason
EVERY = 5.0  # seconds between lines of progress
Item = TypeVar("Item")


class Encoded(NamedTuple):
    examples: Examples
    inputs: Any  # what the model makes of them


def predict(arguments: DictConfig) -> None:
    """Write a row for each example of `input`: its name, the prediction and what is known about it.

    Raises ValueError or OSError for wrong settings, for input of another kind, and with `on_error=stop` for the first
    example that cannot be read; a file is not written then, a pipe keeps the rows before.
    """
    given: dict[str, Any] = {key: arguments[key] for key in SETTINGS}
    given["input"] = "" if arguments.input is None else str(arguments.input)  # input=42 is a number to Hydra
    if wrong := wrong_settings(SETTINGS, given):
        raise ValueError("\n".join(wrong))
    output = None if arguments.output is None else str(arguments.output)
    check_output(output, given["input"])
    live = sys.stderr.isatty() and (output is not None or not sys.stdout.isatty())  # no rows run through the line
    with writer(output) as write, redirect_stdout(sys.stderr):  # standard output may be a file of predictions
        model = open_model(Run.open(arguments.run)).load(given["batch_size"])
        Prediction(model, write, given["on_error"], given["top_k"], live).run(given["input"])
    if output is not None:
        print(f"written: {printable(output)}", file=sys.stderr)


class Prediction:
    """One pass over the input: a thread reads and encodes, one computes, and this one writes."""

    def __init__(self, model: Loaded, write: Write, on_error: str, top_k: int | None, live: bool):
        self.model, self.write, self.on_error = model, write, on_error
        self.top_k = min(top_k, len(model.classes)) if top_k and model.classes else None
        self.skipped: list[str] = []
        self.n = self.n_skipped = self.n_strange = 0
        self.kept: list[tuple[np.ndarray, np.ndarray]] = []  # predictions with their targets
        self.measurable = True
        self.live = live

    def run(self, source: str) -> None:
        started = shown = time.monotonic()
        with progress_line(self.live) as show:
            computed = ((examples, self.model.predict(inputs)) for examples, inputs in ahead(self.encoded(source)))
            for examples, predicted in ahead(computed):
                self.finish(examples, predicted)
                if time.monotonic() - shown > (0.2 if self.live else EVERY):
                    shown = time.monotonic()
                    show(f"{self.n:,} examples  {self.n / (shown - started):,.0f}/s")
        if not self.n and not self.n_skipped:
            raise ValueError(f"input={source} has no examples; is it empty?")
        self.report(time.monotonic() - started)

    def encoded(self, source: str) -> Iterator[Encoded]:
        for examples in self.model.data.examples(source):
            yield from self.attempt(examples)

    def attempt(self, examples: Examples) -> Iterator[Encoded]:
        """Encode together what can be; an example that cannot ends the work, or is skipped and counted."""
        if not len(examples):
            return
        try:
            yield Encoded(examples, self.model.encode(examples.values))
            return
        except (ValueError, OSError) as error:
            if len(examples) == 1:
                name, text = examples.name(0), str(error)
                reason = text if name in text else f"{name}: {text}"
                if self.on_error == "stop":
                    raise ValueError(f"{reason}; on_error=skip leaves such examples out and counts them") from None
                self.n_skipped += 1
                self.skipped += [reason] * (len(self.skipped) < SAID)
                return
        middle = len(examples) // 2  # the first half first: of several, the first one is named
        yield from self.attempt(examples.span(0, middle))
        yield from self.attempt(examples.span(middle, len(examples)))

    def finish(self, examples: Examples, predicted: Any) -> None:
        self.n += len(examples)
        if isinstance(predicted, dict):  # of a language model
            return self.write(pa.table({examples.key: examples.ids, **predicted}))
        self.write(self.table(examples, predicted))
        if examples.labels is None or not self.measurable:
            return
        # kept for the metrics at the end, up to a number that memory does not notice
        targets = self.model.data.targets(examples.labels)
        known = targets >= 0 if self.model.classes else np.isfinite(targets)
        self.n_strange += int((~known).sum())
        self.kept.append((predicted[known], targets[known]))
        self.measurable = sum(len(targets) for _, targets in self.kept) < MEASURED

    def table(self, examples: Examples, predicted: np.ndarray) -> pa.Table:
        # the name of an example first, then the prediction, then how sure it is
        columns: dict[str, Any] = {examples.key: examples.ids}
        classes = self.model.classes
        if not classes:
            columns["prediction"] = predicted
        else:
            names = pa.array(classes, pa.string())
            if self.top_k is None:
                columns["prediction"] = names.take(pa.array(self.model.calibration.decide(predicted)))
                columns |= {f"p({name})": predicted[:, i] for i, name in enumerate(classes)}
            else:
                # the class that is said first, which a threshold may have chosen, then the likeliest
                ranked = predicted.copy()
                np.put_along_axis(ranked, self.model.calibration.decide(predicted)[:, None], 2.0, axis=1)
                order = np.argsort(-ranked, axis=1, kind="stable")[:, : self.top_k]
                for rank, place in enumerate(order.T, 1):
                    end = "" if rank == 1 else f" {rank}"
                    columns[f"prediction{end}"] = names.take(pa.array(place))
                    columns[f"probability{end}"] = np.take_along_axis(predicted, place[:, None], 1)[:, 0]
        if examples.labels is not None:
            columns["target"] = [*examples.labels]
        return pa.table(columns)

    def report(self, seconds: float) -> None:
        for reason in self.skipped:
            say(f"skipped: {reason}")
        more = f"; {self.n_skipped:,} skipped" if self.n_skipped else ""
        say(f"{self.n:,} examples in {seconds:.1f} s, {self.n / max(seconds, 1e-9):,.0f}/s{more}")
        if not self.kept:
            return
        n = sum(len(targets) for _, targets in self.kept)
        if self.n_strange:
            what = "a class that the run does not know" if self.model.classes else "no number"
            say(f"note: {self.n_strange:,} targets are missing or are {what}; the metrics are of the other {n:,}")
        if not n:
            return
        first = "" if self.measurable else f" (of the first {n:,})"
        predicted, target = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*self.kept, strict=True))
        task: Any = self.model.task
        metrics = task.measure(predicted, target)
        say(f"against the target{first}:")
        for name, value in metrics.items():
            if name.startswith("/"):
                say(f"  {name[1:]:<28} {value:.6f}")


@contextmanager
def progress_line(live: bool) -> Iterator[Callable[[str], None]]:
    """To show how far the work is: in one line of a terminal that changes, else in lines."""
    if not live:
        yield say
        return
    from rich.console import Console

    with Console(stderr=True).status("predicting") as status:
        yield lambda text: status.update(f"predicting  {text}")


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The items, the next one made by a thread while one is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
