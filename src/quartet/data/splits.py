"""Which samples train, validate and test: shares, parts given with the data, groups that stay together, folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SPLITS = ("train", "val", "test")
PART_NAMES = {  # what people call the parts, in files, folders and columns
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
Parts = dict[str, list[int]]  # the places of the samples of each part, ascending


@dataclass(frozen=True)
class Split:
    """How samples are divided: shares of train, val and test, drawn with `seed`; or fold `fold` of `folds`.

    The folds are those of a cross-validation: the test part is set apart first and is the same for every fold, the
    rest is cut into `folds` pieces, and piece `fold` validates while the others train.

    Raises ValueError where the shares do not sum to 1 or there is no such fold.
    """

    shares: list[float]
    seed: int
    folds: int | None = None
    fold: int | None = None

    def __post_init__(self):
        shares = self.shares
        if len(shares) != 3 or min(shares) < 0 or shares[0] == 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"data.split must be three shares (train > 0, val, test) that sum to 1, not {shares}")
        problem = fold_problem(self.folds, self.fold)
        if problem:
            raise ValueError(problem)

    def assign(self, n: int, *, labels: Any = None, groups: Any = None, given: Any = None) -> Parts:
        """Samples 0 … n - 1 to disjoint parts; together the parts hold every sample.

        `labels` (n,): the shares hold in every class. `groups` (n,): samples of one group stay in one part, and the
        shares hold as well as whole groups allow; a group has the label of its first sample. `given` (n,): the names of
        official parts, which are kept; a part that is missing takes its share of the official training samples.
        """
        samples = _Samples(
            np.zeros(n, dtype=int) if labels is None else np.asarray(labels),
            None if groups is None else np.asarray(groups),
        )
        official = {part: _places(given, part) for part in SPLITS} if given is not None else {"train": list(range(n))}
        held_out = {part: share for part, share in zip(SPLITS, self.shares, strict=True) if not official.get(part)}
        if self.folds is not None:
            held_out.pop("val", None)
        drawn = samples.draw(official["train"], held_out.get("val", 0.0), held_out.get("test", 0.0), self.seed)
        parts = {"train": drawn["train"]}
        parts |= {part: official.get(part) or drawn[part] for part in SPLITS[1:]}
        return parts if self.folds is None else self._cross(samples, parts)

    def _cross(self, samples: _Samples, parts: Parts) -> Parts:
        """Train and val together, cut into folds."""
        assert self.folds is not None and self.fold is not None
        folds = samples.deal(sorted(parts["train"] + parts["val"]), self.folds, self.seed)
        train = sorted(i for k, fold in enumerate(folds) if k != self.fold for i in fold)
        return {"train": train, "val": folds[self.fold], "test": parts["test"]}


def fold_problem(folds: int | None, fold: int | None) -> str | None:
    """What is wrong with `data.folds` and `data.fold`, if anything."""
    if folds is None and fold is None:
        return None
    if folds is None:
        return f"data.fold={fold} needs data.folds, the number of folds"
    if folds < 2:
        return f"data.folds={folds} must be at least 2"
    every = ",".join(map(str, range(folds)))
    if fold is None:
        return f"data.folds={folds} needs data.fold; all of them: -m data.folds={folds} data.fold={every}"
    return None if 0 <= fold < folds else f"data.fold={fold} must be one of {every} for data.folds={folds}"


@dataclass(frozen=True)
class _Samples:
    """Labels (n,) and groups (n,) or None: without groups every sample stands for itself."""

    labels: np.ndarray
    groups: np.ndarray | None

    def draw(self, places: list[int], val: float, test: float, seed: int) -> Parts:
        """Some of the samples to three parts, in these shares of them."""
        shares = {"train": 1 - val - test, "val": val, "test": test}
        random = np.random.default_rng(seed)
        draw = self._draw_samples if self.groups is None else self._draw_groups
        return {part: sorted(chosen) for part, chosen in draw(places, shares, random).items()}

    def _draw_samples(self, places: list[int], shares: dict[str, float], random: Any) -> Parts:
        parts: Parts = {part: [] for part in SPLITS}
        for members in self._by_label(places):
            drawn = random.permutation(members)
            val_end = round(len(drawn) * (shares["val"] + shares["test"]))
            test_end = round(len(drawn) * shares["test"])
            parts["test"] += drawn[:test_end].tolist()
            parts["val"] += drawn[test_end:val_end].tolist()
            parts["train"] += drawn[val_end:].tolist()
        return parts

    def _draw_groups(self, places: list[int], shares: dict[str, float], random: Any) -> Parts:
        parts: Parts = {part: [] for part in SPLITS}
        for members in self._groups_by_label(places, random):
            for group, part in _spread({group: len(ids) for group, ids in members.items()}, shares).items():
                parts[part] += members[group]
        return parts

    def deal(self, places: list[int], n_folds: int, seed: int) -> list[list[int]]:
        """Some of the samples in folds of like size; every class, and whole groups, as evenly as possible.

        Raises ValueError where there are fewer samples (or groups) than folds.
        """
        random, folds = np.random.default_rng(seed), [[] for _ in range(n_folds)]
        for units in self._units_by_label(places, random):
            for unit in sorted(units, key=len, reverse=True):  # stable: units of one size stay in random order
                min(folds, key=len).extend(unit)
        if not all(folds):
            raise ValueError(f"data.folds={n_folds} is more than there are samples or groups to share out; take fewer")
        return [sorted(fold) for fold in folds]

    def _units_by_label(self, places: list[int], random: Any) -> list[list[list[int]]]:
        """Of each class, what must not be taken apart, in random order."""
        if self.groups is None:
            return [[[i] for i in random.permutation(members).tolist()] for members in self._by_label(places)]
        return [list(members.values()) for members in self._groups_by_label(places, random)]

    def _by_label(self, places: list[int]) -> list[np.ndarray]:
        chosen = np.asarray(places, dtype=np.int64)
        labels = self.labels[chosen]
        return [chosen[labels == label] for label in np.unique(labels)]

    def _groups_by_label(self, places: list[int], random: Any) -> list[dict[Any, list[int]]]:
        """For each class its groups in random order, with their samples; the first label of a group counts."""
        assert self.groups is not None
        members: dict[Any, list[int]] = {}
        for i in places:
            members.setdefault(self.groups[i], []).append(i)
        label_of = {group: self.labels[ids[0]] for group, ids in members.items()}
        drawn = []
        for label in sorted(set(label_of.values())):
            groups = random.permutation(sorted(group for group in members if label_of[group] == label)).tolist()
            drawn.append({group: members[group] for group in groups})
        return drawn


def _places(given: Sequence[str], part: str) -> list[int]:
    return [i for i, name in enumerate(given) if name == part]


def _spread(sizes: dict[Any, int], shares: dict[str, float]) -> dict[Any, str]:
    """The part of each group of one class: earlier groups choose first, the part that lacks most of its share.

    Groups larger than a whole val or test part come first, and train as long as they fit there: the others would be
    overfull.
    """
    goal = {part: share * sum(sizes.values()) for part, share in shares.items() if share > 0}
    filled, smallest = dict.fromkeys(goal, 0), min(goal.values())
    chosen = {}
    for group, size in sorted(sizes.items(), key=lambda item: -max(item[1], smallest)):  # stable: small ones stay put
        trains = size > smallest and filled["train"] + size <= goal["train"]
        part = "train" if trains else min(goal, key=lambda part: filled[part] / goal[part])
        chosen[group] = part
        filled[part] += size
    return chosen
