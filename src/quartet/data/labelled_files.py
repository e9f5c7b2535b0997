"""The user's labelled texts: CSV, TSV or JSON Lines, one file or a folder with train, val and test.

Every cell is read as text (a label "NA" is a class like any other; only an empty cell is missing), so nothing is guessed
about types. Errors name the file and the line.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from quartet.data.base import user_path
from quartet.data.sources import LabelledText
from quartet.data.splits import PART_NAMES, SPLITS
from quartet.data.table_columns import as_text
from quartet.data.table_reader import preamble, read_table
from quartet.data.text_files import Reading, opened
from quartet.say import say

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
USUAL = {  # names that settle which column is which
    "text": ("text", "sentence", "review", "content", "comment", "document", "message", "tweet", "body"),
    "label": ("label", "labels", "class", "category", "target", "sentiment", "topic", "y"),
}
SNIFFED = 50  # records by which separator and header are found

csv.field_size_limit(2**31 - 1)  # characters; the library's 131,072 are few for a text


@dataclass(frozen=True)
class Rows:
    """The records of a file: cells by column, None where there is none; `lines` are those on which records end."""

    path: str
    columns: list[str]
    cells: list[list[str | None]]
    lines: list[int]
    header: bool

    def column(self, name: str) -> list[str | None]:
        place = self.columns.index(name)
        return [row[place] for row in self.cells]


@dataclass
class LabelledFiles:
    """Where labelled texts are and which columns hold what: names, or numbers from 0; None: found.

    The text is the column with a usual name (`USUAL`), else that with the longest texts on average; the label has a usual
    name, else it is the one of the rest with the fewest values. Raises ValueError where that leaves a choice.
    `found` says which columns were read.
    """

    path: str | None
    encoding: str
    header: str | bool
    separator: str | None
    text: str | int | None
    label: str | int | None
    split_column: str | int | None
    group: str | int | None
    drop_empty: bool = False
    found: dict[str, str] = field(init=False, default_factory=dict)

    def __post_init__(self):
        self.reading = Reading(self.encoding, None)
        if self.header not in ("auto", True, False):
            raise ValueError(f"data.header must be auto, true or false, not {self.header!r}")

    @property
    def wanted(self) -> dict[str, str | int | None]:
        return {"text": self.text, "label": self.label, "split_column": self.split_column, "group": self.group}

    def rows(self) -> list[LabelledText]:
        """The labelled texts of all files, train first; prints which columns they come from."""
        if self.path is None:
            raise ValueError(
                "data.path is missing: where are your labelled texts? data.path=<CSV, TSV, JSONL or folder>"
            )
        files = find_tables(self.path)
        if len(files) > 1 and self.split_column is not None:
            raise ValueError(f"{self.path} has a file for each part; leave out data.split_column={self.split_column}")
        (_, path), *others = files.items()
        first = self._read(path, self._header())
        tables = [first, *(self._read(path, first.header) for _, path in others)]
        self.found = self._columns(first)
        how = "named by a header" if first.header else "no header, numbered from 0"
        say(f"columns of {self.path}: {', '.join(f'{k} = {v}' for k, v in self.found.items())} ({how})")
        rows = [row for part, table in zip(files, tables, strict=True) for row in self._labelled(table, part)]
        return checked(canonical(rows), f"{self.path} (column {self.found['label']})")

    def _header(self) -> bool | None:
        """Whether there is a header; None: to be found. A column wanted by name needs one."""
        named = any(isinstance(column, str) for column in self.wanted.values())
        return (True if named else None) if self.header == "auto" else bool(self.header)

    def _read(self, path: str, header: bool | None) -> Rows:
        with opened(path) as file:
            content = file.read() if file.read(4) == b"PAR1" and file.seek(0) == 0 else None
        if content is not None:
            return _read_parquet(path, content)
        text = "".join(self.reading.decoded(path))
        if not text.strip():
            raise ValueError(f"{path} is empty; name another data.path")
        if path.lower().endswith((".jsonl", ".ndjson")) or _is_json(text):
            return read_json_lines(path, text)
        notes: list[str] = []
        text, separator = preamble(text, self.separator, notes)
        for note in notes:
            say(f"note: {path}: {note}")
        return read_delimited(path, text, separator, header)

    def _columns(self, rows: Rows) -> dict[str, str]:
        chosen = {key: named_column(rows, name, key) for key, name in self.wanted.items() if name is not None}
        for key, choose in (("text", longest), ("label", fewest)):
            if key not in chosen:
                chosen[key] = find_column(rows, [x for x in rows.columns if x not in chosen.values()], key, choose)
        if len(set(chosen.values())) < len(chosen):
            raise ValueError(f"{rows.path}: one column cannot be two things: {chosen}; change data.text, data.label, …")
        return {key: chosen[key] for key in self.wanted if key in chosen}

    def _labelled(self, rows: Rows, part: str | None) -> list[LabelledText]:
        if self.drop_empty:
            rows = _without_empty(rows, [named_column(rows, name, key) for key, name in self.found.items()])
        cells = {key: filled(rows, key, named_column(rows, name, key)) for key, name in self.found.items()}
        n = len(rows.cells)
        parts = _parts(rows, cells["split_column"]) if "split_column" in cells else [part] * n
        groups = cells.get("group", [None] * n)
        return [
            LabelledText(
                self.reading.clean(text), self.reading.clean(label).strip(), group, part, f"{rows.path}, line {line}"
            )
            for text, label, group, part, line in zip(
                cells["text"], cells["label"], groups, parts, rows.lines, strict=True
            )
        ]


# files


def find_tables(path: str) -> dict[str | None, str]:
    """The files at a path by their part, train first; a single file has the part None."""
    if not os.path.isdir(user_path(path)):
        return {None: path}
    try:
        every = sorted(name for name in os.listdir(user_path(path)) if not name.startswith("."))
        names = [
            name
            for name in every
            if name.lower().endswith(SUFFIXES)
            or (Path(name).stem.lower() in PART_NAMES and os.path.isfile(os.path.join(user_path(path), name)))
        ]
    except PermissionError:
        raise PermissionError(f"no permission to read the folder {path}; ask its owner") from None
    found: dict[str, list[str]] = {}
    for name in names:
        if part := PART_NAMES.get(Path(name).stem.lower()):
            found.setdefault(part, []).append(name)
    double = next((files for files in found.values() if len(files) > 1), None)
    if double:
        raise ValueError(f"{path} has {' and '.join(double)}; keep one of them")
    if "train" in found:
        return {part: os.path.join(path, found[part][0]) for part in SPLITS if part in found}
    if len(names) == 1:
        return {None: os.path.join(path, names[0])}
    raise ValueError(
        f"{path} has no train.csv, train.tsv or train.jsonl ({', '.join(names[:5]) or 'no such files at all'}); "
        "name the training file so, beside it val (or dev, valid, validation) and test, or give one file as data.path"
    )


def _is_json(text: str) -> bool:
    """Whether the first line is an object, whatever the file is called."""
    first = text.lstrip().partition("\n")[0]
    try:
        return first.startswith("{") and isinstance(json.loads(first), dict)
    except json.JSONDecodeError:
        return False


def _read_parquet(path: str, content: bytes) -> Rows:
    try:
        cells = read_table(content, None, None, None).cells
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    columns = [as_text(cells[name]).to_pylist() for name in cells.column_names]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return Rows(path, cells.column_names, rows, list(range(1, len(rows) + 1)), header=True)


def _without_empty(rows: Rows, columns: list[str]) -> Rows:
    places = [rows.columns.index(name) for name in columns]
    kept = [i for i, row in enumerate(rows.cells) if all(row[place] is not None for place in places)]
    if len(kept) < len(rows.cells):
        say(f"note: {rows.path}: {len(rows.cells) - len(kept)} lines with an empty text or label are left out")
    return replace(rows, cells=[rows.cells[i] for i in kept], lines=[rows.lines[i] for i in kept])


def read_json_lines(path: str, text: str) -> Rows:
    """One JSON object a line; a key that a line lacks is a missing cell."""
    records, lines = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            records.append(_json_object(path, number, line))
            lines.append(number)
    columns = list(dict.fromkeys(key for record in records for key in record))
    return Rows(path, columns, [[_plain(record.get(key)) for key in columns] for record in records], lines, header=True)


def _json_object(path: str, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number} is broken JSON ({error.msg}, column {error.colno}); mend it") from None
    if not isinstance(record, dict):
        raise ValueError(f'{path}, line {number} must be an object such as {{"text": …, "label": …}}, not {line[:40]}')
    return record


def _plain(value: Any) -> str | None:
    """A JSON value as text; null and NaN are missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if text.strip() else None


