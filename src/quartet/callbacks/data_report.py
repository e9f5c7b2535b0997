"""The data report as a figure: what a person looks at before believing a result."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning import Callback, LightningModule, Trainer

from quartet.callbacks.figures import (
    COLOURS,
    LONGEST_LABEL,
    blank_figure,
    cell,
    images_figure,
    optional,
    shorten,
    show_figure,
)
from quartet.callbacks.tensorboard import show_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TAG = "your_data"  # TensorBoard sorts by name, and what is learnt comes first
MOST_ROWS = 24  # of the table of columns
MOST_BARS = 30  # classes, or columns of a table, that are shown; the first ones


class DataReport(Callback):
    """Sizes, classes, lengths and missing values as `your_data/report`, some training samples as `your_data/examples`.

    Both go to TensorBoard and to `figures/` of the run; they are drawn from its `data.json`. `n_examples` is how many
    samples are shown.
    """

    def __init__(self, *, n_examples: int):
        self.n_examples = n_examples

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # a resumed run has its report
        if not trainer.is_global_zero or trainer.global_step > 0:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        report = json.loads(Path(trainer.default_root_dir, "data.json").read_text(encoding="utf-8"))
        with optional("figures of the data"):
            show_figure(trainer, "data", "report", report_figure(report), TAG)
            if hasattr(data, "raw_images"):
                # evenly spaced over the training part
                n_all = len(data.datasets["train"])
                n = min(self.n_examples, n_all)
                ids = [i * n_all // n for i in range(n)]
                captions = [shorten(data.spec.classes[label], 12) for label in data.labels("train", ids)]
                figure = images_figure(data.raw_images("train", ids), captions, "training images")
                show_figure(trainer, "data", "examples", figure, TAG)
            elif report.get("examples"):
                file = Path("figures", "data_examples.md")
                show_text(trainer, f"{TAG}/examples", file, examples_table(report["examples"][: self.n_examples]))


def examples_table(examples: list[dict[str, Any]]) -> str:
    """Samples as rows of a Markdown table; all have the same fields."""
    fields = list(examples[0])
    rows = [[cell(example[field]) for field in fields] for example in examples]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [fields, ["---"] * len(fields), *rows])


def report_figure(report: dict[str, Any]) -> Figure:
    """A table of the parts with notes below, and a panel for each further entry of the report."""
    from matplotlib.transforms import Bbox

    def number(value: Any) -> str:
        return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"

    parts, classes, histograms = report["parts"], report.get("classes"), report.get("histograms", {})
    columns = report.get("columns") or []
    gaps = sorted((c for c in columns if c["missing"]), key=lambda c: -c["missing"])[:MOST_BARS]
    n_panels = len(histograms) + len([entry for entry in (classes, columns, gaps) if entry])
    figure = blank_figure(6.0 + 4.6 * n_panels, 4.8, layout="constrained")
    panels = iter(figure.subplots(1, 1 + n_panels, squeeze=False, width_ratios=[1.3, *[1] * n_panels])[0])

    # 1. the facts as rows, the parts as columns, and the notes below
    axes = next(panels)
    axes.axis("off")
    axes.set_title("data")
    facts = list(dict.fromkeys(fact for values in parts.values() for fact in values))
    cells = [[number(values.get(fact)) for values in parts.values()] for fact in facts]
    height = 0.075 * (len(facts) + 1)
    labels, box = [fact.replace("_", " ") for fact in facts], Bbox.from_bounds(0.32, 1 - height, 0.68, height)
    table = axes.table(cells, rowLabels=labels, colLabels=list(parts), bbox=box, edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    for frame in table.get_celld().values():
        frame.set_edgecolor("0.85")
    notes = "\n".join(textwrap.fill(f"• {note}", 68, subsequent_indent="  ") for note in report.get("notes", []))
    axes.text(0, 0.95 - height, notes, va="top", fontsize=8, transform=axes.transAxes)

    # 2. classes as shares of each part, so that a part that is out of proportion stands out
    if classes:
        axes = next(panels)
        names, class_parts = list(classes)[:MOST_BARS], list(next(iter(classes.values())))
        height = 0.8 / len(class_parts)
        for i, part in enumerate(class_parts):
            total = max(1, sum(counts[part] for counts in classes.values()))
            places = [row + (i - (len(class_parts) - 1) / 2) * height for row in range(len(names))]
            axes.barh(places, [classes[name][part] / total for name in names], height, color=COLOURS[i], label=part)
        axes.set_yticks(range(len(names)), [shorten(name, LONGEST_LABEL) for name in names], fontsize=8)
        axes.invert_yaxis()
        more = f", the first {MOST_BARS} of {len(classes)}" if len(classes) > MOST_BARS else ""
        axes.set_title(f"classes, share of each part{more}")
        axes.legend(fontsize=8)

    # 3. lengths, sizes or targets
    for what, histogram in histograms.items():
        axes = next(panels)
        for i, (part, counts) in enumerate(histogram["counts"].items()):
            shares = [count / max(1, sum(counts)) for count in counts]
            axes.stairs(shares, histogram["edges"], color=COLOURS[i], label=part, linewidth=1.5)
        axes.set(xlabel=what, ylabel="share of the part")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axes.set_title(f"{what}, by part")
        axes.legend(fontsize=8)

    # 4. name, kind and values of the first columns of a table
    if columns:
        axes = next(panels)
        axes.axis("off")
        more = f", the first {MOST_ROWS} of {len(columns)}" if len(columns) > MOST_ROWS else ""
        axes.set_title(f"columns{more}")
        for row, column in enumerate(columns[:MOST_ROWS]):
            places = ((0, 20, "black", column["column"]), (0.36, 11, "0.4", column["kind"]))
            for x, longest, colour, text in (*places, (0.56, 30, "black", column.get("values", ""))):
                axes.text(x, 0.97 - row / MOST_ROWS, shorten(str(text), longest), fontsize=8, color=colour, va="top")

    # 5. missing values, the fullest column last; columns without a gap are counted in the title
    if gaps:
        axes = next(panels)
        labels = [f"{shorten(c['column'], LONGEST_LABEL)} ({c['kind']})" for c in gaps]
        axes.barh(range(len(gaps)), [c["missing"] for c in gaps], color=COLOURS[0])
        axes.set_yticks(range(len(gaps)), labels, fontsize=8)
        axes.invert_yaxis()
        axes.set(xlabel="share of rows", xlim=(0, 1))
        axes.set_title(f"missing values: {len(gaps)} of {len(columns)} columns have some")

    for axes in figure.axes:
        axes.title.set_fontsize(10)
    return figure
