"""The data report as a picture: a panel for each thing told, whatever kind of data told it."""

import numpy as np
import pytest

from quartet.callbacks.data_report import examples_table, report_figure
from quartet.data.report import class_table, histogram

PARTS = {"parts": {"train": {"samples": 80, "groups": 8}, "val": {"samples": 10}, "test": {"samples": 10}}}
CLASSES = class_table(["cat", "dog"], {"train": [40, 40], "val": [9, 1], "test": [5, 5]})
LENGTHS = histogram({"train": np.arange(80), "val": np.arange(10), "test": np.arange(10)})
COLUMNS = [
    {"column": "age", "kind": "numeric", "missing": 0.25, "distinct": 40},
    {"column": "town", "kind": "categorical", "missing": 0.0, "distinct": 4},
]


@pytest.mark.parametrize(
    ("more", "panels"),
    [
        ({}, ["data"]),
        ({"classes": CLASSES}, ["data", "classes, share of each part"]),
        ({"histograms": {"tokens of a text": LENGTHS}}, ["data", "tokens of a text, by part"]),
        ({"columns": COLUMNS[1:]}, ["data", "columns"]),
        (
            {"columns": COLUMNS, "notes": ["3 rows twice"]},
            ["data", "columns", "missing values: 1 of 2 columns have some"],
        ),
    ],
)
def test_each_thing_told_has_its_panel(more, panels):
    figure = report_figure({**PARTS, **more})
    assert [axes.get_title() for axes in figure.axes] == panels


def test_the_bars_are_shares_of_each_part():
    axes = report_figure({**PARTS, "classes": CLASSES}).axes[1]
    assert sorted(round(bar.get_width(), 3) for bar in axes.patches) == [0.1, 0.5, 0.5, 0.5, 0.5, 0.9]  # type: ignore[attr-defined]


def test_a_histogram_counts_everything_once_over_common_bins():
    counts = histogram({"train": [1.0, 2.0, 2.0], "val": [5.0], "test": []})
    assert [sum(numbers) for numbers in counts["counts"].values()] == [3, 1, 0]
    assert (counts["edges"][0], counts["edges"][-1]) == (1.0, 5.0)
    assert all(len(numbers) == len(counts["edges"]) - 1 for numbers in counts["counts"].values())


def test_examples_cannot_break_the_table():
    table = examples_table([{"text": "a | b\nc", "label": 1}, {"text": "x" * 999, "label": 2}])
    lines = table.splitlines()
    assert len(lines) == 4 and lines[2] == "| a \\| b<br>c | 1 |" and len(lines[3]) < 400
