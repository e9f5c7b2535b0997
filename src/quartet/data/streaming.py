"""Records of a file of any size, a block at a time, read as `records.py` reads a whole one."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import parquet

from quartet.data import encodings
from quartet.data.csv_text import HEAD, Format, preamble
from quartet.data.records import (
    EMPTY,
    PARQUET,
    Block,
    Records,
    as_records,
    check_parquet,
    decode,
    is_json_lines,
    is_wide,
    read_text,
)

STREAMED = 1 << 22  # bytes that are read at a time: bounds the memory
PARQUET_ROWS = 1 << 16  # rows of Parquet that are read at a time


def stream_records(file: BinaryIO, path: str, how: Format) -> Iterator[Records]:
    """The records of a file of any size, some megabytes at a time, read as `read_file` reads them; rows are numbered on.

    `path` names it in messages, and by its ending. The separator and the header are those of the first block.
    Raises ValueError for what cannot be read.
    """
    block, head = Block(), file.read(STREAMED)
    if not head.strip():
        raise ValueError(EMPTY)
    if head[:4] == PARQUET:
        whole: Any = file if file.seekable() else pa.BufferReader(head + file.read())
        whole.seek(0)
        check_parquet(parquet.read_schema(whole))
        for batch in parquet.ParquetFile(whole).iter_batches(PARQUET_ROWS):
            yield as_records(path, pa.Table.from_batches([batch]), block=block)
        return
    # 1. whole rows: a line end between quotes is inside a cell
    notes: list[str] = []
    texts = _decoded(file, head, how.encoding, notes)
    first = next(texts)
    is_json, plain = is_json_lines(path, first), bool(how.plain_tabs and "\t" in first[:HEAD])
    blocks = _whole_rows(chain([first], texts), quoted=not (is_json or plain))
    # 2. the first block says how the others are read: what stands above its rows is put above theirs
    above = ""
    for i, text in enumerate(blocks):
        if not text.strip() and i:
            continue
        records = read_text(path, above + text, how, notes, block)
        yield records
        if is_json:
            block.n_lines += text.count("\n")
        elif i == 0:
            separator = records.separator if records.separator in text else how.separator  # else there are blanks
            how = replace(how, header=records.header, separator=separator)
            start = preamble(text)[0]
            end = text.find("\n", start) + 1
            while records.header and end and text.count('"', start, end) % 2:
                end = text.find("\n", end) + 1
            above = text[: end if records.header and end else start]
        notes = []


def _decoded(file: BinaryIO, head: bytes, encoding: str | None, notes: list[str]) -> Iterator[str]:
    """The text of a file, a block at a time; one whose encoding is not given is read as its first block has to be."""
    name = "utf-8" if encoding in (None, "auto") else str(encoding)
    if not is_wide(encoding):
        lines = head[: head.rfind(b"\n") + 1] if len(head) == STREAMED else head  # the end may cut a character
        decode(lines, encoding, notes)  # raises for what is not text
        try:
            lines.decode(name)
        except UnicodeDecodeError:
            name = str(encodings.likely(lines))
    decoder = codecs.getincrementaldecoder(name)()
    first = True
    while head or first:
        try:
            text = decoder.decode(head, final=len(head) < STREAMED)
        except UnicodeDecodeError as error:
            raise ValueError(f"is not {name} (byte {error.object[error.start]:#04x}); name its encoding") from None
        yield text.removeprefix("\ufeff") if first else text
        first, head = False, file.read(STREAMED) if len(head) == STREAMED else b""


def _whole_rows(blocks: Iterable[str], *, quoted: bool) -> Iterator[str]:
    """Blocks that end where a row does."""
    rest = ""
    for block in blocks:
        text = rest + block
        end = text.rfind("\n") + 1
        odd = quoted and text.count('"', 0, end) % 2 == 1
        while end and odd:
            earlier = text.rfind("\n", 0, end - 1) + 1
            odd ^= text.count('"', earlier, end) % 2 == 1
            end = earlier
        if end:
            yield text[:end]
        rest = text[end:]
    if rest:
        yield rest
