"""The same blocks as a Markdown page and as one self-contained HTML page.

Every text is treated as foreign: it is escaped for the page it goes to. The HTML page refers to nothing outside itself
but the run directories, by relative links.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import singledispatch
from html import escape
from pathlib import Path
from urllib.parse import quote

NUMBER = re.compile(r"[-−+]?[\d.,]+(e[-+]?\d+)?( ±.*| %| s| h| min| of \d+|)?$|[-–]$|$")


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Paragraph:
    text: str
    strong: bool = False


@dataclass(frozen=True)
class Items:
    texts: Sequence[str]


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Link:
    text: str
    target: str  # relative to the page


Cell = str | Link | tuple[Link, ...]


@dataclass(frozen=True)
class Table:
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Picture:
    path: Path  # of the PNG, below the page
    caption: str
    alt: str  # what a person who cannot see it should know


Block = Heading | Paragraph | Items | Code | Table | Picture


# Markdown


def markdown(title: str, blocks: Iterable[Block], directory: Path) -> str:
    """`directory` is where the page will be."""
    return "\n\n".join([f"# {_plain(title)}", *(as_markdown(block, directory) for block in blocks)]) + "\n"


@singledispatch
def as_markdown(block: Block, directory: Path) -> str:
    raise TypeError(f"no block: {block!r}")


@as_markdown.register
def _(block: Heading, directory: Path) -> str:
    return f"## {_plain(block.text)}"


@as_markdown.register
def _(block: Paragraph, directory: Path) -> str:
    return f"**{_plain(block.text)}**" if block.strong else _plain(block.text)


@as_markdown.register
def _(block: Items, directory: Path) -> str:
    return "\n".join(f"- {_plain(text)}" for text in block.texts)


@as_markdown.register
def _(block: Code, directory: Path) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block.text)), default=0))
    return f"{fence}\n{block.text}\n{fence}"


@as_markdown.register
def _(block: Table, directory: Path) -> str:
    rows = [[_plain_cell(cell) for cell in row] for row in block.rows]
    rule = ["--:" if right else "---" for right in _numeric(block)]
    lines = [[_plain(name) for name in block.header], rule, *rows]
    return f"{_plain(block.caption)}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


@as_markdown.register
def _(block: Picture, directory: Path) -> str:
    return f"![{_plain(block.alt)}]({quote(block.path.relative_to(directory).as_posix())})\n\n*{_plain(block.caption)}*"


def _plain_cell(cell: Cell) -> str:
    if isinstance(cell, tuple):
        return " ".join(map(_plain_cell, cell))
    return f"[{_plain(cell.text)}]({quote(cell.target)})" if isinstance(cell, Link) else _plain(cell)


def _plain(text: str) -> str:
    """Neither markup nor the end of a line or a cell."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(text.split())).replace("&", "&amp;")


# HTML


def html(title: str, blocks: Iterable[Block]) -> str:
    body = "\n".join(as_html(block) for block in blocks)
    return PAGE.format(title=escape(title), style=STYLE, body=body)


@singledispatch
def as_html(block: Block) -> str:
    raise TypeError(f"no block: {block!r}")


@as_html.register
def _(block: Heading) -> str:
    return f"<h2>{escape(block.text)}</h2>"


@as_html.register
def _(block: Paragraph) -> str:
    return f'<p class="lead">{escape(block.text)}</p>' if block.strong else f"<p>{escape(block.text)}</p>"


@as_html.register
def _(block: Items) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in block.texts) + "</ul>"


@as_html.register
def _(block: Code) -> str:
    return f"<pre><code>{escape(block.text)}</code></pre>"


@as_html.register
def _(block: Table) -> str:
    sides = [' class="number"' if right else "" for right in _numeric(block)]
    head = "".join(f'<th scope="col"{s}>{escape(name)}</th>' for name, s in zip(block.header, sides, strict=True))
    rows = "\n".join(
        "<tr>" + "".join(f"<td{s}>{_html_cell(cell)}</td>" for cell, s in zip(row, sides, strict=True)) + "</tr>"
        for row in block.rows
    )
    return (
        f'<div class="wide" tabindex="0"><table><caption>{escape(block.caption)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
    )


@as_html.register
def _(block: Picture) -> str:
    data = base64.b64encode(block.path.read_bytes()).decode()
    return (
        f'<figure><img alt="{escape(block.alt)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(block.caption)}</figcaption></figure>"
    )


def _html_cell(cell: Cell) -> str:
    if isinstance(cell, tuple):
        return " ".join(map(_html_cell, cell))
    return f'<a href="{escape(quote(cell.target))}">{escape(cell.text)}</a>' if isinstance(cell, Link) else escape(cell)


def _numeric(table: Table) -> list[bool]:
    """Which columns hold numbers only."""
    columns = list(zip(*table.rows, strict=True)) if table.rows else [()] * len(table.header)
    return [bool(column) and all(isinstance(c, str) and bool(NUMBER.match(c)) for c in column) for column in columns]


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #1a1a1a; font: 16px/1.5 system-ui, "Segoe UI", "Liberation Sans", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .6rem; padding-top: .6rem; border-top: 1px solid #ccc; }
p, ul { margin: .6rem 0; max-width: 46rem; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; }
.lead { font-size: 1.1rem; font-weight: 600; }
pre { background: #f4f4f4; border-left: 4px solid #0072B2; padding: .7rem .9rem; margin: .8rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .88rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #444; padding-bottom: .4rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #444; }
.number { text-align: right; white-space: nowrap; }
tbody tr:hover { background: #f2f7fb; }
a { color: #005a8f; }
figure { margin: 1.2rem 0; }
img { max-width: 100%; height: auto; display: block; }
figcaption { color: #444; font-size: .88rem; max-width: 46rem; margin-top: .3rem; }
@media print {
  @page { margin: 15mm; }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  h2, caption { break-after: avoid; }
  figure, tr, pre { break-inside: avoid; }
  .wide { overflow: visible; }
  table { font-size: 8.5pt; }
  td { overflow-wrap: anywhere; }
  pre { border: 1px solid #999; background: none; }
  a { color: inherit; text-decoration: none; }
}
"""
