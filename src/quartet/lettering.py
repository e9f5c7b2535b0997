"""Text in figures: as it is written, in fonts that have its letters. matplotlib is imported late."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quartet.files import written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# file names of fonts with many scripts; of the installed fonts these are tried first
KNOWN = re.compile(
    r"noto ?sans|source ?han|pingfang|hiragino|msyh|yahei|simhei|wqy|ipa|malgun|nanum|emoji|symbola", re.I
)


def new_figure(**settings: Any) -> Figure:
    """A matplotlib Figure in which `$` is a dollar and no formula begins."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["text.parse_math"] = False
    return Figure(**settings)


@contextmanager
def lettered(figure: Figure) -> Iterator[None]:
    """To draw it: letters that matplotlib's own font lacks come from an installed one, or are boxes, without a warning."""
    from matplotlib.text import Text

    texts: list[Any] = figure.findobj(Text)
    own = letters(None)
    for text in texts:
        missing = frozenset(map(ord, text.get_text())) - own - {ord("\n")}
        if missing and (others := fallback_fonts(missing)):
            text.set_fontfamily([*text.get_fontfamily(), *others])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(Glyph .* missing|.*[Ff]ont)")
        yield


def save(figure: Figure, path: Path) -> None:
    """Write a figure, atomically. Raises ValueError if the folder is a link, which may lead out of a run."""
    if path.parent.is_symlink():
        raise ValueError(f"{path.parent} is a link; put a folder in its place")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as file, lettered(figure):
        figure.savefig(file, format=path.suffix[1:])


@cache
def letters(path: str | None) -> frozenset[int]:
    """The characters that a font file can draw (None: matplotlib's own); none if it cannot be read."""
    from matplotlib.font_manager import findfont, get_font

    with suppress(Exception):  # bitmaps in place of outlines, damaged files
        return frozenset(get_font(path or findfont("DejaVu Sans")).get_charmap())
    return frozenset()


@cache
def fallback_fonts(missing: frozenset[int]) -> tuple[str, ...]:
    """The names of installed fonts that together have most of these characters."""
    from matplotlib.font_manager import findSystemFonts, fontManager, get_font

    families = []
    for path in sorted(findSystemFonts(), key=lambda path: (not KNOWN.search(path), "bold" in path.lower(), path)):
        if missing & letters(path):
            missing -= letters(path)
            fontManager.addfont(path)  # matplotlib's list may be older than the font
            families.append(get_font(path).family_name)
        if not missing:
            break
    return tuple(families)
