import re

import pytest

from quartet.pages import fence, markdown, render, table
from quartet.report.analysis import Analysis
from quartet.report.runs import frame, read_json, sweep_runs

FOREIGN = "<script>alert('1')</script> & \"x\" | `y` *z* [a](b)"


@pytest.fixture
def content(make_sweep):
    """What a page is made of, with foreign text wherever a user or a file may bring some."""
    runs = [(loss, {"data.name": FOREIGN, "seed": loss}, status) for loss, status in enumerate(("completed", "pruned"))]
    sweep = make_sweep([*runs, (None, {"data.name": "b"}, "failed")], {FOREIGN: FOREIGN}, sampler=FOREIGN)
    (sweep / "2" / "error.txt").write_text(FOREIGN)
    analysis = Analysis(FOREIGN, sweep, frame(sweep_runs(sweep)), read_json(sweep / "sweep.json"))
    analysis.tested = {"setting": FOREIGN, "created": FOREIGN, "runs": {}}
    analysis.out_of_fold = {FOREIGN: FOREIGN}
    cells = table([FOREIGN, "runs"], [[FOREIGN, [(FOREIGN, f"{FOREIGN}/"), (FOREIGN, None)]]])
    names = ("space", "ranking", "pruned", "lost", "cost", "test", "front")
    figure = {"path": f"figures/{FOREIGN}.png", "data": ""}
    figures = dict.fromkeys(("ranking", "effects", "curves", "pareto", "time"), figure)
    return {
        "analysis": analysis,
        "figures": figures,
        "tables": {**dict.fromkeys(names, cells), "out_of_fold": []},
        "command": FOREIGN,
        "made_with": {"processor": FOREIGN},
    }


def test_foreign_text_is_text_in_html(content):
    page = render("html", "quartet.report", title="Report: x", **content)
    assert "<script" not in page and page.count("&lt;script&gt;") > 40
    assert 'alt="On the front: data.name=&lt;script' in page and '"x"' not in page


def test_foreign_text_is_text_in_markdown(content):
    page = render("md", "quartet.report", title="Report: x", **content)
    outside_code = re.sub(r"```.*?```", "", page, flags=re.S)
    assert "\\<script\\>" in page and "\\[a\\](b)" in page
    assert not re.search(r"(?<!\\)[<`]", outside_code)
    row = next(line for line in page.splitlines() if line.startswith("| ") and "%3C" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 3  # two cells


def test_markdown_has_one_empty_line_between_blocks_and_each_table_has_its_rule(content):
    page = render("md", "quartet.report", title="Report: x", **content)
    assert "\n\n\n" not in page and page.startswith("# Report: ")
    headers = re.findall(r"\n\n(\|.*)\n(\|.*)\n\|", page)
    assert headers and all(set(rule) <= {"|", " ", "-", ":"} for _, rule in headers)


def test_code_in_markdown_ends_where_it_should():
    assert fence("a\n```\nb") == "````" and fence("a") == "```"
    assert markdown("a\n| b") == r"a \| b"


@pytest.mark.parametrize(
    "cells, right", [(["1", "0.5 ± 0.1", "–"], True), (["1", "adamw"], False), (["-1.2e-05", "< 0.001"], True)]
)
def test_columns_of_numbers_are_on_the_right(cells, right):
    assert table(["column"], [[cell] for cell in cells])["numeric"] == [right]


def test_a_table_says_what_it_leaves_out():
    cut = table(["column"], [["1"]] * 30, 20)
    assert len(cut["rows"]) == 20 and cut["rest"] == "; 20 of 30, all of them in runs.csv"
