"""Which samples train, validate and test, and the checks of every reader of data: classes, groups, parts, duplicates.

Imports NumPy only: settings are checked before torch is loaded. The checks raise ValueError with one line; `where` turns
places of samples into words for it, such as "row 3, 7 and 2 more".
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SPLITS = ("train", "val", "test")
PART_NAMES = {  # what people call the parts, in files, folders and columns
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
BESIDE = {"image", "images", "img", "imgs", "picture", "pictures", "photos", "data", "dataset", "set", "seg"}
Parts = dict[str, list[int]]  # the places of the samples of each part, ascending
Where = Callable[[Sequence[int]], str]  # places of samples, in words


def part_named(folder: str) -> str | None:
    """The part that a folder's name means: train, "test images", training_set; None if it means none."""
    words = [word for word in re.split(r"[\s_-]+", folder.lower()) if word not in BESIDE]
    return PART_NAMES.get(words[0]) if len(words) == 1 else None


def listed(items: Iterable[Any], most: int = 4) -> str:
    """The first few, and how many more there are."""
    items = list(map(str, items))
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def numbered(places: Sequence[int]) -> str:
    return f"example {listed(i + 1 for i in places)}"


# checks


def check_classes(labels: Sequence[Any], source: str, *, parts: Parts | None = None, where: Where = numbered) -> None:
    """Before a split: at least two classes with two examples each. With `parts`: every class trains."""
    counts = Counter(labels)
    # after the split: every class that is evaluated, or was there, trains
    if parts is not None:
        trained = {labels[i] for i in parts["train"]}
        if not trained:
            raise ValueError(f"{source}: no example is left to train on: val and test hold all of them; take some out")
        # é may be one character or two, and people write Cat for cat: name the class that was probably meant
        similar = {unicodedata.normalize("NFC", str(label)).casefold().strip(): label for label in trained}
        for part in (part for part in SPLITS if part in parts):
            unknown = [i for i in parts[part] if labels[i] not in trained]
            if unknown:
                names = sorted({str(labels[i]) for i in unknown})
                near = similar.get(unicodedata.normalize("NFC", names[0]).casefold().strip())
                hint = "" if near is None else f" (train has {near!r}, written differently)"
                raise ValueError(
                    f"{source}: no training example has the class {listed(map(repr, names))}{hint}, but {part} has "
                    f"({where(unknown)}); add such examples to train, remove these, or change data.split_seed"
                )
        missing = [str(label) for label in counts if label not in trained]
        if missing:
            raise ValueError(
                f"{source}: no example of the class {listed(map(repr, missing))} is left to train on; add examples"
            )
        return
    # before the split
    if len(counts) < 2:
        names = listed(map(repr, map(str, counts))) or "no label at all"
        raise ValueError(
            f"{source}: there is one class only ({names}), and a classifier needs two: add examples of another class, "
            "or name another column"
        )
    single = [i for i, label in enumerate(labels) if counts[label] == 1]
    if single:
        names = listed(repr(str(labels[i])) for i in single)
        raise ValueError(
            f"{source}: only one example of the class {names} ({where(single)}), which cannot both train and test; add "
            "examples, merge the class with another one, or remove it"
        )


def check_groups(groups: Sequence[Any], parts: Parts, source: str, *, where: Where = numbered) -> None:
    """No group is in two parts; None is no group. Only parts that the data give can separate a group."""
    seen: dict[Any, str] = {}
    for part in SPLITS:
        for i in parts[part]:
            if groups[i] is not None and seen.setdefault(groups[i], part) != part:
                raise ValueError(
                    f"{source}: the group {str(groups[i])!r} is in {seen[groups[i]]} and in {part} ({where([i])}); "
                    "leave out data.group, or correct the parts"
                )


def parts_from_column(values: Sequence[str | None], source: str, *, where: Where = numbered) -> list[str]:
    """The part of each sample, from a column of words such as train, Training, dev."""
    parts = [PART_NAMES.get((value or "").strip().lower()) for value in values]
    strange = [i for i, part in enumerate(parts) if part is None]
    if strange:
        raise ValueError(
            f"{source}: data.split_column has {values[strange[0]]!r} in {where(strange)}; it must say one of "
            f"{', '.join(PART_NAMES)}"
        )
    if "train" not in parts:
        raise ValueError(
            f"{source}: data.split_column never says train, only {', '.join(sorted(set(map(str, values))))}"
        )
    return [part for part in parts if part is not None]


