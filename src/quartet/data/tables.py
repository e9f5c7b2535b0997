"""Tables: numeric and categorical columns, a class or a number to predict.

A source inside a library is a small object with `load() -> Table`; files are read in `table_files`. Scaling, numbering
of categories and encoding for inference are the same for all of them. Where a source has no value it gives NaN in a
numeric column (infinity counts as missing too) and None in a categorical one.

Letters: M rows, N numeric columns, K categorical columns.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from quartet.data.base import DataModule
from quartet.data.memory import Samples
from quartet.data.report import class_table, histogram, said_values
from quartet.data.spec import Spec
from quartet.data.splits import SPLITS

MAX_QUANTILES = 1000  # points kept for each column of quantile scaling; more hardly change it (scikit-learn's default)
N_BINS = 64  # equal shares of the training rows between the points that a network may make bins of


@dataclass(frozen=True)
class Table:
    """Columns by name: `numeric` (M,) float64 each, `categorical` (M,) objects each, text as from `category` or None.

    `target` (M,) holds places in `classes` (int64), or numbers (float64) where there are no classes: regression. It has
    no gaps; a source drops rows without a target.
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

    def class_counts(self) -> list[int]:
        return np.bincount(self.target, minlength=len(self.classes)).tolist() if self.classes else []

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


NOT_ONE = ("column", "quantiles", "scores")  # of a fitted numeric column; all else is one number


