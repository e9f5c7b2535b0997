"""Tables: numeric and categorical columns, a class or a number to predict; here those inside a library.

Scaling, numbering of categories and encoding for inference are the same for the user's file (`own_table.py`). A numeric
column has NaN for a missing value (infinity counts as missing too), a categorical one None.

Letters: M rows, N numeric columns, K categorical columns.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from quartet.data.base import DataModule
from quartet.data.csv_text import Format
from quartet.data.examples import Examples, read_records_in_blocks
from quartet.data.memory import Samples
from quartet.data.records import Records, read_records
from quartet.data.report import class_table, histogram, said_values
from quartet.data.spec import Spec
from quartet.data.splits import SPLITS, listed
from quartet.data.table.columns import Column, Where, as_text, category, labels, read_column, read_numbers, without
from quartet.say import say

SCALINGS = ("standard", "minmax", "quantile")
MAX_QUANTILES = 1000  # points kept for each column of quantile scaling; more hardly change it (scikit-learn's default)
N_BINS = 64  # equal shares of the training rows between the points that a network may make bins of
NOT_ONE = ("column", "quantiles", "scores")  # of a fitted numeric column; all else is one number


@dataclass(frozen=True)
class Table:
    """Columns by name: `numeric` (M,) float64 each, `categorical` (M,) objects each, text as from `category` or None.

    `target` (M,) holds places in `classes` (int64), or numbers (float64) if there are no classes: regression. It has no
    gaps; a source drops rows without a target.
    """

    numeric: dict[str, np.ndarray]
    categorical: dict[str, np.ndarray]
    target: np.ndarray
    target_name: str
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.target)

    def take(self, ids: Sequence[int]) -> Table:
        rows = np.asarray(ids, dtype=np.int64)
        numeric = {name: x[rows] for name, x in self.numeric.items()}
        categorical = {name: x[rows] for name, x in self.categorical.items()}
        return Table(numeric, categorical, self.target[rows], self.target_name, self.classes)

    def fingerprint(self) -> str:
        names = (list(self.numeric), list(self.categorical), self.target_name, self.classes)
        digest = hashlib.sha256(json.dumps(names).encode())
        for values in (*self.numeric.values(), self.target):
            digest.update(values.astype("<f8").tobytes())
        for values in self.categorical.values():
            digest.update(json.dumps(values.tolist()).encode())
        return digest.hexdigest()


class TableSource(Protocol):
    def load(self) -> Table: ...


@dataclass(frozen=True)
class EmbeddedTable:
    """A table inside scikit-learn, in raw units: breast_cancer (2 classes), wine (3 classes), diabetes (regression)."""

    name: str

    def load(self) -> Table:
        from sklearn import datasets

        loaders: dict[str, Callable[[], Any]] = {
            "breast_cancer": datasets.load_breast_cancer,
            "wine": datasets.load_wine,
            "diabetes": lambda: datasets.load_diabetes(scaled=False),
        }
        if self.name not in loaders:
            raise ValueError(f"data.source.name must be one of {', '.join(loaders)}, not {self.name!r}")
        table = loaders[self.name]()
        columns = dict(zip(map(str, table.feature_names), table.data.T, strict=True))
        codes = {"sex": columns.pop("sex")} if self.name == "diabetes" else {}  # 1 or 2: a code, not a quantity
        categorical = {name: np.array([category(x) for x in values], dtype=object) for name, values in codes.items()}
        classes = tuple(map(str, table.get("target_names", ())))
        return Table(columns, categorical, table.target, "progression" if codes else "class", classes)


def fit_scaling(values: np.ndarray, scaling: str) -> dict[str, Any]:
    """Plain values for `scale`; `missing` replaces a missing number, in the column's own unit."""
    known = values[np.isfinite(values)]
    known = known if len(known) else np.zeros(1)
    fitted = {"missing": float(known.mean())}
    if scaling == "standard":
        # the standard deviation of a constant is not always 0 in floating point
        return fitted | {"offset": float(known.mean()), "width": float(known.std()) if np.ptp(known) > 0 else 1.0}
    if scaling == "minmax":
        return fitted | {"offset": float(known.min()), "width": float(np.ptp(known)) or 1.0}
    # training quantiles and the normal scores of their ranks; equal quantiles are one point at their mean rank
    n = min(MAX_QUANTILES, len(known))
    points, counts = np.unique(np.quantile(known, (np.arange(n) + 0.5) / n, method="inverted_cdf"), return_counts=True)
    ranks = (np.cumsum(counts) - counts / 2) / n  # in (0, 1)
    return fitted | {"quantiles": points.tolist(), "scores": [NormalDist().inv_cdf(rank) for rank in ranks.tolist()]}