@dataclass(frozen=True)
class Duplicates:
    """Samples with the content of another one, as pairs of places (the copy, the other)."""

    overlapping: list[tuple[int, int]]  # the other is in a later part (train < val < test), which keeps it
    contradicting: list[tuple[int, int]]  # in the same part, with another label
    repeated: list[tuple[int, int]]  # both in train; the other comes first

    @property
    def left_out(self) -> set[int]:
        return {copy for pairs in (self.overlapping, self.contradicting, self.repeated) for copy, _ in pairs}


def check_duplicates(
    contents: Sequence[Any], given: Sequence[str | None] | None = None, labels: Sequence[Any] | None = None
) -> Duplicates:
    """Samples of equal content (anything hashable). A given test or val part keeps all of its samples, train the first.

    `given`: the official part of each sample; None counts as train. With `labels`, samples whose labels contradict each
    other are told apart from repeated ones. Raises nothing: what to do is the reader's decision.
    """
    # 1. the places of each content
    same: dict[Any, list[int]] = {}
    for i, content in enumerate(contents):
        same.setdefault(content, []).append(i)
    duplicates = Duplicates([], [], [])
    for places in same.values():
        # 2. copies in the last part stay, those in earlier parts overlap with it
        ranks = [0 if given is None else SPLITS.index(given[i] or "train") for i in places]
        stay = [i for i, rank in zip(places, ranks, strict=True) if rank == max(ranks)]
        duplicates.overlapping.extend((i, stay[0]) for i in places if i not in stay)
        # 3. among those that stay: different labels, or in train a repetition
        if labels is not None and len({labels[i] for i in stay}) > 1:
            other = {i: next(j for j in stay if labels[j] != labels[i]) for i in stay}
            duplicates.contradicting.extend(other.items())
        elif max(ranks) == 0:
            duplicates.repeated.extend((i, stay[0]) for i in stay[1:])
    return duplicates


