"""Ensembles: laws of combining, and runs that are combined, evaluated and asked like any other run."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from inference.conftest import SHORT, settings_of, table, train
from quartet.commands.ensemble import ensemble
from quartet.commands.evaluate import evaluate, report
from quartet.commands.predict import predict
from quartet.inference.ensemble import Combination, fit_combination, loss
from quartet.run import Run


def predictions(k: int = 4, n: int = 400):
    """K guesses of three classes: the first is good, the others are worse and worse."""
    random = np.random.default_rng(0)
    target = random.integers(0, 3, n)
    found = []
    for i in range(k):
        logits = random.normal(size=(n, 3)) * (1 + i) + 2 * np.eye(3)[target]
        found.append(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
    return found, target


@pytest.mark.parametrize("method", ["mean", "weighted", "greedy", "stack"])
def test_probabilities_stay_probabilities_and_what_is_fitted_is_not_worse_than_the_best_member(method):
    members, target = predictions()
    groups = [[i] for i in range(4)]
    combination = fit_combination(method, groups, members, target)
    combined = combination.combine(members)
    np.testing.assert_allclose(combined.sum(1), 1, atol=1e-9)
    assert (combined >= 0).all()
    if method != "mean":
        assert loss(combined, target) <= min(loss(one, target) for one in members) + 1e-6
    # it survives JSON
    again = Combination(**json.loads(json.dumps(vars(combination))))
    np.testing.assert_array_equal(again.combine(members), combined)


def test_greedy_takes_the_good_ones_and_repeats_them():
    members, target = predictions()
    weights = fit_combination("greedy", [[i] for i in range(4)], members, target).weights
    assert weights and weights[0] > weights[3] and sum(weights) == pytest.approx(1)
    alone = fit_combination("greedy", [[0], [1]], [members[0], 1 - members[0]], target)
    assert alone.weights == [1, 0]


def test_stacking_a_regression_finds_the_combination():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 300))
    target = 3 * first - 2 * second + 5
    found = fit_combination("stack", [[0], [1]], [first, second], target)
    np.testing.assert_allclose(found.combine([first, second]), target, atol=0.05)


def test_members_of_a_group_are_averaged_first():
    members, _ = predictions(3)
    combined = Combination("mean", [[0, 1], [2]], [0.5, 0.5]).combine(members)
    np.testing.assert_allclose(combined, ((members[0] + members[1]) / 2 + members[2]) / 2)


# runs


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Three seeds that train on bags, one run of another split, four folds of two settings; the data stay."""
    place = tmp_path_factory.mktemp("ensembles")
    table().drop(columns=["z", "part"]).to_csv(place / "t.csv", index=False)
    own = ["model=mlp", "data=csv", f"data.path={place / 't.csv'}", "data.target=y", "model.hidden=[8]", *SHORT]
    for seed in range(3):
        train(*own, f"seed={seed}", "data.bootstrap=true", f"run.dir={place / f'seed{seed}'}")
    train(*own, "data.split_seed=1", f"run.dir={place / 'split'}")
    for fold in range(2):
        for width in (4, 8):
            folds = ["data.folds=2", f"data.fold={fold}", f"model.hidden=[{width}]"]
            train(*own, *folds, f"run.dir={place / f'fold{fold}-{width}'}")
    return place


@pytest.fixture
def combine(home, capsys, monkeypatch):
    monkeypatch.chdir(home)

    def call(runs: Any, method: str = "mean") -> tuple[Run, str]:
        ensemble(settings_of("ensemble", runs=runs, method=method))
        said = capsys.readouterr().out
        return Run.open("latest"), said

    return call


@pytest.mark.parametrize("method", ["mean", "weighted", "greedy", "stack"])
def test_an_ensemble_is_a_run(combine, home, method, capsys, monkeypatch, tmp_path):
    run, said = combine("seed*", method)
    assert "ensemble" in said and run.status == "completed"
    # somewhere else, with its members gone
    shutil.move(run.directory, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    moved = Run.open("moved")
    metrics = evaluate(moved, "test")
    assert 0.5 < metrics["test/accuracy"] <= 1
    capsys.readouterr()
    predict(settings_of("predict", run="moved", input=str(home / "t.csv")))
    rows = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert len(rows) == 240
    if method == "mean":
        members = []
        for seed in range(3):
            predict(settings_of("predict", run=str(home / f"seed{seed}"), input=str(home / "t.csv")))
            members.append(pd.read_csv(io.StringIO(capsys.readouterr().out)))
        mean = np.mean([one["p(high)"] for one in members], axis=0)
        np.testing.assert_allclose(rows["p(high)"], mean, atol=1e-6)
        assert members[0]["p(high)"].corr(members[1]["p(high)"]) < 1 - 1e-6  # bags differ
    report(settings_of("evaluate", run="moved", split="test", resamples=50))
    assert Path("moved/evaluation.html").is_file()


def test_folds_are_averaged_and_stacked_out_of_fold(combine):
    run, _ = combine("fold*", "stack")
    content = run.read("ensemble.json")
    assert content["members"] == ["fold0-4", "fold0-8", "fold1-4", "fold1-8"]
    assert content["combination"]["groups"] == [[0, 2], [1, 3]]  # both folds of each width
    assert evaluate(run, "test")["test/accuracy"] > 0.5
    with pytest.raises(ValueError, match="the members are folds"):
        evaluate(run, "val")


@pytest.mark.parametrize(
    ("runs", "method", "message"),
    [
        (["seed0", "split"], "mean", r"differ in data.split_seed"),
        (["seed0"], "mean", "at least two completed runs"),
        ("nothing*", "mean", r"runs=nothing\*: no run there"),
        (None, "mean", "runs must be"),
        ("seed*", "best", "method must be one of mean, weighted, greedy, stack"),
        (["fold0-4", "fold1-4", "fold0-8"], "stack", "needs every fold of each setting"),
    ],
)
def test_what_cannot_be_combined_is_one_line(combine, runs, method, message):
    with pytest.raises((ValueError, OSError), match=message):
        combine(runs, method)


def test_an_mlp_and_an_ensemble_of_mlps_in_one_may_be_combined(combine, home):
    """Different networks that read the same columns in different ways."""
    own = ["model=mlp", "data=csv", f"data.path={home / 't.csv'}", "data.target=y", "model.hidden=[8]", *SHORT]
    train(*own, "model.ensemble=4", "data.scaling=quantile", f"run.dir={home / 'other'}")
    run, said = combine(["seed0", "other"], "weighted")
    assert "other" in said and evaluate(run, "test")["test/accuracy"] > 0.5


def test_other_classes_cannot_be_combined(combine, home, tmp_path):
    frame = table(seed=4).drop(columns=["z", "part"])
    frame["y"] = frame["y"].replace({"low": "lower"})
    frame.to_csv(tmp_path / "other.csv", index=False)
    own = ["model=mlp", "data=csv", f"data.path={tmp_path / 'other.csv'}", "data.target=y", "model.hidden=[8]", *SHORT]
    train(*own, f"run.dir={tmp_path / 'other'}")
    with pytest.raises(ValueError, match="differ in classes"):
        combine([str(home / "seed0"), str(tmp_path / "other")])


def test_a_damaged_ensemble_is_refused(combine):
    run, _ = combine("seed*")
    content = run.read("ensemble.json")
    content["combination"]["groups"] = [[0], [1], [7]]
    run.write("ensemble.json", content)
    with pytest.raises(ValueError, match=r"ensemble.json is damaged"):
        evaluate(run, "test")
