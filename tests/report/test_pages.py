import re

import pytest

from quartet.report.pages import Code, Heading, Items, Links, Paragraph, Picture, Table, html, markdown

FOREIGN = "<script>alert('1')</script> & \"x\" | `y` *z* [a](b)"


def blocks(tmp_path, text):
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    return [
        Heading(text), Paragraph(text), Paragraph(text, strong=True), Items([text]), Code(text),
        Table(text, [text, "runs"], [[text, Links([(text, f"{text}/"), (text, None)])]]),
        Picture(tmp_path / "a.png", f"figures/{text}.png", text, text),
    ]  # fmt: skip


def test_foreign_text_is_text_in_html(tmp_path):
    page = html(FOREIGN, blocks(tmp_path, FOREIGN))
    assert "<script" not in page and page.count("&lt;script&gt;") == 14
    assert 'alt="&lt;script' in page and '"x"' not in page


def test_foreign_text_is_text_in_markdown(tmp_path):
    page = markdown(FOREIGN, blocks(tmp_path, FOREIGN))
    outside_code = re.sub(r"```.*?```", "", page, flags=re.S)
    assert "\\<script\\>" in page and "\\[a\\](b)" in page
    assert not re.search(r"(?<!\\)[<`]", outside_code)
    row = next(line for line in page.splitlines() if line.startswith("| ") and "%3C" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 3  # two cells


def test_code_in_markdown_ends_where_it_should():
    assert Code("a\n```\nb").markdown() == "````\na\n```\nb\n````"


@pytest.mark.parametrize(
    "cells, right", [(["1", "0.5 ± 0.1", "–"], True), (["1", "adamw"], False), (["-1.2e-05", "< 0.001"], True)]
)
def test_columns_of_numbers_are_on_the_right(cells, right):
    table = Table("t", ["column"], [[cell] for cell in cells])
    assert ("--:" in table.markdown()) == right and ('<td class="number">' in table.html()) == right
