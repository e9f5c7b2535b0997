"""Text in figures: as it is written, in fonts that have its letters. matplotlib is imported late."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# fonts with many letters, by their files: the first that has what is missing is taken
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
    own = _letters(None)
    for text in texts:
        missing = frozenset(map(ord, text.get_text())) - own - {ord("\n")}
        if missing and (others := _fonts(missing)):
            text.set_fontfamily([*text.get_fontfamily(), *others])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(Glyph .* missing|.*[Ff]ont)")
        yield


@cache
def _letters(path: str | None) -> frozenset[int]:
    """What a font file can draw, that of matplotlib's own where it is None; nothing where it cannot be read."""
    from matplotlib.font_manager import findfont, get_font

    with suppress(Exception):  # pictures in place of outlines, damaged files
        return frozenset(get_font(path or findfont("DejaVu Sans")).get_charmap())
    return frozenset()


@cache
def _fonts(missing: frozenset[int]) -> tuple[str, ...]:
    """The names of installed fonts that together have most of these letters."""
    from matplotlib.font_manager import findSystemFonts, fontManager, get_font

    families = []
    for path in sorted(findSystemFonts(), key=lambda path: (not KNOWN.search(path), "bold" in path.lower(), path)):
        if missing & _letters(path):
            missing -= _letters(path)
            fontManager.addfont(path)  # matplotlib's list may be older than the font
            families.append(get_font(path).family_name)
        if not missing:
            break
    return tuple(families)
