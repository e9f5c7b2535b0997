"""The files of an evaluation: evaluation.json, evaluation.md, one evaluation.html, and figures, all in the run."""

from __future__ import annotations

from typing import Any

from quartet.callbacks.figures import optional
from quartet.evaluation.judge import TITLES, draw
from quartet.inference.parts import Predicted
from quartet.pages import digits, embedded, table, write_pages
from quartet.run import Run

ALTS = {
    "confusion_matrix": "How often each class is taken for each other one",
    "curves": "ROC and precision-recall curves",
    "reliability": "Accuracy against confidence",
    "mistakes": "The images with the worst mistakes",
    "predictions": "Predicted against true, and the residuals",
}


def write_page(run: Run, predicted: list[Predicted], judged: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    # 1. the numbers first: they stay if no figure can be drawn
    run.write("evaluation.json", {**facts, "parts": judged})
    # 2. figures, as files beside the Markdown page and inside the HTML page
    parts = []
    for one, values in zip(predicted, judged, strict=True):
        figures = {}
        with optional(f"figures of the {TITLES[one.part]} part"):
            for name, figure in draw(one, values).items():
                path = run.directory / "figures" / f"evaluation_{one.part}_{name}.png"
                figures[name] = {**embedded(figure, path), "alt": ALTS[name]}
        parts.append({**values, "title": TITLES[one.part], "tables": tables(values), "figures": figures})
    # 3. both pages from one template
    every = {f"{part['part']}_{name}": figure for part in parts for name, figure in part["figures"].items()}
    content = {"title": f"Evaluation: {run.directory.name}", "parts": parts, "facts": facts, "figures": every}
    write_pages(run.directory / "evaluation", "quartet.evaluation", **content)


def tables(judged: dict[str, Any]) -> dict[str, Any]:
    """The tables of the template, by name."""
    intervals = judged["intervals"]
    metrics = [[name, f"{value:.4f}", interval(intervals.get(name))] for name, value in judged["metrics"].items()]
    found = {"metrics": table(["metric", "value", "95 % interval"], metrics)}
    # a class without samples lacks some of its metrics
    columns = list(dict.fromkeys(name for row in judged["per_class"].values() for name in row))
    worst = sorted(judged["per_class"].items(), key=lambda item: item[1].get("f1", 0.0))
    rows = [[label, *(f"{row[name]:.4f}" if name in row else "–" for name in columns)] for label, row in worst]
    found["classes"] = table(["class", *columns], rows, 40, "evaluation.json")
    slices = [
        [one["column"], one["value"], str(one["n"]), digits(one["score"]), interval((one["low"], one["high"]))]
        for one in judged["slices"]
    ]
    score = "accuracy" if judged["per_class"] else "mean absolute error"
    found["slices"] = table(["column", "value", "samples", score, "95 % interval"], slices, 60, "evaluation.json")
    mistakes = [[digits(x) if isinstance(x, float) else str(x) for x in row.values()] for row in judged["mistakes"]]
    found["mistakes"] = table(list(judged["mistakes"][0]) if mistakes else [], mistakes)
    return found


def interval(limits: tuple[float, float] | None) -> str:
    low_and_high = [f"{x:.4g}" if abs(x) >= 0.01 else f"{x:.4f}" for x in limits or ()]
    return f"[{', '.join(low_and_high)}]" if low_and_high else ""
