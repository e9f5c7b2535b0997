"""Baselines: what simple models reach on the split of a training command, and whether the newest run is worth its cost.

Their outputs go through the task, loss and metrics of training; nothing is computed in a second way. Bits per byte of
running text count the bytes of its documents.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from pytorch_lightning import Trainer
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from quartet import build, config_groups
from quartet import simple_models as simple
from quartet.config import direction
from quartet.data.base import DataModule
from quartet.data.memory import MemoryLoader, Samples, sequential
from quartet.objective import Objective
from quartet.run import Run, outputs
from quartet.say import printable, say
from quartet.simple_models import Fitted, Parts
from quartet.tasks.base import Task
from quartet.typed import command, shell, user_path

# what is shown of the metrics, the one that decides first; the file has all of them
SHOWN = ("accuracy", "r2", "bits_per_byte", "auroc", "f1", "rmse", "mae", "loss")
# settings of data that do not change which examples are in val and test; where they are read from does not either
OTHER = {"path", "download", "seed", "batch_size", "augment", "scaling", "image_size", "channels", "num_workers"}
OTHER |= {"bootstrap", "memory_gb", "disk_gb", "in_memory_mb", "tokenizer", "vocab_size", "context_length", "order"}
GATHERED, SCORED = 512, 65_536  # samples at a time: images are large, metrics take milliseconds a batch
LARGEST_SIDE = 32  # pixels; larger images are averaged to this: CIFAR-10 had 0.37 at 16 and at 32
CHARACTER = 8  # tf-idf of one costs about as much as so many values of a table
SHOWN_ORDERS = {1, 3, 5}  # of the n-grams, beside the best one


class Row(NamedTuple):
    """A line of the table; `metrics` are called as in `result.json`, `choice` is what was chosen on validation."""

    name: str
    metrics: dict[str, float]
    choice: str = ""
    seconds: float = 0.0


class Given(nn.Module):
    """A network whose outputs are known already."""

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs


def report(config: DictConfig) -> None:
    """Fit the simple models, print their metrics beside those of the newest run on these data, and keep them in a file.

    Raises ValueError for data that no simple model is made for.
    """
    # 1. the same checks as before training, but that any network will do: none is built
    accepted, config.pairing.accepts = config.pairing.accepts, config.pairing.provides
    build.check(config)
    if config.data.get("path"):
        config.data.path = user_path(config.data.path)
    build.seed_everything(config.seed)
    say("reading the data")
    data = build.build_data(config)
    parts, began = ("val", "test") if config.test else ("val",), time.monotonic()
    raw, fingerprint = data.read_parts()

    # 2. the models
    if config.pairing.predicts == "token":  # no tokenizer is fitted, nothing is tokenised
        sizes = {part: len(raw[part]) for part in raw}
        rows, unit = list(text_models(raw, parts)), "documents"
    else:
        data.prepare(raw, fingerprint)
        sizes = {part: len(dataset) for part, dataset in data.datasets.items()}
        rows, unit = list(sample_models(config, data, raw, parts)), "samples"
    seconds = time.monotonic() - began

    # 3. the newest run, in the same table
    run = newest_run(config, fingerprint)
    result = run.read("result.json") if run else {}
    metrics = {k: float(v) for k, v in result.get("metrics", {}).items() if v is not None and k.startswith(parts)}
    if run and run.config.task.get("loss") != config.task.get("loss"):  # another loss has other numbers
        metrics = {name: value for name, value in metrics.items() if not name.endswith("/loss")}
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a pipe has no width: no line is broken in it
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    name = str(choices.get("data", "data"))
    print(f"\n{name}, {unit}: {'  '.join(f'{part} {sizes[part]:,}' for part in ('train', *parts))}")
    console.print(table(rows, metrics if run else None, parts, config, console))
    print("* the best of its column")

    # 4. in words
    if run:
        cost = f", {result['seconds']:.0f} s of training" if result.get("seconds") else ""
        say(f"newest run: {run}{cost}; the models above took {seconds:.0f} s")
        print("\n".join(verdict(rows, metrics, parts, config, sizes)))
    else:
        # the words of this command, with a model that fits the data
        words = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
        fitting = config_groups.fitting("model", "accepts", config.pairing.provides)
        if accepted != config.pairing.provides and fitting:
            words = [f"model={fitting[-1]}", *(word for word in words if not word.startswith("model="))]
        say(f"no completed run on these data below {outputs(config.run.root)}; train one with:")
        say(f"  {command('train', *map(shell, words))}")

    # 5. for programs
    folder = Run(outputs(config.run.root) / "baselines")
    folder.directory.mkdir(parents=True, exist_ok=True)
    file = f"{name}-{time.strftime('%Y-%m-%d_%H-%M-%S')}-{secrets.token_hex(3)}.json"
    facts = {"data": build.plain(config)["data"], "fingerprint": fingerprint, unit: sizes, "seed": config.seed}
    models = {row.name: {"metrics": row.metrics, "choice": row.choice, "seconds": row.seconds} for row in rows}
    folder.write(file, {**facts, "models": models, "run": run and str(run.directory), "run_metrics": metrics})
    say(f"written: {Run(folder.directory / file)}")


def _timed(name: str, fit: Callable[[], Fitted]) -> tuple[Fitted, float]:
    """Run `fit`, and say how many seconds it took and what it chose."""
    start = time.monotonic()
    with Console(stderr=True).status(f"{name} …"):
        fitted = fit()
    seconds = round(time.monotonic() - start, 3)
    say(f"{name}: {seconds:.1f} s{', ' if fitted.choice else ''}{fitted.choice}")
    return fitted, seconds


# one target for each sample


def sample_models(config: DictConfig, data: DataModule, raw: dict[str, Any], parts: tuple[str, ...]) -> Iterator[Row]:
    """A row for each model of a class or a number; `raw` are the examples as the data module has read them."""
    spec, kind, is_class = data.spec, config.pairing.provides, config.pairing.predicts == "class"
    n_classes, sizes, texts = len(spec.classes), spec.sizes, {}

    # 1. how many values a model sees of an example; of very many examples some are drawn, in training only
    if kind == "table":
        n_numeric, cardinalities = sizes["n_numeric"], sizes["cardinalities"]
        width = n_numeric + len(cardinalities)
    elif kind == "images":
        side = min(LARGEST_SIDE, sizes["image_size"])
        width = sizes["in_channels"] * side**2
    elif kind == "tokens" and all(hasattr(row, "label") for part in raw for row in raw[part][:1]):
        texts = {part: [row.text for row in raw[part]] for part in ("train", *parts)}
        width = CHARACTER * max(1.0, sum(map(len, texts["train"])) / len(texts["train"]))
    else:
        raise ValueError(
            f"no simple model is made for data that provide {kind}; tables, images and labelled texts have some"
        )
    if bool(spec.classes) != is_class:
        found, right = ("class", "classification") if spec.classes else ("number", "regression")
        raise ValueError(f"the target of these data is a {found}; use task={right}")
    ids = {part: torch.arange(len(data.datasets[part])) for part in ("train", *parts)}
    n, most = len(ids["train"]), int(simple.MOST_VALUES / width)
    if n > most:
        say(f"{most:,} of the {n:,} training examples, drawn at random, stand for all of them: more take minutes")
        ids["train"] = torch.from_numpy(np.sort(np.random.default_rng(config.seed).permutation(n)[:most]))

    # 2. their features (N, F) and targets (N,), and the models that are made for them
    def gathered(features: Callable[[dict[str, Tensor]], Tensor]) -> tuple[Parts, Parts]:
        x, y = {}, {}
        for part, wanted in ids.items():
            batches = map(data.datasets[part].gather, wanted.split(GATHERED))
            columns = zip(*((features(batch["inputs"]), batch["target"]) for batch in batches), strict=True)
            x[part], y[part] = (torch.cat(column).numpy() for column in columns)
        return x, y

    linear = "logistic regression" if is_class else "ridge regression"
    if kind == "table":
        x, y = gathered(lambda inputs: torch.cat([inputs["numeric"], inputs["categorical"]], 1))
        models = {
            linear: lambda: simple.linear(simple.one_hot(x, n_numeric, cardinalities), y, n_classes),
            "gradient boosting": lambda: simple.boosted(x, y, n_classes, n_numeric=n_numeric, seed=config.seed),
        }
    elif kind == "images":
        x, y = gathered(lambda inputs: nn.functional.adaptive_avg_pool2d(inputs["image"].float(), side).flatten(1))
        averaged = f", averaged to {side}×{side}" if side < sizes["image_size"] else ""
        models = {
            f"{linear} on pixels{averaged}": lambda: simple.linear(simple.one_hot(x, int(width), []), y, n_classes)
        }
    else:
        _, y = gathered(lambda inputs: torch.empty(0))
        texts["train"] = [texts["train"][i] for i in ids["train"].tolist()]
        models = {f"tf-idf with {linear}": lambda: simple.linear(simple.word_features(texts), y, n_classes)}

    # 3. fit and score them
    models = {"majority class" if is_class else "mean": lambda: simple.constant(y, n_classes), **models}
    task = build.make(build.plain(config)["task"], "task", network=Given(), spec=spec)
    for name, fit in models.items():
        fitted, seconds = _timed(name, fit)
        metrics = [score(task, part, fitted.outputs[part], y[part], config.task.get("loss")) for part in parts]
        yield Row(name, {k: v for of_part in metrics for k, v in of_part.items()}, fitted.choice, seconds)


def score(task: Task, part: str, outputs: np.ndarray, target: np.ndarray, loss: str | None) -> dict[str, float]:
    """All metrics of the task for known outputs: probabilities (N, C), or predictions (N,) of a standardised target."""
    known = torch.from_numpy(np.array(outputs, dtype=np.float32))
    if known.ndim == 1:
        known = known[:, None]
    else:  # the task makes probabilities of logits: softmax of logarithms, or sigmoids that are normalised
        known = known.clamp(simple.LEAST_PROBABILITY, 1 - simple.LEAST_PROBABILITY)
        known = known.logit() if loss == "binary_cross_entropy" else known.log()
    samples = Samples({"outputs": known}, torch.from_numpy(target))
    loader: Any = MemoryLoader(samples, batch_size=SCORED, order=sequential(len(samples)), drop_last=False)
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, **quiet)
    (metrics,) = (trainer.validate if part == "val" else trainer.test)(task, dataloaders=loader, verbose=False)
    return {name: float(value) for name, value in metrics.items()}


# running text


def text_models(documents: dict[str, Any], parts: tuple[str, ...]) -> Iterator[Row]:
    """n-grams of bytes and xz, in bits for each byte of the documents of a part."""
    if not all(hasattr(document, "chunks") for part in documents for document in documents[part][:1]):
        raise ValueError("no simple model is made for these data; running text and labelled texts have some")
    streams = {part: simple.byte_stream(documents[part]) for part in parts}
    n_characters = {part: sum(map(len, documents[part])) for part in documents}
    empty = [part for part, n in n_characters.items() if n == 0]
    if empty:
        raise ValueError(f"nothing is left for {' and '.join(empty)}; change data.split or bring more text")
    n_bytes = n_characters["train"] * len(streams["val"]) / n_characters["val"]  # about: counting would take reading
    every = math.ceil(n_bytes / simple.LEARN_BYTES)
    if every > 1:
        say(f"one piece in {every} of the training text, some {n_bytes / every / 1e6:.0f} MB, stands for all of it")
    train = simple.byte_stream(documents["train"], every=every)

    def count_ngrams() -> Fitted:
        orders = simple.kneser_ney(train, list(streams.values()), simple.MAX_ORDER)
        bits = [
            [simple.bits_per_byte(-np.log2(p).sum(), s) for p, s in zip(o, streams.values(), strict=True)]
            for o in orders
        ]
        best = 1 + int(np.argmin([of_parts[0] for of_parts in bits]))
        return Fitted(dict(zip(streams, np.transpose(bits), strict=True)), f"order {best} is best on val")

    def compress() -> Fitted:
        bits = simple.xz_bits(train, list(streams.values()))
        pairs = zip(streams.items(), bits, strict=True)
        return Fitted({part: np.array([simple.bits_per_byte(n, stream)]) for (part, stream), n in pairs})

    fitted, seconds = _timed(f"n-grams of 1 to {simple.MAX_ORDER} bytes", count_ngrams)
    for order in sorted(SHOWN_ORDERS | {1 + int(np.argmin(fitted.outputs["val"]))}):
        name = "byte frequencies" if order == 1 else f"{order}-gram model of bytes"
        yield Row(name, _bits(fitted, order - 1), fitted.choice, seconds)
    fitted, seconds = _timed("xz -9e", compress)
    yield Row("xz -9e", _bits(fitted, 0), "", seconds)


def _bits(fitted: Fitted, place: int) -> dict[str, float]:
    return {f"{part}/bits_per_byte": float(values[place]) for part, values in fitted.outputs.items()}


# beside a run


def newest_run(config: DictConfig, fingerprint: str) -> Run | None:
    """The newest completed run of the same task on the same examples, split alike; None if there is none."""

    def same(values: dict[str, Any]) -> tuple[Any, ...]:
        data = {key: value for key, value in values["data"].items() if key not in OTHER}
        return data, values["task"]["_target_"]

    own = same(build.plain(config))

    def fits(run: Run) -> bool:
        if run.status != "completed":
            return False
        try:
            return same(build.plain(run.config)) == own and run.read("preprocessing.json")["fingerprint"] == fingerprint
        except (LookupError, TypeError, AttributeError):  # a directory of somebody else's
            return False

    with suppress(FileNotFoundError):
        return Run.newest(outputs(config.run.root), fits, "")


def table(
    rows: list[Row], run: dict[str, float] | None, parts: tuple[str, ...], config: DictConfig, console: Console
) -> Table:
    """Models by metrics, the best value of each column marked; `run` are the metrics of a network, if there is one.

    A terminal that is too narrow shows fewer metrics.
    """
    lines = [(row.name, row.metrics) for row in rows] + ([("newest run", run)] if run is not None else [])
    known = (config.monitor.metric.partition("/")[2], *SHOWN) if config.monitor.metric != "val/loss" else SHOWN
    names = [name for name in dict.fromkeys(known) if any(f"val/{name}" in row.metrics for row in rows)]
    while True:
        shown = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, padding=(0, 1, 0, 0))
        shown.add_column("model", no_wrap=True)
        keys = [f"{part}/{name}" for part in parts for name in names]
        best = {key: _objective(key, config).best([m.get(key) for _, m in lines], lambda value: value) for key in keys}
        for key in keys:
            shown.add_column(Text(key.replace("/", "\n")), justify="right", no_wrap=True)
        for name, metrics in lines:
            if metrics is run and console.is_terminal:
                shown.add_section()
            cells = [Text(printable(name))]
            for key in keys:
                value, top = metrics.get(key), best[key]
                # values that look like the best one are marked like it
                is_best = value is not None and top is not None and number(value) == number(top)
                said = "–" if value is None else number(value)
                cells.append(Text(f"{said}{'*' if is_best else ' '}", style="bold" if is_best else ""))
            shown.add_row(*cells)
        if (
            len(names) == 1
            or Measurement.get(console, console.options.update(width=10_000), shown).maximum <= console.width
        ):
            return shown
        names.pop()


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{round(value, 4) + 0.0:.4f}"  # no -0.0000


def _objective(key: str, config: DictConfig) -> Objective:
    return Objective(key, direction(key) or config.monitor.mode)


def verdict(
    rows: list[Row], run: dict[str, float], parts: tuple[str, ...], config: DictConfig, sizes: dict[str, int]
) -> Iterator[str]:
    """A sentence for each part: the run against the simple model that is best on validation."""
    # the metric that was asked for, else what people read first; a loss is neither
    names = [name for name in SHOWN if f"val/{name}" in rows[-1].metrics]
    asked = config.monitor.metric.partition("/")[2]
    name = asked if asked != "loss" and f"val/{asked}" in rows[-1].metrics else names[0]
    rival = _objective(f"val/{name}", config).best(rows, lambda row: row.metrics.get(f"val/{name}")) or rows[0]
    for part in parts:
        key = f"{part}/{name}"
        objective, theirs, ours = _objective(key, config), rival.metrics.get(key), run.get(key)
        if ours is None or theirs is None:
            yield f"the run has no {key}"
            continue
        one = f"; one of {sizes[part]:,} samples is {1 / sizes[part]:.4f}" if name == "accuracy" else ""
        if number(ours) == number(theirs):
            yield f"{rival.name} and the network are equal on {key}: {number(ours)}{one}"
        elif objective.better(theirs, ours):
            yield f"{rival.name} is better than the network on {key}: {number(theirs)} against {number(ours)}{one}"
        else:
            best = "every simple model" if part == "val" else rival.name
            yield f"the network is better than {best} on {key}: {number(ours)} against {number(theirs)}{one}"