class Tabular(DataModule):
    """Rows scaled and numbered for the network; scaling and categories come from the training part.

    `scaling` is for the numeric columns: "standard" (mean 0, standard deviation 1), "minmax" (0 … 1 in training) or
    "quantile" (to a normal distribution through the training quantiles). A missing number becomes the training mean;
    categories that are missing or were not seen in training share slot 0. A regression target is standardised.
    Subclasses say where the rows come from (`read`).
    """

    def __init__(self, *, scaling: str, **common: Any):
        super().__init__(**common)
        if scaling not in SCALINGS:
            raise ValueError(f"data.scaling must be one of {', '.join(SCALINGS)}, not {scaling!r}")
        self.scaling = scaling
        self._class_counts: dict[str, Sequence[int]] = {}

    def fit(self, train: Table) -> dict[str, Any]:
        numeric = [{"column": name, **fit_scaling(x, self.scaling)} for name, x in train.numeric.items()]
        categorical = [{"column": name, "categories": _categories(x)} for name, x in train.categorical.items()]
        sizes = {
            "n_numeric": len(numeric),
            "quantiles": [_quantile_points(scale(train.numeric[fitted["column"]], fitted)) for fitted in numeric],
            "cardinalities": [1 + len(column["categories"]) for column in categorical],
            "n_outputs": len(train.classes) or 1,
        }
        spec = Spec(sizes=sizes, **_target_facts(train))
        return {"spec": spec.to_json(), "target": train.target_name, "numeric": numeric, "categorical": categorical}

    def use(self, preprocessing: dict[str, Any]) -> None:
        self.numeric = preprocessing["numeric"]
        self.categorical = preprocessing["categorical"]
        self._slots = [{name: i for i, name in enumerate(x["categories"], start=1)} for x in self.categorical]
        sizes, values = self.spec.sizes, [v for x in self.numeric for name, v in x.items() if name not in NOT_ONE]
        curve = [number for x in self.numeric for name in ("quantiles", "scores") for number in x.get(name, [])]
        numbers = [*curve, *values]
        if not all(isinstance(number, float | int) for number in numbers) or not all(x["column"] for x in self.numeric):
            raise ValueError("the scaling of a numeric column is not made of numbers")
        if [sizes["n_numeric"], sizes["cardinalities"]] != [
            len(self.numeric),
            [1 + len(slots) for slots in self._slots],
        ]:
            raise ValueError("the columns are not as many as the sizes say")

    @property
    def columns(self) -> list[str]:
        """What a row must have."""
        return [fitted["column"] for fitted in (*self.numeric, *self.categorical)]

    def encode_split(self, examples: Table) -> Samples:
        return Samples(self._inputs(examples.numeric, examples.categorical, len(examples)), self._target(examples))

    def encode(self, examples: Any) -> dict[str, Tensor]:
        """Rows as a list of column -> value, or as a pandas DataFrame; None, NaN and "" are missing values.

        Columns are found by name, others are ignored. Raises ValueError where a row lacks a column or a number cannot be
        read.
        """
        if hasattr(examples, "to_dict"):
            examples = examples.to_dict("records")
        self._check_columns(examples)
        numeric = {x["column"]: np.array([_number(row, x["column"]) for row in examples]) for x in self.numeric}
        categorical = {x["column"]: [category(row[x["column"]]) for row in examples] for x in self.categorical}
        return self._inputs(numeric, categorical, len(examples))

    def _check_columns(self, rows: list[dict[str, Any]]) -> None:
        for i, row in enumerate(rows, start=1):
            absent = [repr(name) for name in self.columns if name not in row]
            if absent:
                raise ValueError(f"row {i} has no column {', '.join(absent)}; give an empty value where it is unknown")

    def _target(self, examples: Table) -> Tensor:
        spec = self.spec
        if spec.classes:
            return torch.from_numpy(examples.target.astype(np.int64))
        return torch.from_numpy((examples.target - spec.target_mean) / spec.target_std).float()

    def _inputs(self, numeric: dict[str, Any], categorical: dict[str, Any], n_rows: int) -> dict[str, Tensor]:
        numbers = np.zeros((n_rows, len(self.numeric)), dtype=np.float32)
        slots = np.zeros((n_rows, len(self.categorical)), dtype=np.int64)
        for j, fitted in enumerate(self.numeric):
            numbers[:, j] = scale(numeric[fitted["column"]], fitted)
        for j, fitted in enumerate(self.categorical):
            slots[:, j] = [self._slots[j].get(value, 0) for value in categorical[fitted["column"]]]
        return {"numeric": torch.from_numpy(numbers), "categorical": torch.from_numpy(slots)}

    def report(self) -> dict[str, Any]:
        """In the shape of `quartet.data.report`."""
        spec = self.spec
        report: dict[str, Any] = {"parts": {part: {"samples": len(ids)} for part, ids in self.ids.items()}}
        if spec.classes:
            report["classes"] = class_table(spec.classes, self._class_counts)
        else:
            datasets: dict[str, Any] = self.datasets
            targets = {part: datasets[part].target.cpu() * spec.target_std + spec.target_mean for part in SPLITS}
            report["histograms"] = {self.preprocessing()["target"]: histogram(targets)}
        return {**report, **self.describe()}

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the report says of columns (of all parts), notes and examples."""


class TableData(Tabular):
    """Rows of a source inside a library, split by class where there are classes."""

    def __init__(self, *, source: TableSource, **common: Any):
        super().__init__(**common)
        self.source = source

    def read(self) -> tuple[dict[str, Table], str]:
        table = self.source.load()
        labels = table.target if table.classes else None
        self.ids = self.split.assign(len(table), labels=labels)
        parts = {part: table.take(ids) for part, ids in self.ids.items()}
        self._class_counts = {part: x.class_counts() for part, x in parts.items()}
        self._table = table
        return parts, table.fingerprint()

    def describe(self) -> dict[str, Any]:
        kinds = {"numeric": self._table.numeric, "categorical": self._table.categorical}
        return {
            "columns": [
                {
                    "column": name,
                    "kind": kind,
                    "missing": sum(x is None or x != x for x in values.tolist()) / len(values),
                    "distinct": len({x for x in values.tolist() if x is not None and x == x}),
                    "values": said_values(values.tolist()),
                }
                for kind, columns in kinds.items()
                for name, values in columns.items()
            ],
            "notes": [],
        }


def _target_facts(train: Table) -> dict[str, Any]:
    if train.classes:
        return {"classes": train.classes, "class_counts": tuple(train.class_counts())}
    mean, std = _standard(train.target)
    return {"target_mean": mean, "target_std": std}


def _categories(values: np.ndarray) -> list[str]:
    return sorted({value for value in values if value is not None})


def category(value: Any) -> str | None:
    """The name of a category: 1, 1.0 and "1" are the same one; None where it is missing (None, NaN, "")."""
    if value is None or value == "" or value != value:
        return None
    is_whole = isinstance(value, (float, np.floating)) and math.isfinite(value) and value == int(value)
    return str(int(value)) if is_whole else str(value)


def _number(row: dict[str, Any], column: str) -> float:
    value = row[column]
    if value is None or value == "":
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"column {column!r} must be a number, not {value!r}") from None


# scaling: plain values fitted on the training part, applied by `scale`


def _standard(known: np.ndarray) -> tuple[float, float]:
    return float(known.mean()), float(known.std()) if np.ptp(known) > 0 else 1.0


def _minmax(known: np.ndarray) -> tuple[float, float]:
    return float(known.min()), float(np.ptp(known)) or 1.0


def _quantile(known: np.ndarray) -> tuple[list[float], list[float]]:
    """Training quantiles and the normal scores of their ranks; equal quantiles are one point at their mean rank."""
    n = min(MAX_QUANTILES, len(known))
    values, counts = np.unique(np.quantile(known, (np.arange(n) + 0.5) / n, method="inverted_cdf"), return_counts=True)
    ranks = (np.cumsum(counts) - counts / 2) / n  # in (0, 1)
    return values.tolist(), [NormalDist().inv_cdf(rank) for rank in ranks.tolist()]


SCALINGS = {
    "standard": (_standard, ("offset", "width")),
    "minmax": (_minmax, ("offset", "width")),
    "quantile": (_quantile, ("quantiles", "scores")),
}


def _quantile_points(scaled: np.ndarray) -> list[float]:
    """Where each 64th of the training rows ends, from the smallest to the largest scaled value."""
    return np.quantile(scaled, np.linspace(0, 1, N_BINS + 1)).tolist()


def fit_scaling(values: np.ndarray, scaling: str) -> dict[str, Any]:
    """Plain values for `scale`; `missing` is what stands in for a missing number, in the column's own unit."""
    known = values[np.isfinite(values)]
    known = known if len(known) else np.zeros(1)
    fit, names = SCALINGS[scaling]
    return {"missing": float(known.mean()), **dict(zip(names, fit(known), strict=True))}


def scale(values: np.ndarray, fitted: dict[str, Any]) -> np.ndarray:
    """Numbers (M,) with missing ones to scaled numbers without."""
    known = np.where(np.isfinite(values), values, fitted["missing"])
    if "quantiles" in fitted:
        return np.interp(known, fitted["quantiles"], fitted["scores"])
    return (known - fitted["offset"]) / fitted["width"]
