"""Which encoding bytes that are no UTF-8 are most likely in: of those that decode them without a mistake."""

from __future__ import annotations

import re

ASIAN, WESTERN = "gb18030", "cp1252"
_HIGH = re.compile(rb"[\x80-\xff]+")
_STRANGE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd]")  # no text has these


def likely(content: bytes) -> str | None:
    """gb18030 or cp1252, whichever decodes `content` cleanly; None where neither does.

    Both decode almost any bytes, so the bytes above ASCII decide who is asked first: Chinese writes them in runs of two
    and more, European languages as single letters between ASCII ones.
    """
    runs = [len(run) for run in _HIGH.findall(content)]
    alone = sum(run == 1 for run in runs) > len(runs) / 2
    return next((name for name in ((WESTERN, ASIAN) if alone else (ASIAN, WESTERN)) if _is_clean(content, name)), None)


def _is_clean(content: bytes, encoding: str) -> bool:
    try:
        return not _STRANGE.search(content.decode(encoding))
    except UnicodeDecodeError:
        return False
