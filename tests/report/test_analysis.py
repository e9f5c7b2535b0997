from pathlib import Path

import pandas as pd
import pytest

from quartet.report.analysis import Analysis, is_log, parameters, settings, short, text
from quartet.report.runs import flatten, frame, matching_runs, read_json, sweep_runs
from quartet.run import signature

OBJECTIVES = {"objectives": {"val/loss": "min"}}


def table(*runs: tuple):
    """Of runs that were never written: (config, *overrides)."""
    rows = []
    for number, (config, *words) in enumerate(runs):
        values = {f"config.{key}": value for key, value in flatten(config)}
        facts = {"status": "completed", "val/loss": 1.0, "seed": config.get("seed"), "fold": None}
        rows.append({"run": str(number), "directory": Path(str(number)), "overrides": words, **facts, **values})
    return pd.DataFrame(rows, dtype=object)


def of_sweep(directory: Path):
    return settings(frame(sweep_runs(directory)), read_json(directory / "sweep.json"))


def test_seeds_and_folds_are_repetitions(make_sweep):
    runs = [
        (seed + fold, {"seed": seed, "data.fold": fold, "data.folds": 2, "data.path": f"/{seed}"})
        for seed in (0, 1)
        for fold in (0, 1)
    ]
    (setting,) = of_sweep(make_sweep(runs))
    assert setting.scores("val/loss") == {(0, 0): 0, (0, 1): 1, (1, 0): 1, (1, 1): 2}
    assert setting.values == {} and setting.name == "the one setting"


def test_what_groups_here_has_one_signature_there(make_sweep):
    """The exceptions are those of `quartet.run.signature`, which says what a repetition is."""
    from quartet.run import Run

    values = {
        "seed": 3,
        "data.fold": 1,
        "data.path": "/else",
        "test": False,
        "callbacks.pruning": {"_target_": "x"},
        "run.name": "y",
    }
    sweep = make_sweep([(1.0, {}), (2.0, values), (3.0, {"model.dropout": 0.2})])
    found = of_sweep(sweep)
    assert [len(setting.runs) for setting in found] == [2, 1]
    signatures = [{signature(Run(run["directory"]).config) for run in setting.runs} for setting in found]
    assert [len(found) for found in signatures] == [1, 1] and signatures[0] != signatures[1]


def test_paths_that_are_swept_are_no_repetitions(make_sweep):
    runs = [(i, {"data.path": path}) for i, path in enumerate("ab")]
    found = of_sweep(make_sweep(runs, {"data.path": "a,b"}))
    assert [setting.values for setting in found] == [{"data.path": "a"}, {"data.path": "b"}]


def test_a_choice_stands_for_all_that_follows_from_it():
    """model=rnn changes many keys, among them those of data; shown is the choice."""
    mlp = {"model": {"_target_": "MLP", "width": 1, "norm": "batch"}, "data": {"kind": "table"}, "optimizer": {"lr": 1}}
    rnn = {"model": {"_target_": "RNN", "cell": "lstm"}, "data": {"kind": "text"}, "optimizer": {"lr": 2}}
    for space in ({"model": "mlp,rnn"}, {}):
        runs, plan = table((mlp, "model=mlp"), (rnn, "model=rnn")), {"space": space, **OBJECTIVES}
        assert parameters(runs, plan) == ["model"]
        assert [setting.values for setting in settings(runs, plan)] == [{"model": "mlp"}, {"model": "rnn"}]


def test_a_choice_that_was_left_as_it_is_is_the_same_choice():
    config = {"optimizer": {"_target_": "AdamW", "lr": 1}}
    other = {"optimizer": {"_target_": "SGD", "lr": 1}}
    runs = table((config,), (config, "optimizer=adamw"), (other, "optimizer=sgd"))
    assert [(s.values, len(s.runs)) for s in settings(runs, OBJECTIVES)] == [
        ({"optimizer": "adamw"}, 2),
        ({"optimizer": "sgd"}, 1),
    ]


def test_without_commands_the_targets_speak():
    runs = table(
        ({"model": {"_target_": "a.MLP", "width": 1}, "seed": 0},),
        ({"model": {"_target_": "a.RNN", "cell": "lstm"}, "seed": 1},),
    )
    assert [setting.values for setting in settings(runs, OBJECTIVES)] == [
        {"model._target_": "MLP"},
        {"model._target_": "RNN"},
    ]


def test_keys_that_always_move_together_are_one():
    runs = table(*(({"a": i, "b": -i, "c": i % 2, "d": 7},) for i in range(4)))
    assert parameters(runs, {}) == ["a", "c"]


def test_the_best_mean_is_first_in_either_direction(seeds):
    runs, plan = frame(sweep_runs(seeds)), read_json(seeds / "sweep.json")
    assert [s.values["optimizer.lr"] for s in settings(runs, plan)] == [0.003, 0.001]
    plan["objectives"] = {"val/loss": "max"}
    assert [s.values["optimizer.lr"] for s in settings(runs, plan)] == [0.001, 0.003]


def test_exact_repetitions_count_once(make_sweep):
    (setting,) = of_sweep(make_sweep([(1.0, {}), (1.0, {}), (float("nan"), {"seed": 1})]))
    assert (setting.estimate("val/loss").n, setting.repeated) == (1, 2)


def test_logarithmic_scales():
    plan = {"space": {"optimizer.lr": "tag(log,interval(1e-4,1))", "+model.x": "tag(log, int(interval(1,9)))"}}
    assert is_log("optimizer.lr", [0.1, 0.2], plan) and is_log("model.x", [1, 2], plan)
    uniform = {"space": {"model.dropout": "interval(0,1)", "n": "range(1,30)"}}
    assert not is_log("model.dropout", [0.01, 0.1, 1.0], uniform) and not is_log("n", [1, 10, 20], uniform)
    assert is_log("batch", [1, 10, 100], {}) and not is_log("batch", [16, 32, 64], {})
    assert not is_log("optimizer.lr", [0.0, 0.1], plan) and not is_log("flag", [True, False], {})


def test_names_for_people():
    assert short(["optimizer.lr", "model.lr", "data.fold"]) == {
        "optimizer.lr": "optimizer.lr",
        "model.lr": "model.lr",
        "data.fold": "fold",
    }
    assert [text(v) for v in (0.00123456, None, True, "x", 3)] == ["0.001235", "null", "true", "x", "3"]


def test_any_runs_are_grouped_without_a_plan(make_run, tmp_path):
    for seed in (0, 1):
        for lr in (0.1, 0.2):
            make_run(tmp_path / f"{seed}-{lr}", lr, {"seed": seed, "optimizer.lr": lr})
    found = settings(frame(matching_runs(str(tmp_path / "*"))), {})
    assert [(s.values, len(s.scored)) for s in found] == [({"optimizer.lr": 0.1}, 2), ({"optimizer.lr": 0.2}, 2)]


@pytest.mark.parametrize("value", [None, "text", float("inf"), [1]])
def test_odd_values_of_metrics_are_no_values(value):
    runs = table(({"seed": 0},), ({"seed": 1},))
    runs.at[0, "val/loss"] = value
    (setting,) = settings(runs, OBJECTIVES)
    assert [*setting.scored] == [(1, None)] and setting.repeated == 1


def test_caveats_name_what_was_validated_on_other_data(make_sweep):
    sweep = make_sweep([(1.0, {"data.source.name": name}) for name in ("wine", "digits")])
    analysis = Analysis("", sweep, frame(sweep_runs(sweep)))
    assert analysis.other_data == ["data.source.name"] and analysis.comparison is None
