"""The user's own table: columns sorted by kind, a class or a quantity to predict.

Letters: M rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from quartet.data.memory import Samples
from quartet.data.records import Format, Records, pc, read_records
from quartet.data.report import said_values
from quartet.data.splits import check_classes, check_groups, listed, parts_from_column
from quartet.data.table.columns import (
    KINDS,
    MISSING,
    Column,
    as_text,
    find_column,
    find_decimal,
    labels,
    option,
    other_order,
    read_dates,
    read_numbers,
    without,
)
from quartet.data.table.tabular import Table, Tabular
from quartet.say import say

N_EXAMPLES = 8  # training rows in the report
MANY_NUMBERS = 20  # distinct whole numbers in a target; more are a quantity


class TableFile(Tabular):
    """Rows of `path`, of which the column `target` is predicted from the others.

    `target_kind` is "class" or "number", as the task has it. `kinds` lists the columns whose kind is not the one found
    (`columns.py` has the rules). `split_column` names the part of each row (a folder has a file for each part instead);
    rows with the same value of the column `group` stay in one part; neither is an input of the network.

    Raises ValueError or OSError, one line with file and remedy, for data that cannot be learnt from.
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
        self.path, self.target_kind, self.drop_missing_target = path, target_kind, drop_missing_target
        # a column as it is typed: Hydra reads 2 as a number
        columns = [None if typed is None else str(typed).strip() for typed in (target, split_column, group)]
        self.target, self.split_column, self.group = columns
        self.kinds = {str(name).strip(): kind for kind, names in kinds.items() for name in names}
        self.drop_duplicates, self.decimal, self.date_format = drop_duplicates, decimal, date_format
        self.missing = list(map(str, missing))
        self.format = Format(separator, encoding, header, named=frozenset({*filter(None, columns), *self.kinds}))
        self._parts: dict[str, Records] = {}
        self._notes: dict[str, int] = {}  # sentence of the report -> number of rows; 0: it is left out

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

    def read(self) -> tuple[dict[str, Records], str]:
        rows = read_records(self.path, self.format)
        self._separator = rows.separator
        with _naming(self.path):
            # 1. the columns that the settings name
            if self.target is None:
                raise ValueError(f"say which column to predict: data.target=<one of {listed(rows.columns, most=30)}>")
            special = {"data.target": self.target, "data.split_column": self.split_column, "data.group": self.group}
            for key, name in (*special.items(), *(("data.kinds", name) for name in self.kinds)):
                if name is not None:
                    rows.column(name, key)
            if self.split_column is not None and rows.parts is not None:
                raise ValueError(f"it has a file for each part; leave out data.split_column={self.split_column}")
            for name in special.values():
                kind = self.kinds.get(str(name))
                if kind is not None and (name, kind) != (self.target, "categorical"):
                    raise ValueError(
                        f"data.kinds.{kind} names {name!r}, which is not an input: data.kinds is for inputs, "
                        "or data.kinds.categorical for a target of numbers that are classes"
                    )
            # 2. cells without the words for "no value", rows with a target
            cells = pa.table({name: as_text(rows.cells[name], self.missing) for name in rows.columns})
            rows = self._with_target(replace(rows, cells=cells))
            # 3. the first of the rows that are equal in the target and all inputs
            if self.drop_duplicates:
                used = [column.name for column in self._columns(rows)[0] if column.kind != "ignore"]
                first = ~rows.cells.select([*used, self.target]).to_pandas().duplicated().to_numpy()
                self._notes["rows that repeat another one were left out"] = int((~first).sum())
                rows = rows.take(np.flatnonzero(first))
            self.ids = self._split(rows)
        self._parts = {part: rows.take(ids) for part, ids in self.ids.items()}
        return self._parts, rows.fingerprint

    def _with_target(self, rows: Records) -> Records:
        """The rows that have a target, checked: classes that are not a quantity, or numbers."""
        target = rows.cells[self.target]
        is_class = self.target_kind == "class"
        if not is_class:
            target = without(target)
        elif words := pc.unique(target.filter(pc.is_in(target, pa.array(MISSING, pa.string())))).to_pylist():
            # a class may be called None or NA; who means that there is no value has to say so
            say(
                f"note: {self.path}: {listed(map(repr, words))} of the target {self.target!r} is a class like any other; "
                f"{option('data.missing', *words)} data.drop_missing_target=true if it means no value"
            )
        # 1. rows without a target
        known = np.asarray(target.is_valid())
        n_missing = int((~known).sum())
        if not known.any():
            raise ValueError(
                f"no row has a target: column {self.target!r} is empty; fill it, or name another data.target"
            )
        if n_missing and not self.drop_missing_target:
            raise ValueError(
                f"no target {self.target!r} in {n_missing} of {len(rows)} rows ({rows.where(np.flatnonzero(~known))}); "
                "data.drop_missing_target=true leaves them out"
            )
        self._notes["rows without a target were left out"] = n_missing
        rows = rows.take(np.flatnonzero(known))
        # 2. the values
        if not is_class:
            self._numbers(rows, self.decimal or find_decimal([target], self._separator)[0])
            return rows
        numbers, strange = read_numbers(rows.cells[self.target], self.decimal or ".")
        distinct = np.unique(numbers[~strange])
        many = len(distinct) > MANY_NUMBERS or (distinct != np.floor(distinct)).any()
        if not strange.any() and many and self.kinds.get(str(self.target)) != "categorical":
            raise ValueError(
                f"the target {self.target!r} looks like a quantity ({len(distinct)} different numbers): add "
                f"task=regression, or {option('data.kinds.categorical', self.target)} if they are classes"
            )
        check_classes(
            labels(rows.cells[self.target]).tolist(), f"{self.path}: column {self.target!r}", where=rows.where
        )
        return rows

    def _numbers(self, rows: Records, decimal: str) -> np.ndarray:
        """The target (M,) of a regression."""
        text = without(rows.cells[self.target])
        numbers, strange = read_numbers(text, decimal)
        if strange.all():
            raise ValueError(
                f"task=regression needs numbers, but the target {self.target!r} has text such as {text[0].as_py()!r}; "
                "task=classification predicts classes"
            )
        if strange.any():
            stray = text.filter(pa.array(strange))[0].as_py()
            raise ValueError(
                f"the target {self.target!r} has {stray!r} in {rows.where(np.flatnonzero(strange))}, not a number; "
                f"correct it, or add {option('data.missing', stray)} and data.drop_missing_target=true"
            )
        if np.isinf(numbers).any():
            raise ValueError(
                f"the target {self.target!r} is infinite in {rows.where(np.flatnonzero(np.isinf(numbers)))}; correct it, "
                "or leave it empty and add data.drop_missing_target=true"
            )
        return numbers

    def _split(self, rows: Records) -> dict[str, list[int]]:
        # 1. classes, groups and official parts
        classes = labels(rows.cells[self.target]).tolist() if self.target_kind == "class" else None
        groups, given = None, rows.parts
        if self.group is not None:
            text = rows.cells[self.group]
            if text.null_count:
                empty = np.flatnonzero(~np.asarray(text.is_valid()))
                raise ValueError(
                    f"data.group={self.group} is empty in {rows.where(empty)}; every row must belong to a group"
                )
            groups = labels(text).tolist()
        if self.split_column is not None:
            given = parts_from_column(rows.cells[self.split_column].to_pylist(), str(self.path), where=rows.where)
        # 2. the split; official parts may separate a group, or keep a class from train
        ids = self.split.assign(len(rows), labels=classes, groups=groups, given=given)
        if groups is not None:
            check_groups(groups, ids, str(self.path), where=rows.where)
        if classes is not None:
            check_classes(classes, str(self.path), parts=ids, where=rows.where)
        return ids

    # fitting and encoding

    def fit(self, train: Records) -> dict[str, Any]:
        with _naming(self.path):
            # 1. kinds of the columns, names of the classes, scaling
            self.schema = self._find_schema(train)
            classes: tuple[str, ...] = ()
            if self.target_kind == "class":  # in the order of the numbers if all are numbers, else of the alphabet
                names = np.unique(labels(train.cells[self.target]))
                numbers, strange = read_numbers(pa.array(names.tolist(), pa.string()), ".")
                classes = tuple((names if strange.any() else names[np.argsort(numbers, kind="stable")]).tolist())
            table = self._table(train, classes)
            fitted = super().fit(table)
        # 2. rows that are like another one in what the network sees and predicts stay, for they may be true
        used = [column.name for column in self.inputs] + [str(self.target)]
        frame = pa.concat_tables([rows.cells.select(used) for rows in self._parts.values()]).to_pandas()
        keys = frame.groupby(used, dropna=False, sort=False).ngroup().to_numpy()
        part = np.repeat(list(self._parts), [len(rows) for rows in self._parts.values()])
        n_shared = int(np.isin(keys[part == "test"], keys[part == "train"]).sum())
        self._notes["rows repeat another one"] = len(keys) - len(np.unique(keys))
        self._notes["test rows are also in train"] = n_shared
        if n_shared:
            say(
                f"note: {self.path}: {n_shared} of {len(self._parts['test'])} test rows are also in train, which makes "
                "test metrics better than they are on new rows; data.drop_duplicates=true keeps one of each"
            )
        # 3. columns that say the target in other words: known too late, or an identifier
        target = np.array(classes, dtype=object)[table.target] if classes else table.target
        for column in self.inputs:
            names = [f"{column.name}.{feature}" for feature in column.features] or [column.name]
            own = [(table.categorical | table.numeric)[name] for name in names]
            if any(determines(feature, target) for feature in own):
                say(
                    f"warning: {self.path}: column {column.name!r} alone tells the target {self.target!r} of every "
                    f"training row; if it is known too late for the model, {option('data.kinds.ignore', column.name)}"
                )
        return {**fitted, "schema": self.schema}

    def _find_schema(self, train: Records) -> dict[str, Any]:
        """Kinds of the columns, from the training rows alone."""
        columns, decimal, example = self._columns(train)
        for column in columns:
            if column.kind == "ignore" and column.name not in self.kinds:
                remedy = option("data.kinds.categorical", column.name)
                say(f"note: {self.path}: column {column.name!r} is ignored: {column.why}; {remedy} keeps it")
            other = other_order(column.format) if self.date_format is None else None
            if other and not read_dates(without(train.cells[column.name]), other)[1].any():
                first = "day" if column.format.index("%d") < column.format.index("%m") else "month"
                say(
                    f"note: {self.path}: column {column.name!r} is read {first} first; data.date_format={other} if it is "
                    "not so"
                )
        if all(column.kind == "ignore" for column in columns):
            raise ValueError(f"no column is left besides the target {self.target!r}; is data.separator right?")
        if example is not None:
            other, number = "," if decimal == "." else ".", read_numbers(as_text([example]), decimal)[0][0]
            say(f"note: {self.path}: {example} is read as {number:g}; data.decimal='{other}' reads it otherwise")
        return {"columns": [column.to_json() for column in columns], "decimal": decimal, "missing": self.missing}

    def _columns(self, train: Records) -> tuple[list[Column], str, str | None]:
        """The inputs with their kinds, the decimal sign, and a number that the other sign would read too."""
        # a column without any value in train has no kind
        texts = {name: train.cells[name] for name in train.columns if self.kinds.get(name) != "ignore"}
        special = (self.target, self.split_column, self.group)
        empty = [name for name, text in texts.items() if text.null_count == len(text) and name not in special]
        if empty:
            raise ValueError(
                f"no value in the training rows of column {', '.join(map(repr, empty))}; leave it out with "
                f"{option('data.kinds.ignore', *empty)}"
            )
        # one decimal sign for the whole table: files do not mix them
        decimal, example = (self.decimal, None) if self.decimal else find_decimal(texts.values(), self._separator)
        columns = [
            find_column(name, train.cells[name], decimal, self.date_format, self.kinds.get(name))
            for name in train.columns
            if name not in special
        ]
        return columns, decimal, example

    def read_new(self, path: str) -> Records:
        return self.new_records(path)

    def encode_split(self, examples: Records) -> Samples:
        with _naming(examples.path):
            return super().encode_split(self._table(examples, self.spec.classes))

    def _table(self, rows: Records, classes: Sequence[str]) -> Table:
        numeric, categorical = self.features(rows.cells, rows.where)
        if not classes:
            return Table(numeric, categorical, self._numbers(rows, self.schema["decimal"]), str(self.target))
        place = {name: i for i, name in enumerate(classes)}
        target = np.array([place[label] for label in labels(rows.cells[self.target])], dtype=np.int64)
        return Table(numeric, categorical, target, str(self.target), tuple(classes))

    def raw_columns(self, part: str) -> dict[str, Any]:
        rows = self._parts[part] if self.new_rows is None else self.new_rows
        return {name: rows.cells[name] for name in rows.columns}

    def describe(self) -> dict[str, Any]:
        columns = [Column(**column) for column in self.schema["columns"]]
        cells = pa.concat_tables([rows.cells for rows in self._parts.values()])
        shown = []
        for column in columns:
            text = cells[column.name]
            known = (text if column.kind == "categorical" else without(text)).drop_null()
            numbers = read_numbers(known, self.schema["decimal"])[0].tolist() if column.kind == "numeric" else None
            shown.append({
                "column": column.name,
                "kind": column.kind,
                "missing": (len(text) - len(known)) / len(text),
                "distinct": len(pc.unique(text.drop_null())),
                "values": said_values(text.drop_null().to_pylist() if numbers is None else numbers),
            })  # fmt: skip
        n_classes = len(self.spec.classes)
        target = "a number" if not n_classes else "binary" if n_classes == 2 else f"one of {n_classes} classes"
        ignored = [f"{column.name}: ignored, {column.why}" for column in columns if column.kind == "ignore"]
        notes = [f"{n} {note}" for note, n in self._notes.items() if n]
        return {
            "columns": shown,
            "notes": [f"the target {self.target} is {target}", *ignored, *notes],
            "examples": self._parts["train"].cells.select([*self.columns, str(self.target)])[:N_EXAMPLES].to_pylist(),
        }


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


@contextmanager
def _naming(path: str | None) -> Iterator[None]:
    """Errors about the content of a file begin with its name."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(path)) else f"{path}: {text}") from None
