"""The facts that flow from the data to the network and the task; said once, by the data module."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a data module knows once its preprocessing is fitted; plain data, stored in `preprocessing.json`.

    `sizes` are keyword arguments of the network (`vocab_size`, `n_classes`, …): a size given in `conf/model` too is an
    error. The rest is for the task: class names and their training counts, bytes of each token, mean and standard
    deviation of a regression target (the network predicts the standardised target).
    """

    sizes: dict[str, Any]
    classes: tuple[str, ...] = ()
    class_counts: tuple[int, ...] = ()
    token_bytes: tuple[int, ...] = field(default=(), repr=False)
    target_mean: float = 0.0
    target_std: float = 1.0

    def to_json(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Spec:
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**plain)
