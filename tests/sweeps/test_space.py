"""Hydra's sweep words as dimensions: what they mean, in which order a grid goes, what is a mistake."""

from __future__ import annotations

import itertools

import pytest

from quartet.sweeps.space import Dimension, parse, point, size, start_point


def dimension(word: str) -> Dimension:
    (found,), fixed = parse({}, [word], None)
    assert not fixed
    return found


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("a=tag(log,interval(1e-4,1))", {"low": 1e-4, "high": 1.0, "log": True, "whole": False, "values": None}),
        ("a=interval(1,5)", {"low": 1.0, "high": 5.0, "log": False, "whole": False}),
        ("a=int(interval(1,5))", {"low": 1, "high": 5, "whole": True}),
        ("a=tag(log,int(interval(1,100)))", {"low": 1, "high": 100, "whole": True, "log": True}),
        ("a=range(1,10,2)", {"low": 1, "high": 9, "step": 2, "whole": True, "values": ("1", "3", "5", "7", "9")}),
        ("a=range(0.0,1.0,0.25)", {"low": 0.0, "high": 0.75, "step": 0.25, "whole": False}),
        ("a=1e-3,3e-3", {"values": ("0.001", "0.003"), "low": None}),
        ("a=choice([1,2],x)", {"values": ("[1,2]", "x"), "low": None}),
        ("+a=true,false", {"key": "+a", "values": ("True", "False")}),
    ],
)
def test_words_of_hydra(word, expected):
    found = dimension(word)
    assert {name: getattr(found, name) for name in expected} == expected
    assert found.problem() is None


@pytest.mark.parametrize(
    ("word", "low", "high", "log"),
    [("a=tag(log,interval(1e-4,1))", 1e-4, 1.0, True), ("a=int(interval(1,5))", 1, 5, False)],
)
def test_intervals_become_optuna_s_distributions(word, low, high, log):
    distribution = dimension(word).distribution(enumerated=False)
    assert (distribution.low, distribution.high, distribution.log) == (low, high, log)


def test_a_grid_goes_through_every_point_in_hydra_s_order():
    space, _ = parse({}, ["a=1,2", "b=x,y,z", "c=range(0,2)"], None)
    points = [tuple(point(space, n).items()) for n in range(size(space) or 0)]
    expected = itertools.product([("a", "1"), ("a", "2")], [("b", v) for v in "xyz"], [("c", "0"), ("c", "1")])
    assert points == list(expected)


def test_the_command_line_wins_over_params_and_one_value_is_fixed():
    space, fixed = parse({"seed": "0,1,2", "data.folds": 5, "a": "1,2"}, ["a=7", "model=mlp", "b=choice(3)"], None)
    assert [d.key for d in space] == ["seed"]
    assert sorted(fixed) == ["a=7", "b=3", "data.folds=5", "model=mlp"]


def test_a_shuffled_choice_has_the_same_order_again():
    assert dimension("a=shuffle(1,2,3,4,5,6,7)").values == dimension("a=shuffle(1,2,3,4,5,6,7)").values


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("a=interval(1,0.1)", "a=interval(1,0.1) begins above its end; write interval(0.1,1)"),
        ("a=tag(log,interval(0,1))", "has no logarithm; begin above 0"),
        ("a=range(5,1)", "a=range(5,1) has no values"),
        ("a=tag(log,range(1,10,3))", "has a step and a logarithm"),
    ],
)
def test_nothing_in_a_dimension(word, message):
    assert message in (dimension(word).problem() or "")


def test_a_known_point_is_found_in_the_space_however_it_is_written():
    space, _ = parse({}, ["a=tag(log,interval(1e-4,1))", "b=0,0.1", "+c=x,y", "d=int(interval(1,9))"], None)
    chosen = start_point(space, {"a": 1e-3, "b": 0.10, "c": "y", "d": 3})
    assert chosen == {"a": 1e-3, "b": "0.1", "+c": "y", "d": 3}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"z": 1}, "sweep.start names z, which is not varied; varied are a, b"),
        ({"a": 2.0}, "sweep.start has a=2.0, which is not in interval(0,1)"),
        ({"b": "z"}, "sweep.start has b=z, which is not in x,y"),
    ],
)
def test_a_known_point_outside_the_space(values, message):
    space, _ = parse({}, ["a=interval(0,1)", "b=x,y"], None)
    with pytest.raises(ValueError) as error:
        start_point(space, values)
    assert message in str(error.value)
