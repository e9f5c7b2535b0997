import os
import shlex

import pytest

from quartet.report.runs import curve, frame, matching_runs, objectives, sweep_runs
from quartet.run import find_sweep


def records(sweep):
    return frame(sweep_runs(sweep))


def test_latest_is_the_newest_sweep(make_sweep):
    for age, name in enumerate(("newest", "older", "oldest")):
        marker = make_sweep([(1.0,)], name=name) / "sweep.json"
        os.utime(marker, (1e9 - age, 1e9 - age))
    assert find_sweep("latest").name == "newest"


def test_a_sweep_from_before_sweep_json_is_one_too(make_run, outputs):
    make_run(outputs / "sweeps" / "old" / "0")
    assert find_sweep("latest").name == "old"
    assert objectives(records(find_sweep("latest")), {}) == {"val/loss": "min"}


def test_no_sweep_at_all():
    with pytest.raises(FileNotFoundError, match=r"no sweep below .*sweeps; start one with"):
        find_sweep("latest")


def test_no_such_sweep(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"sweep=\S+ is not a sweep .*try sweep=latest"):
        find_sweep(str(tmp_path))


def test_a_glob_that_matches_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"runs=\S+ matches no run directory"):
        matching_runs(str(tmp_path / "*"))


def test_runs_for_debugging_are_left_out_and_a_folder_called_debug_is_none(make_run, outputs, tmp_path):
    for place in (outputs / "mlp" / "1", outputs / "debug" / "mlp" / "2", tmp_path / "debug" / "3"):
        make_run(place)
    assert [path.name for path in matching_runs(str(outputs / "**"))] == ["1"]
    assert len(matching_runs(str(tmp_path / "debug" / "*"))) == 1


def test_runs_with_different_monitors(make_run, tmp_path):
    make_run(tmp_path / "0")
    make_run(tmp_path / "1", 1.0, {"monitor.metric": "val/accuracy", "monitor.mode": "max"})
    with pytest.raises(
        ValueError, match=r"0 monitors val/loss \(min\); 1 monitors val/accuracy \(max\); name runs with"
    ):
        objectives(frame(matching_runs(str(tmp_path / "*"))), {})


def test_trials_without_a_directory_are_told(make_sweep):
    sweep = make_sweep([(1.0,), (2.0,)])
    (sweep / "1").rename(sweep / "3")
    (sweep / "logs").mkdir()
    (sweep / "logs" / "4.log").write_text("reading\n\nerror: optimizer.lrr: no such key\n")
    statuses = ["completed", "missing", "missing", "completed", "missing"]
    assert records(sweep)["status"].to_dict() == {str(n): status for n, status in enumerate(statuses)}
    assert records(sweep)["reason"]["4"] == "error: optimizer.lrr: no such key"


@pytest.mark.parametrize("journal", ["", "{}\n" * 9])
def test_a_folder_named_by_a_date_is_no_trial(make_sweep, journal):
    sweep = make_sweep([(1.0,), (2.0,)])
    (sweep / "journal.log").write_text(journal)
    (sweep / "20261125").mkdir()
    (sweep / ("9" * 20)).mkdir()
    assert [*records(sweep).index] == ["0", "1"]


def test_why_a_run_failed(make_sweep):
    sweep = make_sweep([(None, {}, "failed")])
    (sweep / "0" / "error.txt").write_text("Traceback\n  line\nValueError: the loss is not finite\n")
    assert records(sweep)["reason"]["0"] == "ValueError: the loss is not finite"


@pytest.mark.parametrize("name, text", [("config.yaml", "{"), ("config.yaml", "a: ${b}"), ("config.yaml", "[1]")])
def test_a_damaged_config_is_told(make_sweep, name, text):
    sweep = make_sweep([(1.0,)])
    (sweep / "0" / name).write_text(text)
    run = records(sweep).loc["0"]
    assert run["status"] == "damaged" and "config.yaml" in run["reason"]


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_a_damaged_result_is_that_of_a_run_without_an_end(make_sweep, text):
    sweep = make_sweep([(1.0,)])
    (sweep / "0" / "result.json").write_text(text)
    assert records(sweep)["status"]["0"] == "unfinished"


def test_the_command_is_for_a_shell(make_sweep):
    sweep = make_sweep([(1.0, {"model.hidden": "[8, 8]", "run.name": "it's", "data.path": "'$HOME'"})])
    command = records(sweep)["command"]["0"]
    words = ["model=mlp", "model.hidden=[8, 8]", "run.name=it's", "data.path='$HOME'"]
    assert command is not None and shlex.split(command) == ["python", "scripts/train.py", *words]
    assert '"run.name=it\'s"' in command and '"data.path' not in command


def test_a_job_of_a_sweep_without_its_overrides_has_no_command(make_sweep):
    sweep = make_sweep([(1.0,), (1.0,)])
    (sweep / "0" / "trial.json").unlink()
    (sweep / "1" / "trial.json").unlink()
    (sweep / "1" / "environment.json").write_text('{"command": ["train.py", "-m", "seed=0,1"]}')
    assert [*records(sweep)["command"]] == ["python scripts/train.py model=mlp", None]


def test_curves_have_steps_and_finite_values(make_sweep):
    sweep = make_sweep([(1.0, {})])
    (sweep / "0" / "metrics.csv").write_text("step,val/loss\n4,\n9,0.5\n19,nan\n29,0.25\n")
    (run,) = records(sweep).to_dict("records")
    assert curve(run, "val/loss").to_dict() == {10: 0.5, 30: 0.25}
    assert curve(run, "val/other").empty


def test_values_keep_their_types_beside_runs_that_lack_them(make_sweep):
    """A table would make 32 beside nothing 32.0; null is not the same as no such key."""
    sweep = make_sweep([(1.0, {"model.width": 32}), (1.0, {"model.width": None}), (1.0, {})])
    one, null, missing = records(sweep)["config.model.width"]
    assert isinstance(one, int) and null is None and missing != missing


def test_no_runs_are_a_table_too():
    assert frame([]).empty and {"run", "status", "seed"} <= {*frame([])}
