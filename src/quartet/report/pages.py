"""The blocks of a report, as a Markdown page and as one self-contained HTML page.

Every text is treated as foreign: it is escaped for the page it goes to. The HTML page refers to nothing outside itself
but the run directories, by relative links.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?( ±.*| %| s| h| min| GiB| to .*| of \d+|)$|< 0.\d+$|–$|$")


@dataclass(frozen=True)
class Heading:
    text: str

    def markdown(self) -> str:
        return f"## {plain(self.text)}"

    def html(self) -> str:
        return f"<h2>{escape(self.text)}</h2>"


@dataclass(frozen=True)
class Paragraph:
    text: str
    strong: bool = False

    def markdown(self) -> str:
        return f"**{plain(self.text)}**" if self.strong else plain(self.text)

    def html(self) -> str:
        return f'<p class="lead">{escape(self.text)}</p>' if self.strong else f"<p>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Items:
    texts: Sequence[str]

    def markdown(self) -> str:
        return "\n".join(f"- {plain(text)}" for text in self.texts)

    def html(self) -> str:
        return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in self.texts) + "</ul>"


@dataclass(frozen=True)
class Code:
    text: str

    def markdown(self) -> str:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", self.text)), default=0))
        return f"{fence}\n{self.text}\n{fence}"

    def html(self) -> str:
        return f"<pre><code>{escape(self.text)}</code></pre>"


@dataclass(frozen=True)
class Links:
    """Texts of a cell, with paths relative to the page; None: there is nothing to go to."""

    targets: Sequence[tuple[str, str | None]]

    def markdown(self) -> str:
        return " ".join(f"[{plain(t)}]({quote(to)})" if to else plain(t) for t, to in self.targets)

    def html(self) -> str:
        return " ".join(f'<a href="{quote(to)}">{escape(t)}</a>' if to else escape(t) for t, to in self.targets)


@dataclass(frozen=True)
class Table:
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Links]]

    def markdown(self) -> str:
        rule = ["--:" if right else "---" for right in self._numeric()]
        rows = [[cell.markdown() if isinstance(cell, Links) else plain(cell) for cell in row] for row in self.rows]
        lines = [[plain(name) for name in self.header], rule, *rows]
        return f"{plain(self.caption)}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def html(self) -> str:
        sides = [' class="number"' if right else "" for right in self._numeric()]
        head = "".join(f'<th scope="col"{s}>{escape(name)}</th>' for name, s in zip(self.header, sides, strict=True))
        rows = "\n".join(f"<tr>{''.join(map(_cell, row, sides))}</tr>" for row in self.rows)
        caption = f"<caption><span>{escape(self.caption)}</span></caption>"
        inside = f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody>"
        return f'<div class="wide" tabindex="0"><table>{caption}{inside}</table></div>'

    def _numeric(self) -> list[bool]:
        """Which columns hold numbers only."""
        columns = zip(*self.rows, strict=True) if self.rows else ((),) * len(self.header)
        return [all(isinstance(cell, str) and NUMBER.match(cell) for cell in column) for column in columns]


def _cell(cell: str | Links, side: str) -> str:
    if isinstance(cell, Links):
        return f'<td class="links">{cell.html()}</td>'
    return f"<td{side}>{escape(cell)}</td>"


@dataclass(frozen=True)
class Picture:
    """`alt` is what a person who cannot see it should know; `place` is the file's path relative to the page."""

    path: Path
    place: str
    caption: str
    alt: str

    def markdown(self) -> str:
        return f"![{plain(self.alt)}]({quote(self.place)})\n\n*{plain(self.caption)}*"

    def html(self) -> str:
        data = base64.b64encode(self.path.read_bytes()).decode()
        image = f'<img alt="{escape(self.alt)}" src="data:image/png;base64,{data}">'
        return f"<figure>{image}<figcaption>{escape(self.caption)}</figcaption></figure>"


Block = Heading | Paragraph | Items | Code | Table | Picture


def markdown(title: str, blocks: Sequence[Block]) -> str:
    return "\n\n".join([f"# {plain(title)}", *(block.markdown() for block in blocks)]) + "\n"


def html(title: str, blocks: Sequence[Block]) -> str:
    return PAGE.format(title=escape(title), style=STYLE, body="\n".join(block.html() for block in blocks))


def plain(text: str) -> str:
    """For Markdown: neither markup nor the end of a line or a cell."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(text.split()).replace("&", "&amp;"))


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
table { border-collapse: collapse; min-width: min(100%, 34rem); font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #444; padding-bottom: .4rem; }
caption span { display: block; max-width: calc(100vw - 2rem); }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #444; }
.number { text-align: right; white-space: nowrap; }
.links { min-width: 8rem; }
tbody tr:hover { background: #f2f7fb; }
a { color: #005a8f; }
figure { margin: 1.2rem 0; }
img { max-width: 100%; height: auto; display: block; }
figcaption { color: #444; font-size: .88rem; margin-top: .3rem; }
@media print {
  @page { margin: 15mm; }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  h2 { break-after: avoid; }
  .wide, figure, pre, tr { break-inside: avoid; }
  .wide { overflow: visible; }
  img { max-height: 100mm; width: auto; }
  table { font-size: 8.5pt; }
  td { overflow-wrap: anywhere; }
  pre { border: 1px solid #999; background: none; }
  a { color: inherit; text-decoration: none; }
}
"""
