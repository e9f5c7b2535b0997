"""Records of the user's files, for tables and labelled texts: CSV, TSV, JSON Lines or Parquet, recognised by content.

Every cell is read as text (a label "NA" is a class like any other) and is missing only if it is blank, so the same
records give the same data in every format. Rows are counted from 1 in messages, a header not counted.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute, parquet
from pyarrow import csv as arrow_csv

from quartet.data import encodings
from quartet.data.base import user_path
from quartet.data.opening import open_file
from quartet.data.splits import PART_NAMES, SPLITS, listed
from quartet.say import say

pc: Any = compute  # its functions are made at import, where no type checker sees them
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")  # of the files of a folder
SEPARATORS = ("\t", ",", ";", "|")  # no text has as many tabs in every line by chance
HEAD = 1 << 20  # characters in which separator and header are looked for
BLOCK = 1 << 24  # bytes that the CSV parser reads at once; a row must fit
N_FIRST = 1000  # rows that tell whether the first one is a header


@dataclass(frozen=True)
class Format:
    """How CSV is read; None: found out. `named` columns are the user's; a header also has one of the `usual` names.

    `plain_tabs`: between tabs, quotes are ordinary characters, as in files of texts.
    """

    separator: str | None = None
    encoding: str | None = None
    header: bool | None = None
    named: frozenset[str] = frozenset()
    usual: frozenset[str] = frozenset()
    plain_tabs: bool = False


@dataclass(frozen=True)
class Records:
    """Cells as text by column, null if blank; `numbers` (M,) of the rows in their files, `files` (M,) and `parts` (M,).

    The parts are None unless each file is one.
    """

    path: str
    cells: pa.Table
    numbers: np.ndarray
    files: np.ndarray
    parts: list[str] | None = None
    header: bool = True
    separator: str = ","
    fingerprint: str = ""
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def columns(self) -> list[str]:
        return self.cells.column_names

    def take(self, places: Sequence[int] | np.ndarray) -> Records:
        places = np.asarray(places, dtype=np.int64)
        parts = None if self.parts is None else [self.parts[i] for i in places]
        return replace(
            self, cells=self.cells.take(places), numbers=self.numbers[places], files=self.files[places], parts=parts
        )

    def where(self, places: Sequence[int] | np.ndarray) -> str:
        """Some rows, in words; the file of the first one if there are several files."""
        name = f"{self.files[places[0]]}, " if self.parts is not None else ""
        return f"{name}row {listed(self.numbers[np.asarray(places)])}"

    def column(self, wanted: str | int, key: str) -> str:
        """The column of this name; a number may also be a place from 0. ValueError with the names there are."""
        names = self.columns
        if str(wanted) in names:
            return str(wanted)
        if isinstance(wanted, int) and 0 <= wanted < len(names):
            return names[wanted]
        near = get_close_matches(str(wanted), names, n=1, cutoff=0.5)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"{self.path}: {key} names a column {str(wanted)!r} that is not there; {guess}the columns are "
            f"{listed((name[:40] for name in names), 30)}"
        )


def read_records(path: str | None, how: Format) -> Records:
    """All records at a path, a file or a folder of train, val and test files; train first.

    Raises ValueError or OSError, one line that begins with the file, for what cannot be read.
    """
    if path is None:
        raise ValueError("data.path is missing: the file to learn from, as in data.path=table.csv")
    if how.separator is not None and how.separator not in ("tab", "\\t") and len(how.separator) != 1:
        raise ValueError(f"{path}: data.separator must be one character, or tab, not {how.separator!r}")
    # 1. read each file
    files = find_files(path)
    found, digest = [], hashlib.sha256()
    for part, place in files.items():
        with open_file(place, "a CSV, JSON Lines or Parquet file") as file:
            content = file.read()
        digest.update(content)
        try:
            records = read_file(place, content, how)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        how = replace(how, header=records.header)  # a header of train is that of all files
        parts = None if part is None else [part] * len(records)
        found.append(
            replace(records, parts=parts, files=np.array([os.path.basename(place)] * len(records), dtype=object))
        )
    # 2. tell what the user should know, and join the files by the columns of the first
    first = found[0]
    for records in found:
        absent = {*first.columns} - {*records.columns}
        notes = [f"it has no column {listed(sorted(absent))}: no values"] if absent else []
        for note in (*records.notes, *notes):
            say(f"note: {records.path}: {note}")
    if len(found) == 1:
        return replace(first, fingerprint=digest.hexdigest())
    return replace(
        first,
        path=path,
        cells=pa.concat_tables([records.cells for records in found], promote_options="default"),
        numbers=np.concatenate([records.numbers for records in found]),
        files=np.concatenate([records.files for records in found]),
        parts=[part for records in found for part in records.parts or []],
        fingerprint=digest.hexdigest(),
    )


# files


def find_files(path: str) -> dict[str | None, str]:
    """The files at a path by their part, train first; a single file has the part None."""
    folder = user_path(path)
    if not os.path.isdir(folder):
        return {None: path}
    try:
        every = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except PermissionError:
        raise PermissionError(f"no permission to read the folder {path}; ask its owner") from None
    # files named after a part, whatever their ending
    found: dict[str, list[str]] = {}
    for name in every:
        part = PART_NAMES.get(Path(name).stem.lower())
        if part and os.path.isfile(os.path.join(folder, name)):
            found.setdefault(part, []).append(name)
    for files in found.values():
        if len(files) > 1:
            raise ValueError(f"{path} has {' and '.join(files)}; keep one of them")
    if "train" in found:
        return {part: os.path.join(path, found[part][0]) for part in SPLITS if part in found}
    # or the only table of the folder
    tables = [name for name in every if name.lower().endswith(SUFFIXES)]
    if len(tables) == 1:
        return {None: os.path.join(path, tables[0])}
    raise ValueError(
        f"{path} has no train.csv, train.tsv, train.jsonl or train.parquet ({listed(tables) or 'no such files at all'}); "
        "name the training file so, beside it val (or dev, valid, validation) and test, or give one file as data.path"
    )


def read_file(path: str, content: bytes, how: Format) -> Records:
    """The records of one file, without blank rows and without blank columns that have no name."""
    if not content.strip():
        raise ValueError("the file is empty; it needs a line of column names and a row for each example")
    header, separator, notes = True, ",", []
    if content[:4] == b"PAR1":
        table = read_parquet(content)
    else:
        text = decode(content, how.encoding, notes)
        first = text.lstrip().partition("\n")[0]
        if path.lower().endswith((".jsonl", ".ndjson")) or re.match(r"\{.*\}\s*$", first):
            table = read_json_lines(text)
        else:
            table, header, separator = read_csv(path, text, how, notes)
    # 1. text; blank cells are missing
    texts = [column.cast(pa.string()) for column in table.columns]
    columns = [pc.if_else(pc.equal(pc.utf8_trim_whitespace(text), ""), None, text) for text in texts]
    # 2. without what spreadsheets leave: blank columns without a name, blank rows
    names = [name.strip() for name in table.column_names]
    n_rows = table.num_rows
    kept = [i for i, name in enumerate(names) if (name and header) or columns[i].null_count < n_rows]
    if 0 < len(kept) < len(names):
        notes.append(f"{len(names) - len(kept)} columns without a name are empty and are left out")
        columns, names = [columns[i] for i in kept], [names[i] for i in kept]
    names = [name or f"Unnamed: {i}" for i, name in enumerate(names)]
    repeated = sorted(name for name, n in Counter(names).items() if n > 1)
    if repeated:
        raise ValueError(f"several columns are called {listed(map(repr, repeated))}; give each a name of its own")
    filled = np.zeros(n_rows, dtype=bool)
    for column in columns:
        filled |= np.asarray(column.is_valid())
    if not filled.any():
        raise ValueError("there are column names but no rows; add a row for each example, or set data.header=false")
    cells = pa.table(dict(zip(names, columns, strict=True)))
    numbers = np.flatnonzero(filled)
    cells = cells if filled.all() else cells.take(numbers)
    return Records(path, cells, numbers + 1, np.empty(0), None, header, separator, notes=notes)


def read_parquet(content: bytes) -> pa.Table:
    try:
        table = parquet.read_table(pa.BufferReader(content))
    except (pa.ArrowMemoryError, MemoryError):
        raise ValueError("does not fit into memory; use fewer rows or columns") from None
    except (pa.ArrowException, OSError):
        raise ValueError("begins like Parquet but is not, or it is damaged; write it again") from None
    for column in table.schema:
        kind = column.type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            raise ValueError(f"column {column.name!r} holds {kind}, not one value a row; write the file without it")
    return table


def read_json_lines(text: str) -> pa.Table:
    """One JSON object a line; a key that a line lacks, null and NaN are missing."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is broken JSON ({error.msg}, column {error.colno}); correct it") from None
        if not isinstance(row, dict):
            raise ValueError(f'line {number} must be an object such as {{"text": …, "label": …}}, not {line[:40]}')
        rows.append(row)

    def plain(value: Any) -> str | None:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table([pa.array([plain(row.get(name)) for row in rows], pa.string()) for name in names], names=names)


