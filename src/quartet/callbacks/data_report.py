"""The data report as a picture: what a person looks at before believing a result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning import Callback, LightningModule, Trainer

from quartet.callbacks import figures
from quartet.callbacks.dashboards import cell, optional, show_figure, show_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TAG = "your_data"  # TensorBoard sorts by name, and what is learnt comes first
MOST_ROWS = 24  # of the table of columns
MOST_BARS = 30  # classes, or columns of a table, that are shown; the first ones


class DataReport(Callback):
    """Sizes, classes, lengths and missing values as `your_data/report`, some samples (of training) as
    `your_data/examples`.

    Both go to TensorBoard and to `figures/` of the run; they are drawn from its `data.json`. `n_examples` is how many
    samples are shown.
    """

    def __init__(self, *, n_examples: int):
        self.n_examples = n_examples

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.global_step > 0:  # a resumed run has its report
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        report = json.loads(Path(trainer.default_root_dir, "data.json").read_text(encoding="utf-8"))
        with optional("figures of the data"):
            show_figure(trainer, "data", "report", report_figure(report), TAG)
            if hasattr(data, "raw_images"):
                self._pictures(trainer, data)
            elif report.get("examples"):
                file = Path("figures", "data_examples.md")
                show_text(trainer, f"{TAG}/examples", file, examples_table(report["examples"][: self.n_examples]))

    def _pictures(self, trainer: Trainer, data: Any) -> None:
        """Pictures evenly spaced over the training part."""
        n_all = len(data.datasets["train"])
        n = min(self.n_examples, n_all)
        ids = [i * n_all // n for i in range(n)]
        captions = [figures.shorten(data.spec.classes[label], 12) for label in data.labels("train", ids)]
        figure = figures.pictures_figure(data.raw_images("train", ids), captions, "training pictures")
        show_figure(trainer, "data", "examples", figure, TAG)


def examples_table(examples: list[dict[str, Any]]) -> str:
    """Samples as rows of a Markdown table; all have the same fields."""
    fields = list(examples[0])
    rows = [[cell(example[field]) for field in fields] for example in examples]
    lines = [fields, ["---"] * len(fields), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def report_figure(report: dict[str, Any]) -> Figure:
    """A table of the parts with notes below, and a panel for each further thing that the report tells."""
    panels: list[tuple[Any, tuple[Any, ...]]] = []
    if report.get("classes"):
        panels.append((_draw_classes, (report["classes"],)))
    panels += [(_draw_histogram, item) for item in report.get("histograms", {}).items()]
    if report.get("columns"):
        panels.append((_draw_columns, (report["columns"],)))
        if any(column["missing"] for column in report["columns"]):
            panels.append((_draw_missing, (report["columns"],)))
    figure = figures.blank_figure(6.0 + 4.6 * len(panels), 4.8, layout="constrained")
    axes = figure.subplots(1, 1 + len(panels), squeeze=False, width_ratios=[1.3, *[1] * len(panels)])[0]
    _draw_parts(axes[0], report)
    for place, (draw, arguments) in zip(axes[1:], panels, strict=True):
        draw(place, *arguments)
    return figure


def _draw_parts(axes: Axes, report: dict[str, Any]) -> None:
    import textwrap

    from matplotlib.transforms import Bbox

    parts = report["parts"]
    facts = list(dict.fromkeys(fact for values in parts.values() for fact in values))
    cells = [[_number(values.get(fact)) for values in parts.values()] for fact in facts]
    axes.axis("off")
    axes.set_title("data", fontsize=10)
    height = 0.075 * (len(facts) + 1)
    labels = [fact.replace("_", " ") for fact in facts]
    box = Bbox.from_bounds(0.32, 1 - height, 0.68, height)
    table = axes.table(cells, rowLabels=labels, colLabels=list(parts), bbox=box, edges="horizontal")
    table.auto_set_font_size(False)
    for frame in table.get_celld().values():
        frame.set_edgecolor("0.85")
    table.set_fontsize(9)
    notes = "\n".join(textwrap.fill(f"• {note}", 68, subsequent_indent="  ") for note in report.get("notes", []))
    axes.text(0, 0.95 - height, notes, va="top", fontsize=8, transform=axes.transAxes)


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _draw_classes(axes: Axes, classes: dict[str, dict[str, int]]) -> None:
    """Shares of each part, so that a part that is out of proportion stands out."""
    names = list(classes)[:MOST_BARS]
    parts = list(next(iter(classes.values())))
    totals = {part: max(1, sum(counts[part] for counts in classes.values())) for part in parts}
    height = 0.8 / len(parts)
    for i, part in enumerate(parts):
        places = [row + (i - (len(parts) - 1) / 2) * height for row in range(len(names))]
        shares = [classes[name][part] / totals[part] for name in names]
        axes.barh(places, shares, height, color=figures.COLOURS[i], label=part)
    axes.set_yticks(range(len(names)), [figures.shorten(name, figures.LONGEST_LABEL) for name in names], fontsize=8)
    axes.invert_yaxis()
    more = f", the first {MOST_BARS} of {len(classes)}" if len(classes) > MOST_BARS else ""
    axes.set_title(f"classes, share of each part{more}", fontsize=10)
    axes.legend(fontsize=8)


def _draw_columns(axes: Axes, columns: list[dict[str, Any]]) -> None:
    """Name, kind and values; as many as there is room for."""
    axes.axis("off")
    more = f", the first {MOST_ROWS} of {len(columns)}" if len(columns) > MOST_ROWS else ""
    axes.set_title(f"columns{more}", fontsize=10)
    for row, column in enumerate(columns[:MOST_ROWS]):
        y = 0.97 - row / MOST_ROWS
        cells = (column["column"], column["kind"], column.get("values", ""))
        for x, longest, text in zip((0, 0.36, 0.56), (20, 11, 30), cells, strict=True):
            colour = "0.4" if x == 0.36 else "black"
            axes.text(x, y, figures.shorten(str(text), longest), fontsize=8, color=colour, va="top")


def _draw_histogram(axes: Axes, what: str, histogram: dict[str, Any]) -> None:
    edges = histogram["edges"]
    for i, (part, counts) in enumerate(histogram["counts"].items()):
        total = max(1, sum(counts))
        axes.stairs([count / total for count in counts], edges, color=figures.COLOURS[i], label=part, linewidth=1.5)
    axes.set(xlabel=what, ylabel="share of the part")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.set_title(f"{what}, by part", fontsize=10)
    axes.legend(fontsize=8)


def _draw_missing(axes: Axes, columns: list[dict[str, Any]]) -> None:
    """Bars for missing values, the fullest column last; columns without a gap are counted in the title."""
    gaps = sorted((c for c in columns if c["missing"]), key=lambda c: -c["missing"])[:MOST_BARS]
    labels = [f"{figures.shorten(c['column'], figures.LONGEST_LABEL)} ({c['kind']})" for c in gaps]
    axes.barh(range(len(gaps)), [c["missing"] for c in gaps], color=figures.COLOURS[0])
    axes.set_yticks(range(len(gaps)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="share of rows", xlim=(0, 1))
    axes.set_title(f"missing values: {len(gaps)} of {len(columns)} columns have some", fontsize=10)
