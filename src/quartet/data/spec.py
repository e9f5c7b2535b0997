"""The facts that flow from the data to the network and the task; said once, by the data module."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

ONE = ("vocab_size", "context_length", "pad_id", "image_size", "in_channels")  # sizes that are one number, as are n_…


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

    def check(self) -> None:
        """Raise ValueError where it cannot be what a data module wrote: it may come from a file."""
        sizes = self.sizes if isinstance(self.sizes, dict) else {}
        n_classes, lengths = len(self.classes), [0, sizes.get("vocab_size")]
        if "vocab_size" in sizes and "n_classes" not in sizes:  # a language model, whose loss counts bytes
            lengths = lengths[1:]
        counts = (*self.class_counts, *self.token_bytes)
        rules = {
            "sizes are not whole numbers from 0 on, or lists of numbers": isinstance(self.sizes, dict)
            and all(_is_size(name, size) for name, size in sizes.items()),
            "classes are not different texts": isinstance(self.classes, tuple)
            and all(isinstance(name, str) for name in self.classes)
            and len(set(self.classes)) == n_classes,
            "counts are not whole numbers from 0 on": all(_is_whole(count) for count in counts),
            "there is not one count for each class": len(self.class_counts) in (0, n_classes),
            "there is not one length for each token": isinstance(self.token_bytes, tuple)
            and len(self.token_bytes) in lengths,
            "target_mean and target_std are not a number and one above 0": _is_number(self.target_mean)
            and _is_number(self.target_std)
            and self.target_std > 0,
        }
        wrong = [rule for rule, holds in rules.items() if not holds]
        if wrong:
            raise ValueError(f"spec: {wrong[0]}")


def _is_size(name: str, value: Any) -> bool:
    many = isinstance(value, list) and name not in ONE and not name.startswith("n_")
    return all(map(_are_numbers, value)) if many else _is_whole(value)


def _are_numbers(value: Any) -> bool:
    """Of a list; what is counted is not negative."""
    if isinstance(value, list):
        return all(map(_is_number, value))
    return _is_whole(value) or (type(value) is float and _is_number(value))


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2**63  # NaN is not
