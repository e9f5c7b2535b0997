"""metrics.csv: every logged value, one row for each time something was logged, continued if a run is resumed."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from quartet.files import read_metrics


class MetricsFile(Logger):
    """Rows of `step` and the values logged together; a new name adds a column.

    Lightning's CSVLogger deletes the file of a resumed run. This one keeps it, without the rows that the interrupted
    process wrote after its last checkpoint.
    """

    name = version = ""  # type: ignore[assignment]

    def __init__(self, *, save_dir: str):
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self._columns: list[str] = []
        self._held: list[dict[str, Any]] = []  # until `save`: opening the file takes longer than a small step

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: a run has its `config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._held.append({"step": step, **{name: float(value) for name, value in metrics.items()}})

    @rank_zero_only
    def save(self) -> None:
        if not self._held:
            return
        rows, self._held = self._held, []
        # a new name needs a new header, and so does the first row
        names = set().union(*rows)
        if not names <= set(self._columns):
            self._rewrite(read_metrics(self.path), {*self._columns, *names})
        with self.path.open("a", newline="", encoding="utf-8", errors="backslashreplace") as file:
            csv.DictWriter(file, self._columns).writerows(rows)

    def finalize(self, status: str) -> None:
        self.save()

    @rank_zero_only
    def truncate_from(self, step: int) -> None:
        """Forget what was logged at this step and after it."""
        if self.path.is_file():
            rows = read_metrics(self.path)
            self._rewrite([row for row in rows if int(row["step"]) < step], {*(rows[0] if rows else ())})

    def _rewrite(self, rows: list[dict[str, str]], names: set[str]) -> None:
        """Replace the file atomically by these rows under a header that has `names` too."""
        self._columns = ["step", *sorted(names.union(*rows[:1]) - {"step"})]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".tmp")
        with fresh.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        fresh.replace(self.path)
