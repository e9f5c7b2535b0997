"""TensorBoard: the logger, a page that overlays train and validation curves, the HPARAMS tab with final metrics."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]

OPTIMISATION = {"learning rate": r"^optim/lr", "gradient norm": r"^optim/gradient_norm$", "throughput": r"^throughput/"}


class RunTensorBoard(TensorBoardLogger):
    """Event files directly in the run directory; no `hparams.yaml` (a run has its `config.yaml`), no `hp_metric` of -1."""

    def __init__(self, *, save_dir: str):
        super().__init__(save_dir, name="", version="", default_hp_metric=False)
        self._held: list[Event] = []  # until `save`: handing one to the writer's thread takes longer than a small step

    @rank_zero_only
    def truncate_from(self, step: int) -> None:
        """When a run is resumed: TensorBoard hides what was logged before at this step and after it."""
        writer = self.experiment._get_file_writer()
        writer.add_event(Event(file_version="brain.Event:2"), step)
        writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step)

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Without Lightning's `epoch`, a straight line that would stand before what is learnt."""
        values = [Summary.Value(tag=k, simple_value=float(v)) for k, v in metrics.items() if k != "epoch"]
        self._held.append(Event(wall_time=time.time(), step=step or 0, summary=Summary(value=values)))

    @rank_zero_only
    def save(self) -> None:
        if self._held:
            writer = self.experiment._get_file_writer()
            for event in self._held:
                writer.event_writer.add_event(event)
            self._held = []
        # the property would create an event file
        if self._experiment is not None:
            self._experiment.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()
        super().finalize(status)


def summary_writer(loggers: Iterable[Logger]) -> Any | None:
    """The SummaryWriter of the first TensorBoard logger; None without one, and on ranks other than zero."""
    # on other ranks `experiment` is Lightning's dummy
    writers = (logger.experiment for logger in loggers if isinstance(logger, TensorBoardLogger))
    return next((writer for writer in writers if hasattr(writer, "get_logdir")), None)


def show_text(trainer: Trainer, tag: str, file: Path, text: str, *, verbatim: bool = False) -> None:
    """Text in TensorBoard (Markdown; `verbatim` keeps it as it is) and as a file of the run."""
    path = Path(trainer.default_root_dir) / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    writer = summary_writer(trainer.loggers)
    if writer is not None:
        shown = "\n".join(f"    {line}" for line in text.splitlines()) if verbatim else text
        writer.add_text(tag, shown, trainer.global_step)


class Overlay(Callback):
    """Writes the layout of the CUSTOM SCALARS page: each metric's train and validation curves in one chart.

    It is written when new names have been logged: after the first validation, and at the end of training.
    """

    def __init__(self) -> None:
        self._written: dict[str, Any] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        writer, charts = summary_writer(trainer.loggers), layout(trainer.logged_metrics)
        if trainer.state.fn == "fit" and writer is not None and charts != self._written:
            writer.add_custom_scalars(charts)
            self._written = charts

    on_train_end = on_validation_end


def layout(tags: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
    """Category -> chart -> ["Multiline", patterns] for the tags that exist; patterns are regular expressions."""
    tags = sorted(tags)
    both, training = {}, {}
    names = {tag.split("/", 1)[1] for tag in tags if re.match(r"(train|val)/", tag)}
    # the loss comes first
    for name in sorted(names, key=lambda name: (name != "loss", name)):
        existing = [tag for tag in (f"train/{name}", f"val/{name}") if tag in tags]
        both[name] = ["Multiline", [f"^{re.escape(tag)}$" for tag in existing]]
    for title, pattern in OPTIMISATION.items():
        if any(re.match(pattern, tag) for tag in tags):
            training[title] = ["Multiline", [pattern]]
    return {title: charts for title, charts in (("train and validation", both), ("training", training)) if charts}


def write_hparams(
    logger: Logger, hparams: Mapping[str, Any], metrics: Mapping[str, float], step: int = 0, known: Iterable[str] = ()
) -> None:
    """The HPARAMS tab of a finished run: its settings beside its final metrics; other kinds of loggers are left alone.

    `hparams` may be nested: keys become dotted, lists become text, null is left out. `metrics` are written as
    `result/<name>`; `known` metrics get a column too.
    """
    from torch.utils.tensorboard.summary import hparams as summaries

    writer = summary_writer([logger])
    if writer is None:
        return
    # a column's value is the last point of the curve of that name, from which the result may differ: it is that of the
    # best checkpoint, not of the last
    for name, value in metrics.items():
        writer.add_scalar(f"result/{name}", float(value), step)
    # TensorBoard takes the columns of all runs from the first one, which may have failed before it had any metric
    columns = {f"result/{name}": 0.0 for name in (*known, *metrics)}
    for summary in summaries(flatten(hparams), columns):
        writer._get_file_writer().add_summary(summary, step)
    writer.flush()


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str]:
    """Nested settings as dotted keys with numbers and texts; truth values become "true" and "false"."""
    flat: dict[str, int | float | str] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        elif isinstance(value, bool):
            flat[name] = str(value).lower()
        elif value is not None:
            flat[name] = value if isinstance(value, int | float | str) else str(value)
    return flat
