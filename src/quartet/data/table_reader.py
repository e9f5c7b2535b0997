"""Files of tables as text: CSV and Parquet to named columns of strings, whatever the file is called.

pyarrow reads both (pandas fills short lines of a CSV with nothing, and an error must name them). Every error is one line
without the file's name, which the caller adds, except where the file cannot be opened.
"""

from __future__ import annotations

import csv
import io
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from quartet.data import encodings
from quartet.data.base import user_path
from quartet.data.table_columns import as_text, listed, read_numbers, without

SEPARATORS = (",", ";", "\t", "|")
HEAD = 1 << 20  # bytes in which the header is looked for
BLOCK = 1 << 24  # bytes that the CSV parser takes at once; a row must fit
MANY_ROWS = 20  # of the first rows, which tell whether the first one is a header


@dataclass
class Found:
    """The cells with their columns' names, the separator of a CSV, and what the user should know of how it was read."""

    cells: pa.Table
    separator: str = ","
    notes: list[str] = field(default_factory=list)


def read_bytes(path: str) -> bytes:
    place = user_path(path)
    try:
        mode = os.stat(place).st_mode
        if stat.S_ISDIR(mode):
            raise ValueError("is a folder; data.path must be one CSV or Parquet file")
        if not stat.S_ISREG(mode):  # a pipe or a device may never end
            raise ValueError("is no regular file; data.path must be one CSV or Parquet file")
        with open(place, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file; data.path is relative to where you are") from None
    except PermissionError:
        raise PermissionError(
            f"{path}: no permission to read it; chmod +r it, or copy it to a place of yours"
        ) from None


def read_table(
    content: bytes, separator: str | None, encoding: str | None, header: bool | None, wanted: Iterable[str] = ()
) -> Found:
    """The cells of a file with its columns' names; raises ValueError where there are none.

    `header`: whether the first line holds the names; None: found out, for which a column that is `wanted` tells.
    """
    if not content.strip():
        raise ValueError("the file is empty; it needs a line of column names and a row for each example")
    is_parquet = content[:4] == b"PAR1"
    found = Found(_parquet(content)) if is_parquet else _csv(content, separator, encoding, header, set(wanted))
    _drop_unnamed(found)
    names = [name.strip() or f"Unnamed: {i}" for i, name in enumerate(found.cells.column_names)]
    repeated = sorted(name for name, n in Counter(names).items() if n > 1)
    if repeated:
        raise ValueError(f"several columns are called {listed(map(repr, repeated))}; give each a name of its own")
    if len(found.cells) == 0:
        raise ValueError("there are column names but no rows; bring a row for each example")
    found.cells = found.cells.rename_columns(names)
    return found


def _drop_unnamed(found: Found) -> None:
    """Columns without a name and without a value: separators at the ends of lines, as spreadsheets leave them."""
    names = found.cells.column_names
    empty = [
        i
        for i, name in enumerate(names)
        if not name.strip() and as_text(found.cells.column(i)).null_count == len(found.cells)
    ]
    if empty and len(empty) < len(names):
        found.cells = found.cells.select([i for i in range(len(names)) if i not in set(empty)])
        found.notes.append(f"{len(empty)} columns without a name are empty and are left out")


def _parquet(content: bytes) -> pa.Table:
    try:
        table = parquet.read_table(pa.BufferReader(content))
    except (pa.ArrowMemoryError, MemoryError):
        raise ValueError("does not fit into memory; bring fewer rows or columns") from None
    except (pa.ArrowException, OSError):
        raise ValueError("begins like Parquet but is not, or it is damaged; write it again") from None
    for name in table.column_names:
        kind = table.schema.field(name).type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            raise ValueError(f"column {name!r} holds {kind}, not one value a row; write the file without it")
    return table


def _csv(content: bytes, separator: str | None, encoding: str | None, header: bool | None, wanted: set[str]) -> Found:
    notes: list[str] = []
    text = _decoded(content, encoding, notes)
    text, separator = preamble(text, {"tab": "\t", "\\t": "\t"}.get(separator or "", separator), notes)
    text, separator = _unwrapped(text, separator, notes)
    head = _rows(text[:HEAD], separator)
    if separator is None:
        separator = max(SEPARATORS, key=lambda s: len(_rows(text[:HEAD], s, 1)[0]))
        head = _rows(text[:HEAD], separator)
    names = [name.strip() for name in head[0]]
    if header is None:
        header = _is_header(head, wanted)
        if not header:
            notes.append(
                f"no names of columns in the first line ({listed(head[0])}), so they are called 0 to {len(names) - 1}; "
                "data.header=true if it has them"
            )
    if not header:
        names = [str(i) for i in range(len(names))]
    data = text.encode()
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(data),
            read_options=arrow_csv.ReadOptions(
                block_size=BLOCK, column_names=_different(names), skip_rows=_lines_before_rows(text, separator) * header
            ),
            parse_options=arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(column_types=dict.fromkeys(_different(names), pa.string())),
        )
    except pa.ArrowMemoryError:
        raise ValueError("does not fit into memory; bring fewer rows or columns") from None
    except pa.ArrowInvalid as error:
        raise ValueError(_ragged(text, separator, len(names)) or f"no CSV: {str(error).splitlines()[0]}") from None
    return Found(table.rename_columns(names), separator, notes)


