"""Evaluation: what a run is worth on its own parts or on new data, from the run directory alone."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal, TypeAlias

from omegaconf import DictConfig, OmegaConf

from quartet import pages
from quartet.evaluation.judge import TITLES, calibrated, judge
from quartet.evaluation.page import interval, tables, write_page
from quartet.inference.calibration import (
    FILE,
    Calibration,
    fit_temperature,
    fit_threshold,
    read_calibration,
    save,
)
from quartet.inference.ensemble import open_model
from quartet.inference.parts import NEW, Predicted, is_own_data
from quartet.run import Run
from quartet.say import printable
from quartet.signatures import NonNegativeInt, PositiveFloat, Rule, refuse, wrong_settings

Columns: TypeAlias = Annotated[list[str], Rule("a list of columns, such as [city,age]", all)] | None
SETTINGS: dict[str, Any] = {
    "split": Literal["val", "test", None],
    "slices": Columns,
    "resamples": NonNegativeInt,
    "calibrate": bool,
    "threshold": Literal["f1", "balanced_accuracy", "cost", None],
}
COSTS: dict[str, Any] = {"false_alarm": PositiveFloat, "miss": PositiveFloat}


def report(arguments: DictConfig) -> None:
    """Print the metrics of a run, with intervals, and write evaluation.json, .md and .html into it.

    Of both parts if `split` is null; of the data at `data.path` if those are new. Raises ValueError or OSError for wrong
    settings, and for data that are not those of the run where one of its parts is asked for.
    """
    settings: dict[str, Any] = OmegaConf.to_container(arguments, resolve=True)  # type: ignore[assignment]
    refuse([*wrong_settings(SETTINGS, settings), *wrong_settings(COSTS, settings["cost"], "cost.")])
    run = Run.open(arguments.run)
    print(f"run: {printable(str(run))}", flush=True)
    # 1. which parts: data at another path are those of the run that have moved, or new ones
    path, split = settings["data"]["path"], settings["split"]
    model = open_model(run)
    parts = [split] if split else [*model.parts]
    if path is not None and split is None and not is_own_data(model.members[0], path):
        parts = [NEW]
    # 2. calibration, on the validation part
    calibration = read_calibration(run)
    if settings["calibrate"] or settings["threshold"]:
        where = path if parts != [NEW] else None
        calibration = calibrate(run, model.predict_part("val", where), settings)
    # 3. each part
    predicted, judged = [], []
    for part in parts:
        one = calibrated(model.predict_part(part, path), calibration)
        values = judge(one, settings["slices"] or [], settings["resamples"])
        show(values)
        predicted.append(one)
        judged.append(values)
    facts = {"run": str(run), "data": path, "weights": calibration_text(calibration), "calibration": vars(calibration)}
    try:
        write_page(run, predicted, judged, facts)
    except OSError as error:  # the metrics are printed: a run on a disk that cannot be written is still evaluated
        print(f"no page: {printable(str(error))}", file=sys.stderr)
        return
    page = run.directory / "evaluation.html"
    print(f"page: {printable(str(page))}", flush=True)


def evaluate(run: Run, split: str, data_path: str | None = None) -> dict[str, float]:
    """The metrics of "val" or "test", as training logs them; `data_path`: where the data of the run are now.

    Raises ValueError for another split, and if the data are no longer those of the run.
    """
    predicted = open_model(run).predict_part(split, data_path)
    return {f"{split}{name}": value for name, value in predicted.metrics.items()}


def calibrate(run: Run, predicted: Predicted, settings: dict[str, Any]) -> Calibration:
    """Fit on the validation part what is asked for, keep it in the run, and say what it does there."""
    classes = predicted.task.spec.classes
    if not classes or not predicted.has_predictions:
        raise ValueError("calibrate and threshold are for classifications; this run predicts something else")
    if settings["threshold"] and len(classes) != 2:
        raise ValueError(f"threshold={settings['threshold']} is for two classes, and the run has {len(classes)}")
    prediction, target = predicted.outputs["prediction"], predicted.outputs["target"]
    # what is not fitted now stays as it was; a threshold is one of calibrated probabilities
    found = read_calibration(run)
    if settings["calibrate"]:
        found = Calibration(fit_temperature(prediction, target), found.threshold)
    if settings["threshold"]:
        costs = settings["cost"]["false_alarm"], settings["cost"]["miss"]
        probability = found.apply(prediction)[:, 1]
        found = Calibration(found.temperature, fit_threshold(probability, target, settings["threshold"], costs))
    before, after = predicted.metrics, calibrated(predicted, found).metrics
    changes = (f"{name} {before[f'/{name}']:.4f} → {after[f'/{name}']:.4f}" for name in ("loss", "calibration_error"))
    print(f"calibrated on validation: {calibration_text(found, classes)} {', '.join(changes)}")
    save(run, found, goal=settings["threshold"], fitted_on="val", samples=len(target))
    print(f"kept in {printable(str(run.directory / FILE))}; predict.py and evaluate.py use it from now on")
    return found


def calibration_text(calibration: Calibration, classes: tuple[str, ...] = ()) -> str:
    said = []
    if calibration.temperature != 1:
        said.append(f"Temperature {calibration.temperature:.3f}.")
    if calibration.threshold is not None:
        second = f" of {classes[1]}" if classes else " of the second class"
        said.append(f"Threshold {calibration.threshold:.3f} for the probability{second}.")
    return " ".join(said) or "Not calibrated."


def show(judged: dict[str, Any]) -> None:
    """The metrics of a part with their intervals, the largest gaps, and a row for each class."""
    part = judged["part"]
    if part == NEW:
        print(f"{TITLES[NEW]}: {judged['samples']:,} samples")
    for name, value in judged["metrics"].items():
        print(f"  {printable(f'{part}/{name}'):<28} {value:.6f}  {interval(judged['intervals'].get(name))}".rstrip())
    for gap in judged["gaps"][:3]:
        print(f"  gap, {printable(gap['sentence'])}")
    if judged["per_class"]:
        pages.show(tables(judged)["classes"])
    sys.stdout.flush()
