"""Pages in HTML and Markdown from one template of sections: reports of sweeps, evaluations of runs.

Every text is treated as foreign: it is escaped for the page it goes to. An HTML page refers to nothing outside itself but
run directories, by relative links.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from jinja2 import ChoiceLoader, Environment, PackageLoader
from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from quartet import lettering
from quartet.files import written
from quartet.say import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBER = re.compile(r"[-+]?[\d.,:]+(e[-+]?\d+)?( ±.*| %| s| GiB| to .*| of \d+| \[.*\]|)$|< 0.\d+$|\[.*\]$|–$|$")


def render(format: str, package: str, **content: Any) -> str:
    """The page "html" or "md" of a package with a template `sections.j2`; `content` has its `title`.

    Every text that a template prints is escaped: by Jinja2 for HTML, by `markdown` for Markdown.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("quartet.pages", "templates"), PackageLoader(package, "templates")]),
        autoescape=True,
        finalize=markdown if format == "md" else None,
        extensions=["jinja2.ext.do"],
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # quote is for paths in links, fence for code that holds fences itself
    environment.filters.update(digits=digits, quote=quote, fence=fence)
    return environment.get_template(f"page.{format}.j2").render(content, sections="sections.j2")


def write_pages(stem: Path, package: str, **content: Any) -> None:
    """`<stem>.md` and `<stem>.html`; each replaces its predecessor atomically."""
    for format in ("md", "html"):
        with written(stem.with_name(f"{stem.name}.{format}")) as file:
            file.write(render(format, package, **content).encode("utf-8", "replace"))


def embedded(figure: Figure, path: Path) -> dict[str, str]:
    """A figure as the templates take it: a file beside the Markdown page, and data inside the HTML page."""
    lettering.save(figure, path)
    return {"path": f"figures/{path.name}", "data": base64.b64encode(path.read_bytes()).decode()}


def markdown(value: Any) -> Markup:
    """Neither markup nor the end of a line or a cell; what a macro has made is kept."""
    if isinstance(value, Markup):
        return value
    # & is not among the escapes of Markdown, and would begin an entity
    line = " ".join(str(value).split()).replace("&", "&amp;")
    return Markup(re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", line))


def fence(code: str) -> Markup:
    """The backticks around a block of code: more than there are in it."""
    return Markup("`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0)))


def table(
    header: Sequence[str], rows: Sequence[Sequence[Any]], most: int | None = None, all_in: str = "runs.csv"
) -> dict[str, Any]:
    """A cell is a text, or a list of texts with their links (None: no link). Columns of numbers are on the right.

    `most` rows are shown, and `rest` says so, with the file that has all of them.
    """
    rest = f"; {most} of {len(rows)}, all of them in {all_in}" if most and len(rows) > most else ""
    rows = rows[:most]
    columns = zip(*rows, strict=True) if rows else ((),) * len(header)
    numeric = [all(isinstance(cell, str) and NUMBER.match(cell) for cell in column) for column in columns]
    return {"header": header, "rows": rows, "numeric": numeric, "rest": rest}


def show(content: dict[str, Any]) -> None:
    """A table on a terminal, as it is on the page: as wide as it needs, with columns of numbers on the right."""
    shown = Table(box=None, padding=(0, 0, 0, 2))
    for name, numeric in zip(content["header"], content["numeric"], strict=True):
        shown.add_column(Text(printable(name)), justify="right" if numeric else "left", no_wrap=True)
    for row in content["rows"]:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    # no terminal is so wide: a long line is broken there, and not cut off here
    Console(highlight=False, width=1000).print(shown)
    if content["rest"]:
        print(f"  {content['rest'].removeprefix('; ')}")


def digits(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "–"