def _different(names: list[str]) -> list[str]:
    """Arrow wants names that differ; what the file has is looked at later."""
    return [f"{i}" for i in range(len(names))]


def _lines_before_rows(text: str, separator: str) -> int:
    """Lines that the header takes, with empty ones before it: a quoted name may hold line ends."""
    reader = csv.reader(io.StringIO(text[:HEAD], newline=""), delimiter=separator)
    next(filter(None, reader), None)
    return reader.line_num


def _decoded(content: bytes, encoding: str | None, notes: list[str]) -> str:
    wide = re.sub(r"[^a-z0-9]", "", (encoding or "utf-8").lower()).startswith(("utf16", "utf32"))
    if b"\0" in content[:HEAD] and not wide:
        raise ValueError("is binary, not text; bring CSV or Parquet, or name its encoding, as in data.encoding=utf-16")
    try:
        return content.decode(encoding or "utf-8").removeprefix("\ufeff")
    except LookupError:
        raise ValueError(f"data.encoding={encoding} is unknown; utf-8, latin-1, cp1252 and utf-16 are usual") from None
    except UnicodeDecodeError as error:
        likely, line = encodings.likely(content), content[: error.start].count(b"\n") + 1
        if encoding is None and likely is not None:
            notes.append(f"it is not utf-8 (line {line}) and read as {likely}; data.encoding=… names another encoding")
            return content.decode(likely)
        raise ValueError(
            f"is not {encoding or 'utf-8'} (line {line}, byte {content[error.start]:#04x}); name its encoding, as in "
            f"data.encoding={likely or 'latin-1'}"
        ) from None


def preamble(text: str, separator: str | None, notes: list[str]) -> tuple[str, str | None]:
    """The text from its header on: without `sep=;`, as spreadsheets write it, and without comments."""
    if separator is not None and len(separator) != 1:
        raise ValueError(f"data.separator must be one character, or tab, not {separator!r}")
    skipped = 0
    while match := re.match(r"[ \t]*(#[^\r\n]*|)(\r\n|\r|\n)|sep=(.)(\r\n|\r|\n)", text):
        if match[3]:
            separator = separator or match[3]
        elif match[1]:
            rest = text[match.end() :].lstrip()
            if not rest or _looks_like_header(match[1], rest):
                break
            skipped += 1
        text = text[match.end() :]
    if skipped:
        notes.append(f"{skipped} lines of comment (#) at the beginning are skipped")
    return text, separator


