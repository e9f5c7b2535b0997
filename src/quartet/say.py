"""What a person reads while something works. Imports no torch."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence

TAB = "\t"


def say(line: str) -> None:
    """Print a line at once; of processes that train together the first one does (launchers number them in RANK)."""
    if all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK")):
        text = line.lstrip("\n")
        print("\n" * (len(line) - len(text)) + printable(text), flush=True)


def duration(seconds: float) -> str:
    """Minutes and seconds, with hours if there are any: 0:52, 1:04:09."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def columns(rows: Sequence[Sequence[str]], *, left: int) -> str:
    """Cells below each other: the first `left` of each row aligned to the left, the others, numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [f"{cell:{'<' if i < left else '>'}{widths[i]}}" for i, cell in enumerate(row)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def elapsed(seconds: float) -> str:
    """12.3 s, or from a minute on 1:40."""
    return f"{seconds:.1f} s" if round(seconds) < 60 else duration(seconds)


def printable(text: str, keep: str = "") -> str:
    """Text from a file as a terminal may show it: characters that steer it are written out, such as \\x1b, but for `keep`.

    They would set titles, clear the screen, turn the direction of writing or pretend to be our own lines.
    """
    # control characters, lone surrogates, separators of lines, and marks that turn or hide what is beside them; not the
    # two joiners, without which some scripts and emoji cannot be written
    steering, joiners = ("Cc", "Cf", "Cs", "Zl", "Zp"), "\u200c\u200d"
    return "".join(
        c.encode("unicode_escape").decode()
        if unicodedata.category(c) in steering and c not in keep and c not in joiners
        else c
        for c in text
    )