def read_delimited(path: str, text: str, separator: str | None, header: bool | None) -> Rows:
    """CSV by the rules of RFC 4180; where the separator is a tab, quotes are ordinary signs and a line is a record.

    `separator` None: a tab in .tsv, else found; `header` None: found, see `looks_like_header`.
    """
    separator = separator or ("\t" if path.lower().endswith(".tsv") else sniff(text))
    records = list(_records(path, text, separator))
    _check_widths(path, records, separator)
    records = _without_unnamed(path, records)
    names = [cell.strip() for cell in records[0][1]]
    if header is None:
        header = looks_like_header([record for _, record in records[: SNIFFED * 20]])
    if header:
        _check_names(path, names)
        records = records[1:]
    else:
        names = [str(i) for i in range(len(names))]
    if not records:
        raise ValueError(f"{path} has a header and no rows; bring rows, or say data.header=false")
    cells = [[cell if cell.strip() else None for cell in record] for _, record in records]
    return Rows(path, names, cells, [line for line, _ in records], header)


def _records(path: str, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Records with the lines on which they end, without empty lines."""
    quoting = {"quoting": csv.QUOTE_NONE} if separator == "\t" else {"strict": True}
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, **quoting)  # type: ignore[arg-type]
    try:
        yield from ((reader.line_num, record) for record in reader if any(cell.strip() for cell in record))
    except csv.Error as error:
        raise ValueError(
            f'{path}, line {reader.line_num}: {error}; a quote inside a quoted text is written twice (""), '
            "and each quoted text must end"
        ) from None


def _check_widths(path: str, records: list[tuple[int, list[str]]], separator: str) -> None:
    width = len(records[0][1])
    ragged = [(line, len(record)) for line, record in records if len(record) != width]
    if ragged and len(ragged) == len(records) - 1 and len({n for _, n in ragged}) == 1:
        raise ValueError(
            f"{path}, line {records[0][0]} has {width} cells and every line below it {ragged[0][1]} (separator "
            f"{separator!r}); remove it, or say data.separator"
        )
    if ragged:
        line, n = ragged[0]
        more = f" and {len(ragged) - 1} more lines" if len(ragged) > 1 else ""
        raise ValueError(
            f"{path}, line {line}{more}: {n} cells where the first line has {width} (separator {separator!r}); quote texts "
            "that hold the separator, or say data.separator"
        )
    if width < 2:
        raise ValueError(
            f"{path} has one column (separator {separator!r}), a text and a label take two; say data.separator"
        )


def _without_unnamed(path: str, records: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """Without columns that are empty in every line, as spreadsheets leave them at the ends of lines."""
    used = [i for i in range(len(records[0][1])) if any(record[i].strip() for _, record in records)]
    n_empty = len(records[0][1]) - len(used)
    if not n_empty or len(used) < 2:
        return records
    say(f"note: {path}: {n_empty} empty columns are left out")
    return [(line, [record[i] for i in used]) for line, record in records]


def _check_names(path: str, names: list[str]) -> None:
    name, n = Counter(names).most_common(1)[0]
    if n > 1:
        raise ValueError(f"{path} has {n} columns named {name!r}; rename all but one, or say data.header=false")


def sniff(text: str) -> str:
    """The separator by which the first records all have the same number of cells, two or more; a comma where none does."""
    for separator in ("\t", ",", ";", "|"):  # no text has as many tabs in every line by chance
        reader = csv.reader(io.StringIO(text[:1_000_000], newline=""), delimiter=separator)
        widths = {len(record) for record in islice(reader, SNIFFED) if record}
        if len(widths) == 1 and min(widths) > 1:
            return separator
    return ","


def looks_like_header(records: list[list[str]]) -> bool:
    """Whether the first record names the columns.

    It does where no cell of it is empty or a number and one of them is a usual name, or else none of them is found again
    in the column below it (a label would be).
    """
    first, rest = [cell.strip() for cell in records[0]], records[1:]
    if not all(first) or any(number(cell) for cell in first):
        return False
    if any(cell.lower() in names for cell in first for names in USUAL.values()):
        return True
    return bool(rest) and not any(cell == record[i].strip() for i, cell in enumerate(first) for record in rest)


# columns


def named_column(rows: Rows, wanted: str | int, key: str) -> str:
    """The column of this name or number; ValueError with the list of those there are."""
    if wanted in rows.columns:
        return str(wanted)
    if isinstance(wanted, int) and 0 <= wanted < len(rows.columns):
        return rows.columns[wanted]
    near = difflib.get_close_matches(str(wanted), rows.columns, n=1)
    hint = f", did you mean {near[0]}?" if near else ""
    raise ValueError(f"{rows.path} has no column {wanted} (data.{key}){hint}; it has {_named(rows)}")


def _named(rows: Rows) -> str:
    names = ", ".join(name if len(name) <= 30 else f"{name[:30]}…" for name in rows.columns)
    return f"{names} (its first line; where that is no header, take numbers from 0)" if rows.header else names


def find_column(rows: Rows, names: list[str], key: str, choose: Callable[[Rows, list[str]], list[str]]) -> str:
    """The one column with a usual name, else the one that `choose` leaves; ValueError where there is not one."""
    if not names:
        raise ValueError(f"{rows.path} has no column left for data.{key}; it has {_named(rows)}")
    usual = [name for name in names if name.lower() in USUAL[key]]
    found = usual if len(usual) == 1 else choose(rows, names)
    if len(found) > 1:
        raise ValueError(f"{rows.path}: which column is the {key}, {' or '.join(found)}? say data.{key}=…")
    return found[0]


def longest(rows: Rows, names: list[str]) -> list[str]:
    """The columns whose texts are the longest on average, or nearly so (0.8 of it)."""
    means = {name: sum(len(cell or "") for cell in rows.column(name)) / len(rows.cells) for name in names}
    return [name for name, mean in means.items() if mean >= 0.8 * max(means.values())]


def fewest(rows: Rows, names: list[str]) -> list[str]:
    """The columns with the fewest values; those with a single one, and those that name parts, only if all are so."""
    values = {name: {cell for cell in rows.column(name) if cell} for name in names}
    telling = {
        name: found
        for name, found in values.items()
        if len(found) > 1 and not {x.lower() for x in found} <= PART_NAMES.keys()
    }
    counts = {name: len(found) for name, found in (telling or values).items()}
    return [name for name, n in counts.items() if n == min(counts.values())]


# cells


def filled(rows: Rows, key: str, column: str) -> list[str]:
    """The cells of a column; ValueError with the lines where one is empty."""
    cells = rows.column(column)
    empty = [line for line, cell in zip(rows.lines, cells, strict=True) if cell is None]
    if empty:
        what = {"text": "texts", "label": "labels"}.get(key, "values")
        raise ValueError(
            f"{rows.path}: empty {what} (column {column}) in {_lines(empty)}; fill them or remove these lines, or leave "
            "them out with data.drop_empty=true"
        )
    return [cell for cell in cells if cell is not None]


def _lines(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return f"line {shown}" if len(numbers) == 1 else f"lines {shown}{more}"


def _parts(rows: Rows, cells: list[str]) -> list[str]:
    parts = [PART_NAMES.get(cell.strip().lower()) for cell in cells]
    if None in parts:
        i = parts.index(None)
        raise ValueError(
            f"{rows.path}, line {rows.lines[i]}: {cells[i]!r} in data.split_column names no part; "
            f"take {', '.join(PART_NAMES)}"
        )
    if "train" not in parts:
        raise ValueError(f"{rows.path} has no row for train in data.split_column; it has {', '.join(sorted({*cells}))}")
    return [part for part in parts if part is not None]


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def number(cell: str) -> bool:
    return _NUMBER.fullmatch(cell.strip()) is not None


def canonical(rows: list[LabelledText]) -> list[LabelledText]:
    """Where every label is a number, equal numbers get the same name: 1, 1.0 and 01 are "1"."""
    labels = {row.label for row in rows}
    if not all(map(number, labels)):
        return rows
    names = {label: _number_name(label) for label in labels}
    joined = [label for label in sorted(labels) if list(names.values()).count(names[label]) > 1]
    if joined:
        say(f"note: the labels {', '.join(joined[:4])} are equal numbers and count as {names[joined[0]]}")
    return [replace(row, label=names[row.label]) for row in rows]


def _number_name(label: str) -> str:
    if re.fullmatch(r"[+-]?\d+", label):
        return str(int(label))
    value = float(label)
    return str(int(value)) if value.is_integer() and abs(value) < sys.maxsize else repr(value)


def checked(rows: list[LabelledText], source: str) -> list[LabelledText]:
    """The rows; ValueError where there is a single class or a class with one example."""
    counts = Counter(row.label for row in rows)
    if len(counts) < 2:
        raise ValueError(
            f"{source}: every label is {next(iter(counts))!r}; a classifier needs at least 2 classes; "
            "bring texts of another one, or name another column: data.label=…"
        )
    lonely = [row for row in rows if counts[row.label] == 1]
    if lonely:
        shown = ", ".join(f"{row.label!r} ({row.where})" for row in lonely[:3])
        more = f" and {len(lonely) - 3} more" if len(lonely) > 3 else ""
        raise ValueError(
            f"{source}: only one example of the label {shown}{more}; bring more, merge it with another or remove it"
        )
    return rows


def shares_part(rows: Iterable[LabelledText]) -> str | None:
    """A group that stands in two given parts, in words."""
    parts: dict[str, str] = {}
    for row in rows:
        if row.group is not None and row.part is not None and parts.setdefault(row.group, row.part) != row.part:
            return f"{row.group!r} is in {parts[row.group]} and in {row.part} ({row.where})"
    return None
