"""The user's own table: CSV or Parquet, read as text; columns sorted by kind, a class or a quantity to predict.

Rows are counted from 1 in every message, the header not counted.

Letters: M rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from torch import Tensor

from quartet.data.memory import Samples
from quartet.data.report import said_values
from quartet.data.splits import PART_NAMES, SPLITS
from quartet.data.table_columns import (
    KINDS,
    MISSING,
    Column,
    as_text,
    find_column,
    find_decimal,
    given_column,
    labels,
    listed,
    option,
    other_order,
    pc,
    read_column,
    read_dates,
    read_numbers,
    without,
)
from quartet.data.table_reader import read_bytes, read_table
from quartet.data.tables import Table, Tabular
from quartet.say import say

N_EXAMPLES = 8  # training rows in the report
MANY_NUMBERS = 20  # distinct whole numbers in a target; more are a quantity


@dataclass(frozen=True)
class Rows:
    """Cells as text by column, null where missing; `numbers` (M,) by which the user knows the rows."""

    cells: pa.Table
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, places: Sequence[int] | np.ndarray) -> Rows:
        places = np.asarray(places, dtype=np.int64)
        return Rows(self.cells.take(places), self.numbers[places])

    def where(self, wanted: np.ndarray) -> str:
        """The numbers of some rows, as text."""
        return listed(map(str, self.numbers[wanted]))


class TableFile(Tabular):
    """Rows of `path`, of which the column `target` is predicted from the others.

    `target_kind` is "class" or "number", as the task has it. `kinds` lists the columns whose kind is not the one found
    (`table_columns` has the rules). `split_column` names the part of each row; rows with the same value of the column
    `group` stay in one part; neither is an input of the network.

    Raises ValueError or OSError, one line with file and remedy, for whatever cannot be learnt from.
    """

    def __init__(
        self,
        *,
        path: str | None,
        target: str | int | float | None,
        target_kind: str,
        drop_missing_target: bool,
        drop_duplicates: bool = False,
        kinds: dict[str, list[str]],
        separator: str | None,
        encoding: str | None,
        header: bool | None = None,
        decimal: str | None,
        date_format: str | None,
        missing: list[str | int | float],
        split_column: str | int | float | None,
        group: str | int | float | None,
        **common: Any,
    ):
        super().__init__(**common)
        self.path, self.target_kind, self.drop = path, target_kind, drop_missing_target
        self.target, self.split_column, self.group = map(_name, (target, split_column, group))
        self.drop_duplicates, self.header = drop_duplicates, header
        self.kinds = {str(name).strip(): kind for kind, names in kinds.items() for name in names}
        self.separator, self.encoding, self.decimal, self.date_format = separator, encoding, decimal, date_format
        self.missing = list(map(str, missing))
        self._parts: dict[str, Rows] = {}
        self._dropped = self._dropped_duplicates = 0
        self._used_separator = ","

    @staticmethod
    def problems(settings: dict[str, Any]) -> list[str]:
        """What is wrong with these `conf/data` values, one sentence each; keys may be missing."""
        problems = []
        if settings.get("path", "") is None:
            problems.append(
                "data.path is missing: the table to learn from, as in data.path=table.csv data.target=price"
            )
        if settings.get("decimal") not in (None, ".", ","):
            problems.append(f"data.decimal must be . or , or null, not {settings['decimal']!r}")
        if settings.get("target_kind", "class") not in ("class", "number"):
            problems.append("data=csv fits task=classification and task=regression only")
        unknown = settings.get("kinds", {}).keys() - set(KINDS)
        if unknown:
            problems.append(f"data.kinds has lists for {', '.join(KINDS)}, not for {', '.join(sorted(unknown))}")
        return problems

    # reading and splitting

    def read(self) -> tuple[dict[str, Rows], str]:
        if problems := self.problems({"path": self.path}):
            raise ValueError(problems[0])
        assert self.path is not None
        with _naming(self.path):
            content = read_bytes(self.path)
            wanted = {*filter(None, (self.target, self.split_column, self.group)), *self.kinds}
            found = read_table(content, self.separator, self.encoding, self.header, wanted)
            for note in found.notes:
                say(f"note: {self.path}: {note}")
            cells, self._used_separator = found.cells, found.separator
            names = cells.column_names
            self._check_names(names)
            cells = pa.table([as_text(cells[name], self.missing) for name in names], names=names)
            rows = self._with_target(Rows(cells, np.arange(1, len(cells) + 1)))
            if self.drop_duplicates:
                rows = self._without_duplicates(rows)
            self.ids = self._split(rows)
            self._parts = {part: rows.take(ids) for part, ids in self.ids.items()}
        return self._parts, hashlib.sha256(content).hexdigest()

    def _check_names(self, names: list[str]) -> None:
        if self.target is None:
            raise ValueError(f"say which column to predict: data.target=<one of {listed(names, most=30)}>")
        asked = {"data.target": [self.target], "data.split_column": [self.split_column], "data.group": [self.group]}
        for key, wanted in {**asked, "data.kinds": self.kinds}.items():
            for name in wanted:
                if name is not None and name not in names:
                    near = get_close_matches(name, names, n=1, cutoff=0.5)
                    guess = f"did you mean {near[0]!r}? " if near else ""
                    raise ValueError(
                        f"{key} names a column {name!r} that is not there; {guess}the columns are {listed(names, 30)}"
                    )

        for name in {self.target, self.split_column, self.group} & self.kinds.keys():
            if (name, self.kinds[str(name)]) != (self.target, "categorical"):
                raise ValueError(
                    f"data.kinds.{self.kinds[str(name)]} names {name!r}, which is no input: data.kinds is for inputs, "
                    "or data.kinds.categorical for a target of numbers that are classes"
                )

    def _with_target(self, rows: Rows) -> Rows:
        target = self._column(rows, self.target)
        if self.target_kind == "class":
            self._tell_of_words(target)
        else:
            target = without(target)
        known = np.asarray(target.is_valid())
        self._dropped = int((~known).sum())
        if not known.any():
            raise ValueError(
                f"no row has a target: column {self.target!r} is empty; fill it, or name another data.target"
            )
        if self._dropped and not self.drop:
            raise ValueError(
                f"no target {self.target!r} in {self._dropped} of {len(rows)} rows ({rows.where(~known)}); "
                "data.drop_missing_target=true leaves them out"
            )
        rows = rows.take(np.flatnonzero(known))
        if self.target_kind == "class":
            self._check_classes(rows)
        else:
            self._numbers(rows, self.decimal or find_decimal([target], self._used_separator)[0])
        return rows

    def _tell_of_words(self, target: Any) -> None:
        """A class may be called None or NA; who means that there is no value has to say so."""
        words = pc.unique(target.filter(pc.is_in(target, pa.array(MISSING, pa.string())))).to_pylist()
        if words:
            say(
                f"note: {self.path}: {listed(map(repr, words))} of the target {self.target!r} is a class like any other; "
                f"{option('data.missing', *words)} data.drop_missing_target=true if it means no value"
            )

    def _without_duplicates(self, rows: Rows) -> Rows:
        """The first of the rows that are equal in the target and all inputs."""
        columns, _ = self._columns(rows)
        kept = [column.name for column in columns if column.kind != "ignore"] + [str(self.target)]
        first = np.flatnonzero(~rows.cells.select(kept).to_pandas().duplicated().to_numpy())
        self._dropped_duplicates = len(rows) - len(first)
        return rows.take(first)

    def _column(self, rows: Rows, name: str | None) -> Any:
        return rows.cells[name]

    def _check_classes(self, rows: Rows) -> None:
        """Names of classes, not a quantity; at least two, with two rows each."""
        numbers, strange = read_numbers(self._column(rows, self.target), self.decimal or ".")
        distinct = np.unique(numbers[~strange])
        many = len(distinct) > MANY_NUMBERS or (distinct != np.floor(distinct)).any()
        if not strange.any() and many and self.kinds.get(str(self.target)) != "categorical":
            raise ValueError(
                f"the target {self.target!r} looks like a quantity ({len(distinct)} different numbers): add "
                f"task=regression, or {option('data.kinds.categorical', self.target)} if they are classes"
            )
        names, counts = np.unique(self._labels(rows), return_counts=True)
        if len(names) < 2:
            raise ValueError(
                f"the target {self.target!r} has one class only ({', '.join(names)}); there must be two: bring rows of "
                "another one, or name another data.target"
            )
        if counts.min() == 1:
            raise ValueError(
                f"only one row has the class {listed(map(repr, names[counts == 1]))} of {self.target!r}, which cannot "
                "both train and test; bring more such rows, join the class to another or take the row out"
            )

    def _labels(self, rows: Rows) -> np.ndarray:
        return labels(self._column(rows, self.target))

    def _numbers(self, rows: Rows, decimal: str) -> np.ndarray:
        text = without(self._column(rows, self.target))
        numbers, strange = read_numbers(text, decimal)
        if strange.all():
            raise ValueError(
                f"task=regression needs numbers, but the target {self.target!r} has text such as {text[0].as_py()!r}; "
                "task=classification predicts classes"
            )
        if strange.any():
            stray = text.filter(pa.array(strange))[0].as_py()
            raise ValueError(
                f"the target {self.target!r} has {stray!r} in row {rows.where(strange)}, no number; correct it, or add "
                f"{option('data.missing', stray)} and data.drop_missing_target=true"
            )
        if (infinite := np.isinf(numbers)).any():
            raise ValueError(
                f"the target {self.target!r} is infinite in row {rows.where(infinite)}; correct it, or leave it empty and "
                "add data.drop_missing_target=true"
            )
        return numbers

    def _split(self, rows: Rows) -> dict[str, list[int]]:
        classes = self._labels(rows) if self.target_kind == "class" else None
        groups = self._groups(rows)
        given = self._given(rows)
        ids = self.split.assign(len(rows), labels=classes, groups=groups, given=given)
        if given is not None and groups is not None:
            self._check_groups(groups, ids)
        if classes is not None:
            _check_every_class_trains(classes, ids)
            names, places = np.unique(classes, return_inverse=True)
            counts = {part: np.bincount(places[ids[part]], minlength=len(names)).tolist() for part in SPLITS}
            order = [names.tolist().index(name) for name in _class_names(classes)]
            self._class_counts = {part: [count[i] for i in order] for part, count in counts.items()}
        return ids

    def _groups(self, rows: Rows) -> np.ndarray | None:
        if self.group is None:
            return None
        text = self._column(rows, self.group)
        if text.null_count:
            raise ValueError(
                f"data.group={self.group} is empty in row {rows.where(~np.asarray(text.is_valid()))}; "
                "every row must belong to a group"
            )
        return labels(text)

    def _given(self, rows: Rows) -> np.ndarray | None:
        if self.split_column is None:
            return None
        text = pc.utf8_lower(self._column(rows, self.split_column)).to_pylist()
        parts = np.array([PART_NAMES.get(word) for word in text], dtype=object)
        strange = parts == None  # noqa: E711, element by element
        if strange.any():
            raise ValueError(
                f"data.split_column={self.split_column} has {text[int(strange.argmax())]!r} in row {rows.where(strange)}; "
                f"it must say one of {', '.join(PART_NAMES)}"
            )
        if "train" not in parts:
            raise ValueError(f"no row of data.split_column={self.split_column} says train")
        return parts

    def _check_groups(self, groups: np.ndarray, ids: dict[str, list[int]]) -> None:
        seen: dict[str, str] = {}
        for part, group in ((p, g) for p in SPLITS for g in np.unique(groups[ids[p]])):
            if seen.setdefault(group, part) != part:
                raise ValueError(
                    f"the group {group!r} of data.group={self.group} is in {seen[group]} and in {part}, as "
                    f"data.split_column={self.split_column} has it; leave one of the two settings out"
                )

    # fitting and encoding

    def fit(self, train: Rows) -> dict[str, Any]:
        with _naming(self.path):
            self.schema = schema = self._find_schema(train)
            names = _class_names(self._labels(train)) if self.target_kind == "class" else ()
            fitted = super().fit(self._table(train, schema, names))
        if self._repeats[1]:
            say(
                f"note: {self.path}: {self._repeats[1]} of {len(self._parts['test'])} test rows are also in train, which "
                "makes test metrics better than they are on new rows; data.drop_duplicates=true keeps one of each"
            )
        self._tell_of_leaks(train, schema)
        return {**fitted, "schema": schema}

    def _tell_of_leaks(self, train: Rows, schema: dict[str, Any]) -> None:
        """Columns that say the target in other words: what is known too late, or an identifier."""
        decimal = schema["decimal"]
        target = self._labels(train) if self.target_kind == "class" else self._numbers(train, decimal)
        for column in _used(schema):
            for feature in read_column(column, train.cells[column.name], decimal, train.numbers).values():
                if determines(feature, target):
                    say(
                        f"warning: {self.path}: column {column.name!r} alone tells the target {self.target!r} of every "
                        f"training row; if it is known too late for the model, {option('data.kinds.ignore', column.name)}"
                    )
                    break

    def _find_schema(self, train: Rows) -> dict[str, Any]:
        """Kinds of the columns, from the training rows alone."""
        columns, decimal = self._columns(train)
        for column in columns:
            if column.kind == "ignore" and column.name not in self.kinds:
                remedy = option("data.kinds.categorical", column.name)
                say(f"note: {self.path}: column {column.name!r} is ignored: {column.why}; {remedy} keeps it")
            self._tell_of_order(column, train.cells[column.name])
        if all(column.kind == "ignore" for column in columns):
            raise ValueError(f"no column is left besides the target {self.target!r}; is data.separator right?")
        if self.decimal is None and (example := self._decimal(train)[1]):
            other = "," if decimal == "." else "."
            number = read_numbers(as_text([example]), decimal)[0][0]
            say(f"note: {self.path}: {example} is read as {number:g}; data.decimal='{other}' reads it otherwise")
        return {"columns": [column.to_json() for column in columns], "decimal": decimal, "missing": self.missing}

    def _tell_of_order(self, column: Column, text: Any) -> None:
        other = other_order(column.format) if self.date_format is None else None
        if other and not read_dates(without(text), other)[1].any():
            first = "day" if column.format.index("%d") < column.format.index("%m") else "month"
            say(
                f"note: {self.path}: column {column.name!r} is read {first} first; data.date_format={other} if it is not so"
            )

    def _decimal(self, rows: Rows) -> tuple[str, str | None]:
        used = [name for name in rows.cells.column_names if self.kinds.get(name) != "ignore"]
        return find_decimal([rows.cells[name] for name in used], self._used_separator)

    def _columns(self, train: Rows) -> tuple[list[Column], str]:
        """The inputs with their kinds, and the decimal sign."""
        inputs = [n for n in train.cells.column_names if n not in (self.target, self.split_column, self.group)]
        used = {name: train.cells[name] for name in inputs if self.kinds.get(name) != "ignore"}
        empty = [name for name, text in used.items() if text.null_count == len(text)]
        if empty:
            raise ValueError(
                f"no value in the training rows of column {', '.join(map(repr, empty))}; leave it out with "
                f"{option('data.kinds.ignore', *empty)}"
            )
        decimal = self.decimal or self._decimal(train)[0]
        return [self._find(name, train.cells[name], decimal) for name in inputs], decimal

    def _find(self, name: str, text: Any, decimal: str) -> Column:
        if name in self.kinds:
            return given_column(name, self.kinds[name], text, self.date_format)
        return find_column(name, text, decimal, self.date_format)

    def use(self, preprocessing: dict[str, Any]) -> None:
        super().use(preprocessing)
        self.schema = preprocessing["schema"]
        if self.schema["decimal"] not in (".", ",") or not all(isinstance(name, str) for name in self.columns):
            raise ValueError("the schema is not that of a table")

    @property
    def columns(self) -> list[str]:
        return [column.name for column in _used(self.schema)]

    def encode_split(self, examples: Rows) -> Samples:
        with _naming(self.path):
            return super().encode_split(self._table(examples, self.schema, self.spec.classes))

    def _table(self, rows: Rows, schema: dict[str, Any], classes: Sequence[str]) -> Table:
        numeric, categorical = _features(rows, schema)
        if not classes:
            return Table(numeric, categorical, self._numbers(rows, schema["decimal"]), str(self.target))
        place = {name: i for i, name in enumerate(classes)}
        target = np.array([place[label] for label in self._labels(rows)], dtype=np.int64)
        return Table(numeric, categorical, target, str(self.target), tuple(classes))

    def encode(self, examples: Any) -> dict[str, Tensor]:
        """Rows as a list of column -> value, or as a pandas DataFrame, read as the file was; other columns are ignored.

        Raises ValueError where a column is absent or a value not of its kind.
        """
        if isinstance(examples, pd.DataFrame):
            examples = examples.rename(columns=lambda name: str(name).strip())
            self._check_columns([dict.fromkeys(examples.columns)])
            values = {name: examples[name] for name in self.columns}
        else:
            rows = [{str(name).strip(): value for name, value in row.items()} for row in examples]
            self._check_columns(rows)
            values = {name: [row[name] for row in rows] for name in self.columns}
        cells = pa.table({name: as_text(column, self.schema["missing"]) for name, column in values.items()})
        numeric, categorical = _features(Rows(cells, np.arange(1, len(examples) + 1)), self.schema)
        return self._inputs(numeric, categorical, len(examples))

    # the report

    def describe(self) -> dict[str, Any]:
        columns = [Column(**column) for column in self.schema["columns"]]
        cells = pa.concat_tables([rows.cells for rows in self._parts.values()])
        ignored = [f"{column.name}: ignored, {column.why}" for column in columns if column.kind == "ignore"]
        return {
            "columns": [
                {
                    "column": column.name,
                    "kind": column.kind,
                    "missing": _known(cells[column.name], column).null_count / len(cells),
                    "distinct": len(pc.unique(cells[column.name].drop_null())),
                    "values": self._said(column, cells[column.name]),
                }
                for column in columns
            ],
            "notes": [f"the target {self.target} is {self._target_words()}", *ignored, *self._notes()],
            "examples": self._parts["train"].cells.select(self._told).slice(0, N_EXAMPLES).to_pylist(),
        }

    def _said(self, column: Column, text: Any) -> str:
        if column.kind == "numeric":
            return said_values(read_numbers(without(text), self.schema["decimal"])[0].tolist())
        return said_values(text.drop_null().to_pylist())

    def _target_words(self) -> str:
        n_classes = len(self.spec.classes)
        return "a number" if not n_classes else "binary" if n_classes == 2 else f"one of {n_classes} classes"

    @property
    def _told(self) -> list[str]:
        """The columns of which the network is told, the target last."""
        return [*self.columns, str(self.target)]

    def _notes(self) -> list[str]:
        repeated, shared = self._repeats
        notes = {
            f"{self._dropped} rows without a target were left out": self._dropped,
            f"{self._dropped_duplicates} rows that repeat another one were left out": self._dropped_duplicates,
            f"{repeated} rows repeat another one": repeated,
            f"{shared} test rows are also in train": shared,
        }
        return [note for note, n in notes.items() if n]

    @cached_property
    def _repeats(self) -> tuple[int, int]:
        """Rows that are like another one, and test rows like one of train, in what the network sees and predicts.

        They stay: they may be true.
        """
        cells = pa.concat_tables(
            [
                rows.cells.select(self._told).append_column("\0part", pa.array([part] * len(rows), pa.string()))
                for part, rows in self._parts.items()
            ]
        )
        counts = {part: pc.equal(cells["\0part"], part).cast(pa.int64()) for part in ("train", "test")}
        for part, is_in in counts.items():
            cells = cells.append_column(f"\0{part}", is_in)
        same = cells.group_by(self._told).aggregate([("\0train", "sum"), ("\0test", "sum")])
        shared = pc.if_else(pc.greater(same["\0train_sum"], 0), same["\0test_sum"], 0)
        return len(cells) - len(same), pc.sum(shared).as_py()


def _name(typed: Any) -> str | None:
    """A column as it is typed: Hydra reads 2 as a number."""
    return None if typed is None else str(typed).strip()


def _known(text: Any, column: Column) -> Any:
    return text if column.kind == "categorical" else without(text)


def determines(feature: np.ndarray, target: np.ndarray) -> bool:
    """Whether one feature alone, (M,), gives the target of every row, beyond what chance and good features do.

    A name: each occurs in several rows, and they agree. A number: the classes are intervals of it, or the quantity is a
    straight line. Too few rows say nothing, nor does a class that all but a few rows have.
    """
    known = pd.notna(feature)
    feature, target = feature[known], target[known]
    if len(target) < 50 or known.mean() < 0.9 or len(np.unique(target)) < 2:
        return False
    if feature.dtype == object:
        values, places = np.unique(feature.astype(str), return_inverse=True)
        spread = pd.Series(target).groupby(places).nunique()
        return bool(5 * len(values) <= len(target) and (spread == 1).all())
    if np.ptp(feature) == 0:
        return False
    if target.dtype == object:
        order = np.argsort(feature, kind="stable")
        ranked, values = target[order], feature[order]
        borders = np.flatnonzero(ranked[1:] != ranked[:-1])
        return len(borders) == len(np.unique(target)) - 1 and bool((values[borders] < values[borders + 1]).all())
    return abs(np.corrcoef(feature, target)[0, 1]) > 0.99999


def _used(schema: dict[str, Any]) -> list[Column]:
    return [Column(**column) for column in schema["columns"] if column["kind"] != "ignore"]


def _features(rows: Rows, schema: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Numeric and categorical features, by name."""
    numeric, categorical = {}, {}
    for column in _used(schema):
        features = read_column(column, rows.cells[column.name], schema["decimal"], rows.numbers)
        (numeric if column.kind in ("numeric", "date") else categorical).update(features)
    return numeric, categorical


def _class_names(names: np.ndarray) -> tuple[str, ...]:
    """In the order of the numbers where all are numbers, else of the alphabet."""
    every = np.unique(names).tolist()
    numbers, strange = read_numbers(pa.array(every, pa.string()), ".")
    return tuple(every if strange.any() else [every[i] for i in np.argsort(numbers, kind="stable")])


def _check_every_class_trains(classes: np.ndarray, ids: dict[str, list[int]]) -> None:
    for part in SPLITS[1:]:
        unknown = sorted(set(classes[ids[part]]) - set(classes[ids["train"]]))
        if unknown:
            raise ValueError(
                f"no training row has the class {listed(map(repr, unknown))}, which is in {part}; bring such rows for "
                "training, take those rows out, or let Quartet split (without data.split_column, or another data.split_seed)"
            )


@contextmanager
def _naming(path: str | None) -> Iterator[None]:
    """Errors about the content of a file begin with its name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
