"""Files of tables as text: CSV and Parquet to named columns of strings.

pyarrow reads both (pandas fills short lines of a CSV with nothing, and an error must name them). Every error is one line
without the file's name, which the caller adds, except where the file cannot be opened.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable

import pyarrow as pa
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from quartet.data.base import user_path
from quartet.data.table_columns import listed

SEPARATORS = (",", ";", "\t", "|")
HEAD = 1 << 20  # bytes in which the header is looked for
BLOCK = 1 << 24  # bytes that the CSV parser takes at once; a row must fit


def read_bytes(path: str) -> bytes:
    place = user_path(path)
    if os.path.isdir(place):
        raise ValueError("is a folder; data.path must be one CSV or Parquet file")
    try:
        with open(place, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file; data.path is relative to where you are") from None
    except PermissionError:
        raise PermissionError(
            f"{path}: no permission to read it; chmod +r it, or copy it to a place of yours"
        ) from None


def read_table(path: str, content: bytes, separator: str | None, encoding: str) -> pa.Table:
    """The cells of a file with its columns' names; raises ValueError where there are none."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in (".csv", ".tsv", ".txt", ".parquet", ".pq"):
        raise ValueError(
            f"tables are read from .csv, .tsv, .txt, .parquet and .pq, not {suffix or 'without a suffix'!r}"
        )
    if not content.strip():
        raise ValueError("the file is empty; it needs a line of column names and a row for each example")
    table = _parquet(content) if suffix in (".parquet", ".pq") else _csv(content, separator, encoding)
    names = [name.strip() or f"Unnamed: {i}" for i, name in enumerate(table.column_names)]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"several columns are called {listed(map(repr, repeated))}; give each a name of its own")
    if len(table) == 0:
        raise ValueError("there are column names but no rows; bring a row for each example")
    return table.rename_columns(names)


def _parquet(content: bytes) -> pa.Table:
    try:
        table = parquet.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError):
        raise ValueError(
            "is called Parquet but is not, or it is damaged; write it again, or rename it to .csv"
        ) from None
    for name in table.column_names:
        kind = table.schema.field(name).type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            raise ValueError(f"column {name!r} holds {kind}, not one value a row; write the file without it")
    return table


def _csv(content: bytes, separator: str | None, encoding: str) -> pa.Table:
    data = _to_utf8(content, encoding)
    header, separator = _header(data, {"tab": "\t", "\\t": "\t"}.get(separator or "", separator))
    try:
        return arrow_csv.read_csv(
            pa.BufferReader(data),
            read_options=arrow_csv.ReadOptions(block_size=BLOCK),
            parse_options=arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string())),
        )
    except pa.ArrowInvalid as error:
        raise ValueError(_ragged(data, separator, len(header)) or f"no CSV: {str(error).splitlines()[0]}") from None


def _to_utf8(content: bytes, encoding: str) -> bytes:
    if content[:4] == b"PAR1":
        raise ValueError("is a Parquet file; rename it to .parquet")
    wide = re.sub(r"[^a-z0-9]", "", encoding.lower()).startswith(("utf16", "utf32"))
    if b"\0" in content[:HEAD] and not wide:
        raise ValueError("is binary, not text; bring CSV or Parquet, or name its encoding, as in data.encoding=utf-16")
    try:
        text = content.decode(encoding)
    except LookupError:
        raise ValueError(f"data.encoding={encoding} is unknown; utf-8, latin-1, cp1252 and utf-16 are usual") from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"is not {encoding} (line {line}, byte {content[error.start]:#04x}); name its encoding, as in "
            "data.encoding=cp1252"
        ) from None
    return text.removeprefix("\ufeff").encode()


def _header(data: bytes, separator: str | None) -> tuple[list[str], str]:
    """The names in the first line, and the separator: the one that cuts the line into most names."""
    lines = data[:HEAD].decode("utf-8", errors="ignore").splitlines(keepends=True)
    if separator is not None and len(separator) != 1:
        raise ValueError(f"data.separator must be one character, or tab, not {separator!r}")
    headers = {s: _first_row(lines, s) for s in ([separator] if separator else SEPARATORS)}
    best = max(headers, key=lambda s: len(headers[s]))
    return headers[best], best


def _first_row(lines: Iterable[str], separator: str) -> list[str]:
    return next(filter(None, csv.reader(lines, delimiter=separator)), [])


def _ragged(data: bytes, separator: str, n_columns: int) -> str | None:
    """Which line has too many or too few values, if any."""
    reader = csv.reader(io.StringIO(data.decode(), newline=""), delimiter=separator)
    try:
        for row in reader:
            if row and len(row) != n_columns:
                return (
                    f"line {reader.line_num} has {len(row)} values, but there are {n_columns} columns; correct the line "
                    "(a text with the separator in it needs quotes), or set data.separator"
                )
    except csv.Error as error:
        return f"line {reader.line_num} is no CSV ({error}); correct it"
    return None