# CSV


def decode(content: bytes, encoding: str | None, notes: list[str]) -> str:
    encoding = None if encoding == "auto" else encoding
    wide = re.sub(r"[^a-z0-9]", "", (encoding or "utf-8").lower()).startswith(("utf16", "utf32"))
    if b"\0" in content[:HEAD] and not wide:
        raise ValueError(
            "is binary, not text; use CSV, JSON Lines or Parquet, or name its encoding: data.encoding=utf-16"
        )
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


def read_csv(path: str, text: str, how: Format, notes: list[str]) -> tuple[pa.Table, bool, str]:
    """The table, whether it has a header, and the separator."""
    separator = {"tab": "\t", "\\t": "\t"}.get(how.separator or "", how.separator)
    # 1. above the header: `sep=;`, as spreadsheets write it, blank lines and comments
    n_comments = 0
    while match := re.match(r"[ \t]*(#[^\r\n]*|)(\r\n|\r|\n)|sep=(.)(\r\n|\r|\n)", text):
        if match[1]:
            following = text[match.end() :].lstrip().partition("\n")[0]
            if not following or any(s in match[1] and match[1].count(s) == following.count(s) for s in SEPARATORS):
                break  # `#id,a,b` above rows of three values is a header
            n_comments += 1
        separator = separator or match[3]
        text = text[match.end() :]
    if n_comments:
        notes.append(f"{n_comments} lines of comment (#) at the beginning are skipped")
    # 2. lines wrapped in quotes as a whole, as some exports write them; columns separated by blanks
    some = [line for line in text[:HEAD].splitlines()[:20] if line]
    if len(some) > 1 and all(re.fullmatch(r'"([^"]|"")*"', line) and re.search(r"[,;\t|]", line) for line in some):
        notes.append("every line is wrapped in quotes, which are removed")
        text = "\n".join(re.sub(r'^"(.*)"$', r"\1", line).replace('""', '"') for line in text.splitlines()) + "\n"
    widths = {len(line.split()) for line in some}
    even_blanks = separator is None and len(some) > 1 and len(widths) == 1 and widths != {1}
    if even_blanks and not re.search(r"[,;\t|\"]", "".join(some)):
        notes.append("its columns are separated by blanks")
        text, separator = "\n".join("\t".join(line.split()) for line in text.splitlines()) + "\n", "\t"
    # 3. the separator that gives the first rows equally many cells, else the one that gives the first row most
    if separator is None and path.lower().endswith(".tsv"):
        separator = "\t"
    if separator is None:
        counts = {s: [len(row) for row in _first_rows(text, s, how, 50)] for s in SEPARATORS}
        even = [s for s, n_cells in counts.items() if len({*n_cells}) == 1 and n_cells[0] > 1]
        separator = even[0] if even else max((",", ";", "\t", "|"), key=lambda s: max(counts[s][:1], default=0))
    # 4. the header
    rows = _first_rows(text, separator, how) or [[""]]
    header = how.header
    if header is None:
        header = is_header(rows, how)
        if not header:
            notes.append(
                f"no names of columns in the first line ({listed(cell[:40] for cell in rows[0])}), so they are called 0 "
                f"to {len(rows[0]) - 1}; data.header=true if it has them"
            )
    names = rows[0] if header else [str(i) for i in range(len(rows[0]))]
    # 5. the rows; Arrow wants names that differ, so repeated ones are looked at later
    reader = csv.reader(io.StringIO(text[:HEAD], newline=""), **_dialect(separator, how))
    next(filter(None, reader), None)
    numbered = [str(i) for i in range(len(names))]
    quote: Any = False if how.plain_tabs and separator == "\t" else '"'
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(text.encode()),
            read_options=arrow_csv.ReadOptions(
                block_size=BLOCK, column_names=numbered, skip_rows=reader.line_num if header else 0
            ),
            parse_options=arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True, quote_char=quote),
            convert_options=arrow_csv.ConvertOptions(column_types=dict.fromkeys(numbered, pa.string())),
        )
    except pa.ArrowMemoryError:
        raise ValueError("does not fit into memory; use fewer rows or columns") from None
    except pa.ArrowInvalid as error:
        raise ValueError(find_wrong_line(text, separator, how) or f"not CSV: {str(error).splitlines()[0]}") from None
    return table.rename_columns(names), header, separator