def _looks_like_header(line: str, rest: str) -> bool:
    """`#id,a,b` above rows of three values is a header, not a comment."""
    following = rest.splitlines()[0]
    return any(s in line and line.count(s) == following.count(s) for s in SEPARATORS)


def _unwrapped(text: str, separator: str | None, notes: list[str]) -> tuple[str, str | None]:
    """Lines that are wrapped in quotes as a whole, as some exports do, without them; blanks as a separator as tabs."""
    lines = text.splitlines()
    some = list(filter(None, lines[:MANY_ROWS]))
    if all(re.fullmatch(r'"([^"]|"")*"', line) and re.search(r"[,;\t|]", line) for line in some) and len(some) > 1:
        notes.append("every line is wrapped in quotes, which are taken off")
        lines = [re.sub(r'^"(.*)"$', r"\1", line).replace('""', '"') for line in lines]
        return "\n".join(lines) + "\n", separator
    widths = {len(line.split()) for line in some}
    blanks = separator is None and not re.search(r"[,;\t|\"]", "".join(some)) and len(some) > 1
    if blanks and len(widths) == 1 and widths != {1}:
        notes.append("its columns are separated by blanks")
        return "\n".join("\t".join(line.split()) for line in lines) + "\n", "\t"
    return text, separator


def _rows(head: str, separator: str | None, most: int = MANY_ROWS) -> list[list[str]]:
    """The first rows that are not empty; at least one."""
    rows = []
    try:
        for row in csv.reader(io.StringIO(head, newline=""), delimiter=separator or ","):
            if row:
                rows.append([cell.strip() for cell in row])
            if len(rows) == most:
                break
    except csv.Error:  # it is told when all of the file is read
        pass
    return rows or [[""]]


def _is_header(rows: list[list[str]], wanted: set[str]) -> bool:
    """Whether the first row holds names: it has a wanted one, or is unlike the rows below it.

    It is like them where it has a number above a column of numbers (names such as 0, 1, 2 or years apart), or
    where no value of it is new in its column.
    """
    first, below = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    if len(below) < 2:
        return True
    numbers = [_number(cell) for cell in first]
    whole = [n for n in numbers if n is not None]
    counted = any(first == [str(i + start) for i in range(len(first))] for start in (0, 1))
    counted = counted or (len(set(whole)) == len(whole) > 0 and all(1900 <= n <= 2100 for n in whole))
    if wanted & set(first) and (counted or not all(name.isdigit() for name in wanted & set(first))):
        return True
    columns = list(zip(*below, strict=True))
    over_numbers = any(
        number is not None and all(_number(cell) is not None for cell in column if cell)
        for number, column in zip(numbers, columns, strict=True)
    )
    if over_numbers:
        return counted
    return not all(cell in column for cell, column in zip(first, columns, strict=True))


def _number(cell: str) -> float | None:
    values, strange = read_numbers(without(as_text([cell])), ".")
    return None if strange[0] or not cell or values[0] != values[0] else float(values[0])


def _ragged(text: str, separator: str, n_columns: int) -> str | None:
    """Which line has too many or too few values, if any."""
    reader, widths = csv.reader(io.StringIO(text, newline=""), delimiter=separator), []
    try:
        for row in reader:
            if row:
                widths.append((reader.line_num, len(row)))
    except csv.Error as error:
        return f"line {reader.line_num} is no CSV ({error}); correct it"
    rest = Counter(width for _, width in widths[1:])
    if rest and rest.most_common(1)[0][0] != n_columns and len(rest) == 1:
        line, width = widths[0]
        return (
            f"line {line} has {width} values, and every line below it has {rest.most_common(1)[0][0]}; remove it, "
            "or set data.separator"
        )
    for line, width in widths:
        if width != n_columns:
            return (
                f"line {line} has {width} values, but there are {n_columns} columns; correct the line "
                "(a text with the separator in it needs quotes), or set data.separator"
            )
    return None