def scale(values: np.ndarray, fitted: dict[str, Any]) -> np.ndarray:
    """Numbers (M,) with missing ones to scaled numbers without."""
    known = np.where(np.isfinite(values), values, fitted["missing"])
    if "quantiles" in fitted:
        return np.interp(known, fitted["quantiles"], fitted["scores"])
    return (known - fitted["offset"]) / fitted["width"]


class Tabular(DataModule):
    """Rows scaled and numbered for the network; scaling and categories come from the training part.

    `scaling` is for the numeric columns: "standard" (mean 0, standard deviation 1), "minmax" (0 … 1 in training) or
    "quantile" (to a normal distribution through the training quantiles). A missing number becomes the training mean;
    categories that are missing or were not seen in training share slot 0. A regression target is standardised.
    Subclasses say where the rows come from (`read`).
    """

    inference_batch_size = 4096  # a row takes little memory, and small batches are mostly overhead

    def __init__(self, *, scaling: str, **common: Any):
        super().__init__(**common)
        if scaling not in SCALINGS:
            raise ValueError(f"data.scaling must be one of {', '.join(SCALINGS)}, not {scaling!r}")
        self.scaling, self.drop_missing_target = scaling, False
        self.new_rows: Any = None  # the records of `new_records`
        self.format = Format()  # how rows that are brought later are read

    def fit(self, train: Table) -> dict[str, Any]:
        numeric = [{"column": name, **fit_scaling(x, self.scaling)} for name, x in train.numeric.items()]
        categorical = [
            {"column": name, "categories": sorted({value for value in x if value is not None})}
            for name, x in train.categorical.items()
        ]
        scaled = [scale(train.numeric[fitted["column"]], fitted) for fitted in numeric]
        sizes = {
            "n_numeric": len(numeric),
            # where each 64th of the training rows ends, from the smallest to the largest scaled value
            "quantiles": [np.quantile(x, np.linspace(0, 1, N_BINS + 1)).tolist() for x in scaled],
            "cardinalities": [1 + len(column["categories"]) for column in categorical],
            "n_outputs": len(train.classes) or 1,
        }
        # a regression target is standardised like a column
        if train.classes:
            counts = np.bincount(train.target, minlength=len(train.classes)).tolist()
            spec = Spec(sizes=sizes, classes=train.classes, class_counts=tuple(counts))
        else:
            moments = fit_scaling(train.target, "standard")
            spec = Spec(sizes=sizes, target_mean=moments["offset"], target_std=moments["width"])
        return {"spec": spec.to_json(), "target": train.target_name, "numeric": numeric, "categorical": categorical}

    def use(self, preprocessing: dict[str, Any]) -> None:
        self.numeric = preprocessing["numeric"]
        self.categorical = preprocessing["categorical"]
        self._places = [pd.Index(x["categories"], dtype=object) for x in self.categorical]
        # preprocessing may come from a damaged file
        values = [v for x in self.numeric for name, v in x.items() if name not in NOT_ONE]
        curve = [number for x in self.numeric for name in ("quantiles", "scores") for number in x.get(name, [])]
        if not all(isinstance(v, float | int) for v in (*curve, *values)) or not all(x["column"] for x in self.numeric):
            raise ValueError("the scaling of a numeric column is not made of numbers")
        # rows that are brought later are read by these columns; a table inside a library has no schema of its own
        kinds = {"numeric": self.numeric, "categorical": self.categorical}
        columns = [{"name": x["column"], "kind": kind} for kind, found in kinds.items() for x in found]
        self.schema = preprocessing.get("schema", {"columns": columns, "decimal": ".", "missing": []})
        if self.schema["decimal"] not in (".", ",") or not all(isinstance(name, str) for name in self.columns):
            raise ValueError("the schema is not that of a table")
        sizes = self.spec.sizes
        cardinalities = [1 + len(names) for names in self._places]
        if [sizes["n_numeric"], sizes["cardinalities"]] != [len(self.numeric), cardinalities]:
            raise ValueError("the columns are not as many as the sizes say")

    @property
    def inputs(self) -> list[Column]:
        return [Column(**column) for column in self.schema["columns"] if column["kind"] != "ignore"]

    @property
    def known(self) -> list[str]:
        """The columns of the training data, and the target."""
        return [*(column["name"] for column in self.schema["columns"]), self.preprocessing()["target"]]

    @property
    def columns(self) -> list[str]:
        """What a row must have."""
        return [column.name for column in self.inputs]

    def encode_split(self, examples: Table) -> Samples:
        target, spec = torch.from_numpy(examples.target), self.spec
        target = target.long() if spec.classes else ((target - spec.target_mean) / spec.target_std).float()
        return Samples(self._inputs(examples.numeric, examples.categorical, len(examples)), target)

    def encode(self, examples: Any) -> dict[str, Tensor]:
        """Rows as the file was read (`Records`), a list of column -> value, or a DataFrame; None, NaN and "" are missing.

        Columns are found by name, others are ignored. Raises ValueError for an absent column and for a value that is not
        of its column's kind; categories may be new.
        """
        if isinstance(examples, pd.DataFrame):
            examples = examples.rename(columns=lambda name: str(name).strip())
            self._check_columns([dict.fromkeys(examples.columns)])
            values = {name: examples[name] for name in self.columns}
        elif isinstance(examples, Records):
            self._check_columns([dict.fromkeys(examples.columns)])
            values = {name: examples.cells[name] for name in self.columns}
        else:
            rows = [{str(name).strip(): value for name, value in row.items()} for row in examples]
            self._check_columns(rows)
            values = {name: [row[name] for row in rows] for name in self.columns}
        where = examples.where if isinstance(examples, Records) else lambda places: f"row {places[0] + 1}"
        cells = {name: as_text(column, self.schema["missing"]) for name, column in values.items()}
        return self._inputs(*self.features(cells, where), len(examples))

    def examples(self, source: str) -> Iterator[Examples]:
        """Rows of a file; columns may stand in any order, and those that are not needed are ignored."""
        target = self.preprocessing()["target"]
        for i, records in enumerate(read_records_in_blocks(source, self.format)):
            if i == 0:
                absent, unknown = (
                    {*a} - {*b} for a, b in ((self.columns, records.columns), (records.columns, self.known))
                )
                if absent:
                    raise ValueError(
                        f"{source}: no column {listed(map(repr, sorted(absent)))}, which the run was trained on; add it, "
                        f"empty where it is unknown (there are {listed(map(repr, records.columns), 8)})"
                    )
                if unknown:
                    say(f"note: {source}: ignored, unknown to the run: {listed(map(repr, sorted(unknown)), 8)}")
            cells = as_text(records.cells[target], self.schema["missing"]) if target in records.columns else None
            yield Examples("row", records.numbers, records, None if cells is None else labels(cells).tolist())

    def targets(self, labels: Sequence[str | None]) -> np.ndarray:
        """As in training; of a regression the numbers (N,), NaN if there is none."""
        if self.spec.classes:
            return super().targets(labels)
        return read_numbers(without(as_text(labels)), self.schema["decimal"])[0]

    def new_records(self, path: str) -> Records:
        """Rows of another file, with every column of the run and a target that it knows; ValueError otherwise."""
        rows, target = read_records(path, self.format), self.preprocessing()["target"]
        for name in (*self.columns, target):
            rows.column(name, "the run")
        rows = replace(rows, cells=pa.table({c: as_text(rows.cells[c], self.schema["missing"]) for c in rows.columns}))
        if self.drop_missing_target:
            rows = rows.take(np.flatnonzero(np.asarray(rows.cells[target].is_valid())))
        places = self.targets(labels(rows.cells[target]).tolist())
        unknown = np.flatnonzero(places < 0 if self.spec.classes else np.isnan(places))
        if len(unknown):
            shown = listed(dict.fromkeys(repr(rows.cells[target][int(i)].as_py()) for i in unknown))
            what = f"one of the classes {listed(self.spec.classes, 8)}" if self.spec.classes else "a number"
            raise ValueError(
                f"{path}: the target {target!r} must be {what}, but {rows.where(unknown)} has {shown}; correct or "
                "remove these rows"
            )
        self.ids["test"], self.new_rows = (rows.numbers - 1).tolist(), rows
        return rows

    def raw_columns(self, part: str) -> dict[str, Any]:
        """The columns of a part as they were read, (N,) each."""
        return {name: self.new_rows.cells[name] for name in self.new_rows.columns}

    def slice_columns(self, part: str, names: list[str]) -> dict[str, np.ndarray]:
        columns = self.raw_columns(part)
        absent = [name for name in names if name not in columns]
        if absent:
            raise ValueError(
                f"slices: no column {listed(map(repr, absent))}; the columns are {listed(map(repr, columns), 20)}"
            )
        return {name: np.array(columns[name].to_pylist(), dtype=object) for name in names}

    def describe_samples(self, part: str, places: Sequence[int]) -> list[str]:
        return [f"row {self.ids[part][i] + 1}" for i in places]

    def features(self, cells: Any, where: Where) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Numeric and categorical features (M,) by name, from the texts (M,) of each input column."""
        numeric, categorical = {}, {}
        for column in self.inputs:
            found = read_column(column, cells[column.name], self.schema["decimal"], where)
            (numeric if column.kind in ("numeric", "date") else categorical).update(found)
        return numeric, categorical

    def _check_columns(self, rows: list[dict[str, Any]]) -> None:
        for i, row in enumerate(rows, start=1):
            absent = [repr(name) for name in self.columns if name not in row]
            if absent:
                raise ValueError(f"row {i} has no column {', '.join(absent)}; give an empty value if it is unknown")

    def _inputs(self, numeric: dict[str, Any], categorical: dict[str, Any], n_rows: int) -> dict[str, Tensor]:
        numbers = np.zeros((n_rows, len(self.numeric)), dtype=np.float32)
        slots = np.zeros((n_rows, len(self.categorical)), dtype=np.int64)
        for j, fitted in enumerate(self.numeric):
            numbers[:, j] = scale(numeric[fitted["column"]], fitted)
        for j, fitted in enumerate(self.categorical):
            # -1 for what training has not seen, and for None: slot 0
            values = pd.Index(categorical[fitted["column"]], dtype=object)  # else pandas looks for a better type
            slots[:, j] = 1 + self._places[j].get_indexer(values)
        return {"numeric": torch.from_numpy(numbers), "categorical": torch.from_numpy(slots)}

    def report(self) -> dict[str, Any]:
        """In the shape of `quartet.data.report`."""
        spec, datasets = self.spec, self.datasets
        targets: dict[str, Tensor] = {part: datasets[part].target.cpu() for part in SPLITS}  # type: ignore[attr-defined]
        report: dict[str, Any] = {"parts": {part: {"samples": len(ids)} for part, ids in self.ids.items()}}
        if n := len(spec.classes):
            counts: Any = {part: torch.bincount(x, minlength=n).tolist() for part, x in targets.items()}
            report["classes"] = class_table(spec.classes, counts)
        else:
            numbers = {part: x * spec.target_std + spec.target_mean for part, x in targets.items()}
            report["histograms"] = {self.preprocessing()["target"]: histogram(numbers)}
        return {**report, **self.describe()}

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Columns (of all parts), notes and examples for the report."""