# splitting


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
class Split:
    """How samples are divided: shares of train, val and test, drawn with `seed`; or fold `fold` of `folds`.

    The folds are those of a cross-validation: the test part is set apart first and is the same for every fold, the
    rest is cut into `folds` pieces, and piece `fold` validates while the others train.

    Raises ValueError if the shares do not sum to 1 or there is no such fold.
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
        # 1. official parts stay; the missing ones are drawn from the official training samples
        names = ["train"] * n if given is None else given
        official: Parts = {part: [i for i, name in enumerate(names) if name == part] for part in SPLITS}
        held_out = {part: share for part, share in zip(SPLITS, self.shares, strict=True) if not official[part]}
        if self.folds is not None:
            held_out.pop("val", None)
        val, test = held_out.get("val", 0.0), held_out.get("test", 0.0)
        drawn = samples.draw(official["train"], {"train": 1 - val - test, "val": val, "test": test}, self.seed)
        parts = {"train": drawn["train"]} | {part: official[part] or drawn[part] for part in SPLITS[1:]}
        if self.folds is None:
            return parts
        # 2. train and val together are dealt out into folds
        folds = samples.deal(sorted(parts["train"] + parts["val"]), self.folds, self.seed)
        train = sorted(i for k, fold in enumerate(folds) if k != self.fold for i in fold)
        return {"train": train, "val": folds[self.fold or 0], "test": parts["test"]}


@dataclass(frozen=True)
class _Samples:
    """Labels (n,) and groups (n,) or None: without groups every sample stands for itself."""

    labels: np.ndarray
    groups: np.ndarray | None

    def draw(self, places: list[int], shares: dict[str, float], seed: int) -> Parts:
        """Some of the samples to three parts, in these shares of them."""
        parts: Parts = {part: [] for part in SPLITS}
        random = np.random.default_rng(seed)
        if self.groups is None:
            classes = [random.permutation(members) for members in self._by_label(places)]
            for drawn, sizes in zip(classes, _sizes([len(c) for c in classes], shares, random), strict=True):
                ends = np.cumsum(sizes[:0:-1])  # test first, then val, the rest trains
                for part, chosen in zip(("test", "val", "train"), np.split(drawn, ends), strict=True):
                    parts[part] += chosen.tolist()
        else:
            by_label = self._groups_by_label(places, random)
            for members, chosen in zip(by_label, _spread(by_label, shares), strict=True):
                for group, part in chosen.items():
                    parts[part] += members[group]
        return {part: sorted(chosen) for part, chosen in parts.items()}

    def deal(self, places: list[int], n_folds: int, seed: int) -> list[list[int]]:
        """Some of the samples in folds of like size; every class, and whole groups, as evenly as possible.

        Raises ValueError if there are fewer samples (or groups) than folds.
        """
        random, folds = np.random.default_rng(seed), [[] for _ in range(n_folds)]
        # units must not be taken apart: single samples, or the samples of a group; of each class in random order
        if self.groups is None:
            classes = [[[i] for i in random.permutation(members).tolist()] for members in self._by_label(places)]
        else:
            classes = [list(members.values()) for members in self._groups_by_label(places, random)]
        for units in classes:
            for unit in sorted(units, key=len, reverse=True):  # stable: units of one size stay in random order
                min(folds, key=len).extend(unit)
        if not all(folds):
            raise ValueError(f"data.folds={n_folds} is more than there are samples or groups to share out; use fewer")
        return [sorted(fold) for fold in folds]

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


def _sizes(classes: list[int], shares: dict[str, float], random: Any) -> np.ndarray:
    """(C, 3) samples of each class for train, val and test, by the method of largest remainders (Hamilton).

    The parts have their shares of all samples, and of every class the whole number below or above its share of that:
    first what is held out of each class, then how that is divided. Ties are broken at random.
    """
    counts, n = np.array(classes, dtype=float), sum(classes)
    _, val, test = (shares[part] for part in SPLITS)
    n_train, _, n_test = _rounded(np.array([n * shares[part] for part in SPLITS]), n)
    chance = 1e-6 * random.random((2, len(classes)))
    # 1. of each class, how many are held out
    held = _rounded(counts * (val + test), n - n_train, chance[0])
    sizes = np.stack([counts.astype(int) - held, _floor(counts * val), _floor(counts * test)], axis=1)
    # 2. how these are divided between val and test
    more = held - sizes[:, 1] - sizes[:, 2]  # 2: one for each; 1: for one of them
    sizes[more == 2, 1:] += 1
    single = np.flatnonzero(more == 1)
    prefers_test = (counts * test) % 1 - (counts * val) % 1 + chance[1]
    tests = single[np.argsort(-prefers_test[single], kind="stable")][: max(0, n_test - sizes[:, 2].sum())]
    sizes[tests, 2] += 1
    sizes[np.setdiff1d(single, tests), 1] += 1
    return sizes


def _floor(exact: np.ndarray) -> np.ndarray:
    return np.floor(exact + 1e-9).astype(int)  # 0.1 · 30 is 3, whatever binary fractions make of it


def _rounded(exact: np.ndarray, total: int, chance: np.ndarray | float = 0.0) -> np.ndarray:
    """Whole numbers with this sum, each the one below or above: the largest remainders are rounded up."""
    whole = _floor(exact)
    whole[np.argsort(-(exact - whole + chance), kind="stable")[: total - whole.sum()]] += 1
    return whole


def _spread(classes: list[dict[Any, list[int]]], shares: dict[str, float]) -> list[dict[Any, str]]:
    """The part of each group, for every class: a group goes to the part that lacks most of its share of the class.

    The first group of a class trains. Where classes have few groups, that part of val and test is next which lacks more
    of its share of all samples, and neither takes more than that. Groups larger than a whole val or test part of their
    class come first, and train as long as they fit there: the others would be overfull.
    """
    # 1. how many samples each part should have, in all and of each class
    n = sum(len(ids) for members in classes for ids in members.values())
    total = {part: share * n for part, share in shares.items() if share > 0}
    goals = [
        {part: share / n * sum(map(len, members.values())) for part, share in total.items()} for members in classes
    ]
    filled, of_class = dict.fromkeys(total, 0), [dict.fromkeys(total, 0) for _ in classes]
    chosen: list[dict[Any, str]] = [{} for _ in classes]
    # 2. large groups first
    queues = []
    for members, goal in zip(classes, goals, strict=True):
        least = min(goal.values(), default=0.0)
        by_size = sorted((-max(len(ids), least), place, group) for place, (group, ids) in enumerate(members.items()))
        queues.append([group for _, _, group in by_size])  # small ones stay in their order
    # 3. the classes take turns, so that none of them fills the small parts
    for turn in range(max(map(len, queues), default=0)):
        for i, queue in enumerate(queues):
            if turn >= len(queue):
                continue
            group, size, mine, goal = queue[turn], len(classes[i][queue[turn]]), of_class[i], goals[i]
            room = [part for part in total if filled[part] < total[part]] or ["train"]
            if turn == 0 or (size > min(goal.values()) and mine["train"] + size <= goal["train"]):
                part = "train"
            else:
                part = min(room, key=lambda p: (mine[p] / goal[p], filled[p] / total[p]))
            chosen[i][group] = part
            filled[part] += size
            mine[part] += size
    return chosen
