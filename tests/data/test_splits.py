"""Who trains, validates and tests: shares, classes, groups, official parts, folds."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quartet.data.splits import (
    SPLITS,
    Split,
    check_classes,
    check_duplicates,
    check_groups,
    listed,
    parts_from_column,
)

SHARES = [[0.8, 0.1, 0.1], [0.6, 0.2, 0.2], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]


def partition(parts, n):
    return sorted(chain(*parts.values())) == list(range(n))  # complete; disjoint, or an id would come twice


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 200), n_classes=st.integers(1, 5), split=st.sampled_from(SHARES), seed=st.integers(0, 2**32))
def test_splits_are_disjoint_complete_stratified_and_repeatable(n, n_classes, split, seed):
    labels = np.random.default_rng(seed).integers(n_classes, size=n)
    parts = Split(split, seed).assign(n, labels=labels)
    assert partition(parts, n) and parts == Split(split, seed).assign(n, labels=labels)
    for share, part in zip(split, SPLITS, strict=True):
        assert abs(len(parts[part]) - share * n) < 1 + 1e-9, "the whole part, by largest remainders"
        for label in range(n_classes):
            assert abs((labels[parts[part]] == label).sum() - share * (labels == label).sum()) < 1 + 1e-9


@pytest.mark.parametrize(
    ("classes", "sizes"),
    [([5] * 50, [200, 25, 25]), ([1000, 4, 4, 4], [810, 101, 101]), ([2] * 50, [80, 10, 10]), ([1] * 40, [32, 4, 4])],
)
@pytest.mark.parametrize("grouped", [False, True])
def test_many_small_classes_have_all_parts(classes, sizes, grouped):
    """Each sample alone, or in a group of its own."""
    labels = np.repeat(np.arange(len(classes)), classes)
    if grouped and max(classes) == 1:
        sizes = [40, 0, 0]  # the only group of a class has to train
    parts = Split([0.8, 0.1, 0.1], 0).assign(len(labels), labels=labels, groups=range(len(labels)) if grouped else None)
    assert partition(parts, len(labels)) and [len(parts[part]) for part in SPLITS] == pytest.approx(
        sizes, abs=2 * grouped
    )


def test_splits_depend_on_the_seed():
    assert Split([0.8, 0.1, 0.1], 0).assign(100) != Split([0.8, 0.1, 0.1], 1).assign(100)


@pytest.mark.parametrize("split", [[0.8, 0.2], [0.8, 0.1, 0.2], [1.1, -0.2, 0.1], [0.0, 0.5, 0.5]])
def test_shares_must_be_three_that_sum_to_one(split):
    with pytest.raises(ValueError, match=r"data\.split must be three shares"):
        Split(split, 0)


# groups


@given(st.lists(st.integers(1, 30), min_size=4, max_size=25), st.integers(0, 5))
def test_groups_stay_whole_and_every_class_trains(sizes, seed):
    groups = [i for i, size in enumerate(sizes) for _ in range(size)]
    labels = [i % 2 for i in groups]
    parts = Split([0.8, 0.1, 0.1], seed).assign(len(groups), labels=labels, groups=groups)
    assert partition(parts, len(groups))
    where = {part: {groups[i] for i in places} for part, places in parts.items()}
    assert sum(map(len, where.values())) == len(sizes)  # no group in two parts
    assert {group % 2 for group in where["train"]} == {0, 1}


def test_the_shares_hold_in_samples_although_one_group_is_large():
    groups = ["large" if i < 400 else f"g{i % 20}" for i in range(1000)]
    parts = Split([0.8, 0.1, 0.1], 0).assign(1000, groups=groups)
    assert 0 in parts["train"]
    assert len(parts["val"]) in range(90, 131) and len(parts["test"]) in range(90, 131)


# official parts


@given(st.lists(st.sampled_from(["train", "train", "train", "test"]), min_size=40, max_size=80), st.integers(0, 3))
def test_official_parts_are_kept_and_a_missing_one_takes_its_share_of_train(given_parts, seed):
    n, n_test = len(given_parts), given_parts.count("test")
    parts = Split([0.8, 0.1, 0.1], seed).assign(n, given=given_parts)
    assert partition(parts, n)
    if n_test:
        assert parts["test"] == [i for i, part in enumerate(given_parts) if part == "test"]
    assert abs(len(parts["val"]) - 0.1 * given_parts.count("train")) <= 1


def test_three_official_parts_leave_nothing_to_draw():
    names = ["train", "val", "test", "train"]
    assert Split([0.8, 0.1, 0.1], 0).assign(4, given=names) == {"train": [0, 3], "val": [1], "test": [2]}


# folds


@settings(deadline=None)
@given(n=st.integers(30, 120), folds=st.integers(2, 6), seed=st.integers(0, 9), grouped=st.booleans())
def test_folds_validate_every_sample_outside_test_exactly_once(n, folds, seed, grouped):
    random = np.random.default_rng(seed)
    labels = random.integers(3, size=n)
    groups = np.arange(n) // 3 if grouped else None
    each = [Split([0.8, 0.1, 0.1], seed, folds, k).assign(n, labels=labels, groups=groups) for k in range(folds)]
    assert all(partition(parts, n) for parts in each)
    assert all(parts["test"] == each[0]["test"] for parts in each)
    assert sorted(chain(*(parts["val"] for parts in each))) == sorted(set(range(n)) - set(each[0]["test"]))
    if groups is not None:
        assert all(not set(groups[p["train"]]) & set(groups[p["val"]]) for p in each)


def test_folds_hold_the_classes_in_equal_numbers():
    labels = np.repeat([0, 1], [80, 20])
    for k in range(5):
        parts = Split([1.0, 0.0, 0.0], 0, 5, k).assign(100, labels=labels)
        assert Counter(labels[parts["val"]].tolist()) == {0: 16, 1: 4}


def test_folds_keep_an_official_test_part():
    names = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    parts = Split([0.8, 0.1, 0.1], 0, 5, 1).assign(12, given=names)
    assert parts["test"] == [10, 11] and len(parts["val"]) == 2 and len(parts["train"]) == 8


@pytest.mark.parametrize(
    ("folds", "fold", "message"),
    [
        (None, 1, "needs data.folds"),
        (5, None, r"-m data.folds=5 data.fold=0,1,2,3,4"),
        (5, 5, "must be one of 0,1,2,3,4"),
        (1, 0, "at least 2"),
    ],
)
def test_folds_that_make_no_sense(folds, fold, message):
    with pytest.raises(ValueError, match=message):
        Split([0.8, 0.1, 0.1], 0, folds, fold)


def test_more_folds_than_samples():
    with pytest.raises(ValueError, match="more than there are samples"):
        Split([0.8, 0.1, 0.1], 0, 30, 0).assign(20)


# checks of every reader


def test_classes_before_a_split():
    check_classes(["a", "b", "a", "b"], "x.csv")
    with pytest.raises(ValueError, match=r"^x.csv: there is one class only \('a'\)"):
        check_classes(["a", "a"], "x.csv")
    with pytest.raises(
        ValueError, match=r"only one example of the class 'c' \(row 6\), which cannot both train and test"
    ):
        check_classes(["a", "b", "a", "b", "c"], "x.csv", where=lambda places: f"row {listed(i + 2 for i in places)}")


def test_every_class_trains():
    labels = ["a", "b", "Cafe\u0301", "caf\u00e9"]
    with pytest.raises(
        ValueError, match=r"no training example has the class 'b', but test has \(example 2\); add such"
    ):
        check_classes(labels, "x.csv", parts={"train": [0, 2, 3], "val": [], "test": [1]})
    with pytest.raises(ValueError, match=r"\(train has 'caf\u00e9', written differently\), but val has"):
        check_classes(labels, "x.csv", parts={"train": [0, 1, 3], "val": [2], "test": []})
    with pytest.raises(ValueError, match="no example is left to train on: val and test hold all of them"):
        check_classes(labels, "x.csv", parts={"train": [], "val": [0, 1], "test": [2, 3]})
    with pytest.raises(ValueError, match="no example of the class 'b' is left to train on"):  # it was dropped
        check_classes(labels[:2], "x.csv", parts={"train": [0]})


def test_a_group_is_in_one_part():
    check_groups([None, None, "g", "g"], {"train": [0, 2, 3], "val": [1], "test": []}, "x.csv")
    with pytest.raises(ValueError, match=r"the group 'g' is in train and in test \(example 2\); leave out data.group"):
        check_groups(["g", "g"], {"train": [0], "val": [], "test": [1]}, "x.csv")


def test_parts_from_a_column():
    words = ["train", "Training", " dev", "VALID", "validation", "test", "testing"]
    assert parts_from_column(words, "x.csv") == ["train"] * 2 + ["val"] * 3 + ["test"] * 2
    with pytest.raises(
        ValueError, match=r"data.split_column has 'later' in example 2, 3; it must say one of train, tr"
    ):
        parts_from_column(["train", "later", None], "x.csv")
    with pytest.raises(ValueError, match="data.split_column never says train, only dev, test"):
        parts_from_column(["dev", "test"], "x.csv")


def test_duplicates_stay_in_the_last_part_that_has_them():
    contents, given = "aabbbcc", ["train", None, "train", "test", "test", "train", "val"]
    found = check_duplicates(contents, given, "xxyyyxy")
    assert found.overlapping == [(2, 3), (5, 6)] and found.repeated == [(1, 0)] and not found.contradicting
    found = check_duplicates("aab", labels="xyz")
    assert found.contradicting == [(0, 1), (1, 0)] and found.left_out == {0, 1} and not found.repeated
    assert check_duplicates("aab").repeated == [(1, 0)]
