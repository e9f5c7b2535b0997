"""Which encoding bytes that are not UTF-8 are most likely in: of those that decode them without a mistake."""

from __future__ import annotations

import re
from contextlib import suppress

ASIAN, WESTERN = "gb18030", "cp1252"
_HIGH = re.compile(rb"[\x80-\xff]+")
_STRANGE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd]")  # no text has these


def likely(content: bytes) -> str | None:
    """gb18030 or cp1252, whichever decodes `content` cleanly; None if neither does.

    Both decode almost any bytes, so the bytes above ASCII decide who is asked first: in Chinese they come in pairs that
    begin with 0xA1 to 0xD7, the usual characters; in European languages most are small letters, 0xDF to 0xFF, alone.
    """
    runs = _HIGH.findall(content)
    leads = b"".join(run[::2] for run in runs if len(run) % 2 == 0)
    usual = sum(0xA1 <= lead <= 0xD7 for lead in leads)
    asian = usual > 0.5 * sum((len(run) + 1) // 2 for run in runs)
    for name in (ASIAN, WESTERN) if asian else (WESTERN, ASIAN):
        with suppress(UnicodeDecodeError):
            if not _STRANGE.search(content.decode(name)):
                return name
    return None