class TableData(Tabular):
    """Rows of a source inside a library, split by class if there are classes."""

    def __init__(self, *, source: TableSource, **common: Any):
        super().__init__(**common)
        self.source = source

    def read(self) -> tuple[dict[str, Table], str]:
        self._table = table = self.source.load()
        self.ids = self.split.assign(len(table), labels=table.target if table.classes else None)
        return {part: table.take(ids) for part, ids in self.ids.items()}, table.fingerprint()

    def read_new(self, path: str) -> Table:
        rows = self.new_records(path)
        numeric, categorical = self.features(rows.cells, rows.where)
        target = self.preprocessing()["target"]
        places = self.targets(labels(rows.cells[target]).tolist())
        return Table(numeric, categorical, places, target, self.spec.classes)

    def raw_columns(self, part: str) -> dict[str, Any]:
        if self.new_rows is not None:
            return super().raw_columns(part)
        columns, rows = {**self._table.numeric, **self._table.categorical}, self.ids[part]
        return {name: pa.array(values[rows], from_pandas=True) for name, values in columns.items()}

    def describe(self) -> dict[str, Any]:
        kinds = {"numeric": self._table.numeric, "categorical": self._table.categorical}
        return {
            "columns": [
                {
                    "column": name,
                    "kind": kind,
                    "missing": float(pd.isna(values).mean()),
                    "distinct": len(pd.unique(values[pd.notna(values)])),
                    "values": said_values(values.tolist()),
                }
                for kind, columns in kinds.items()
                for name, values in columns.items()
            ],
            "notes": [],
        }