def _dialect(separator: str, how: Format) -> dict[str, Any]:
    plain = how.plain_tabs and separator == "\t"
    return {"delimiter": separator, "quoting": csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL}


def _first_rows(text: str, separator: str, how: Format, most: int = N_FIRST) -> list[list[str]]:
    """The first rows that are not empty, without spaces around the cells."""
    rows = []
    with suppress(csv.Error):  # reported when the whole file is read
        for row in csv.reader(io.StringIO(text[:HEAD], newline=""), **_dialect(separator, how)):
            if row:
                rows.append([cell.strip() for cell in row])
            if len(rows) == most:
                break
    return rows


def is_header(rows: list[list[str]], how: Format) -> bool:
    """Whether the first row holds names: one that the user typed, a usual one, or none that stands below it again.

    A number above numbers is a value, except if all are names such as 0, 1, 2 or years.
    """
    # rows of another width are mistakes, which are reported later
    first, below = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    numbers = {name: float(name) for name in first if _is_number(name)}
    years = all(number.is_integer() and 1900 <= number <= 2100 for number in numbers.values())
    counted = any(first == [str(i + start) for i in range(len(first))] for start in (0, 1))
    counted = counted or (years and 0 < len(numbers) == sum(map(_is_number, first)))
    # 1. a name that the user typed; but data.target=3 is a number of a column if there are no names
    named = how.named & {*first}
    if named and (counted or not all(name.isdigit() for name in named)):
        return True
    # 2. numbers above numbers, usual names, repeated cells
    columns = [{*column} for column in zip(*below, strict=True)] or [set() for _ in first]
    if any(
        _is_number(cell) and all(map(_is_number, column - {""})) for cell, column in zip(first, columns, strict=True)
    ):
        return counted
    if how.usual & {name.lower() for name in first}:
        return True
    return not any(cell and cell in column for cell, column in zip(first, columns, strict=True))


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", cell, re.IGNORECASE | re.ASCII) is not None


def find_wrong_line(text: str, separator: str, how: Format) -> str | None:
    """Which line has too many or too few values, if any."""
    reader = csv.reader(io.StringIO(text, newline=""), **_dialect(separator, how), strict=True)
    try:
        widths = [(reader.line_num, len(row)) for row in reader if row]
    except csv.Error as error:
        return (
            f'line {reader.line_num} is not CSV ({error}); a quote inside a quoted text is written twice (""), and each '
            "quoted text must end"
        )
    # a single odd line at the top is a title; else the lines that differ from the header are wrong
    (first, n_columns), rest = widths[0], Counter(n for _, n in widths[1:])
    if len(rest) == 1 and n_columns not in rest:
        return (
            f"line {first} has {n_columns} values, and every line below it has {next(iter(rest))}; remove it, or set "
            "data.separator"
        )
    wrong = [(line, n) for line, n in widths if n != n_columns]
    if not wrong:
        return None
    more = f" and {len(wrong) - 1} more lines" if len(wrong) > 1 else ""
    return (
        f"line {wrong[0][0]}{more}: {wrong[0][1]} values, but there are {n_columns} columns (separator {separator!r}); "
        "correct the line (a text with the separator in it needs quotes), or set data.separator"
    )
