"""The study in a sweep's directory: every trial is proposed once, has one end, and a killed process loses none."""

from __future__ import annotations

import json
import os
import pickle
import threading
from dataclasses import asdict

import pytest

from quartet.sweeps import study as studies
from quartet.sweeps.plan import FILE, JOURNAL, Plan
from quartet.sweeps.space import parse
from quartet.sweeps.study import Reporter, Study, journal_lock

SETTINGS = {
    "sampler": "tpe", "pruner": None, "min_validations": 1, "reduction_factor": 3, "n_trials": 6, "max_minutes": None,
    "seed": 0, "start": [], "objectives": None, "max_failure_rate": 0.0, "n_jobs": 1,
}  # fmt: skip
MONITOR = {"metric": "val/loss", "mode": "min"}
WORDS = ["lr=tag(log,interval(1e-4,1))", "dropout=0,0.1,0.3", "batch=range(16,65,16)"]


def make_plan(words=WORDS, **settings) -> Plan:
    space, fixed = parse({}, words, None)
    return Plan.make({**SETTINGS, **settings}, words, space, fixed, MONITOR)


def open_study(directory, words=WORDS, **settings) -> Study:
    plan = make_plan(words, **settings)
    (directory / FILE).write_text(json.dumps(asdict(plan)))
    return Study(directory, plan, parse({}, words, None)[0])


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "gp", "cma_es"])
def test_every_sampler_proposes_points_inside_the_space(tmp_path, sampler):
    words = WORDS if sampler in ("tpe", "random", "gp") else ["lr=tag(log,interval(1e-4,1))", "batch=range(16,65,16)"]
    study = open_study(tmp_path, words, sampler=sampler)
    values = {}
    for _ in range(4):
        number, proposal = study.ask()
        chosen = dict(word.split("=") for word in proposal)
        values[number] = float(chosen["lr"])
        assert 1e-4 <= float(chosen["lr"]) <= 1 and int(chosen["batch"]) in (16, 32, 48, 64)
        assert chosen.get("dropout", "0") in ("0", "0.1", "0.3")
        study.tell(number, "completed", [values[number]])
    assert study.best() == min(values, key=lambda number: values[number])


def test_a_grid_is_proposed_in_order_after_the_known_points(tmp_path):
    study = open_study(tmp_path, ["a=1,2", "b=x,y"], sampler="grid", n_trials=None, start=[{"a": 2, "b": "x"}])
    assert [study.ask()[1] for _ in range(3)] == [["a=2", "b=x"], ["a=1", "b=x"], ["a=1", "b=y"]]


def test_what_was_proposed_and_has_no_end_is_found_again_with_the_same_values(tmp_path):
    study = open_study(tmp_path)
    proposals = dict(study.ask() for _ in range(4))
    study.tell(1, "completed", [0.5])
    study.tell(2, "failed")
    again = open_study(tmp_path)
    assert dict(again.unfinished()) == {0: proposals[0], 3: proposals[3]}
    assert again.ask()[0] == 4
    assert again.states() == {0: "running", 1: "complete", 2: "fail", 3: "running", 4: "running"}


def test_a_sweep_that_goes_on_does_not_draw_the_same_points_again(tmp_path):
    proposals = []
    for _ in range(4):
        number, proposal = open_study(tmp_path).ask()
        open_study(tmp_path).tell(number, "completed", [1.0])
        proposals.append(tuple(proposal))
    assert len(set(proposals)) == 4


@pytest.mark.parametrize("cut", range(1, 11))
def test_a_journal_cut_off_anywhere_is_read_on(tmp_path, cut):
    """A killed process may leave half a line, or a trial with half of its values."""
    study = open_study(tmp_path)
    number, _ = study.ask()
    study.tell(number, "completed", [0.5])
    study.ask()
    journal = tmp_path / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-cut]) + lines[-cut][: len(lines[-cut]) // 2])
    again = open_study(tmp_path)
    numbers = [number for number, _ in again.unfinished()]
    numbers += [again.ask()[0] for _ in range(4 - again.n_trials)]
    assert sorted({*numbers, *again.states()}) == [0, 1, 2, 3]
    assert all(len(proposal) == 3 for _, proposal in open_study(tmp_path).unfinished())


def test_a_hopeless_run_is_told_so_and_a_good_one_is_not(tmp_path):
    study = open_study(tmp_path, pruner="asha", min_validations=2)
    for value in (0.1, 0.2, 0.9):
        number, _ = study.ask()
        reporter = Reporter(tmp_path, number)
        assert not reporter.should_prune(value, 1), "not before min_validations"
        assert reporter.should_prune(value, 2) == (value > 0.1)
        study.tell(number, "pruned" if value > 0.1 else "completed", [value])
    assert study.states() == {0: "complete", 1: "pruned", 2: "pruned"} and study.best() == 0


def test_a_run_of_a_trial_that_has_ended_is_left_alone(tmp_path):
    study = open_study(tmp_path, pruner="asha")
    for value in (0.1, 0.9):
        number, _ = study.ask()
        study.tell(number, "completed", [value])
    assert not Reporter(tmp_path, 1).should_prune(100.0, 1)
    assert not Reporter(tmp_path, 7).should_prune(100.0, 1), "no such trial"


def test_a_line_that_a_full_disk_has_cut_is_taken_back_before_the_next_one(tmp_path):
    """While the sweep goes on: jobs write too, and there may be room again at once."""
    study = open_study(tmp_path)
    number, _ = study.ask()
    with (tmp_path / JOURNAL).open("ab") as journal:
        journal.write(b'{"op_code":7,"worker_id":"4e2b2435-9a20-44a5-b782-0b')
    study.tell(number, "completed", [0.5])
    assert study.ask()[0] == 1 and study.states() == {0: "complete", 1: "running"}
    assert open_study(tmp_path).states() == study.states()


def test_a_line_that_somebody_is_writing_is_left_alone(tmp_path):
    """Jobs open the study while others write: only who holds the lock knows that an unfinished line stays unfinished."""
    open_study(tmp_path).ask()
    lock = journal_lock(tmp_path / JOURNAL)
    lock.acquire()
    with (tmp_path / JOURNAL).open("ab") as journal:
        journal.write(b'{"op_code":7,"half')
        journal.flush()
        opening = threading.Thread(target=Reporter, args=(tmp_path, 0))
        opening.start()
        opening.join(0.5)
        assert (tmp_path / JOURNAL).read_bytes().endswith(b"half"), (
            "another process has cut a line that is being written"
        )
        os.truncate(tmp_path / JOURNAL, (tmp_path / JOURNAL).stat().st_size - len(b'{"op_code":7,"half'))
    lock.release()
    opening.join(30)
    assert not opening.is_alive()


def test_a_journal_of_one_long_cut_line_is_emptied_and_none_is_harmed(tmp_path):
    (tmp_path / JOURNAL).write_bytes(b"x" * 200_000)
    assert open_study(tmp_path).n_trials == 0


@pytest.mark.parametrize("damage", [b"{}\n", b"\0\0\0\n", b"\xff\xfe\0\n", b'{"op_code": 4}\n', b"[" * 5000 + b"\n"])
def test_a_journal_damaged_in_the_middle_is_named(tmp_path, damage):
    study = open_study(tmp_path)
    study.ask()
    journal = tmp_path / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:2], damage, *lines[2:]]))
    with pytest.raises(ValueError, match=r"journal\.log is damaged .*; restore the file from a copy") as error:
        open_study(tmp_path)
    assert "\n" not in str(error.value)


# what a stranger's sweep holds


class Bomb:
    def __init__(self, harm):
        self.harm = harm

    def __reduce__(self):
        return os.system, (f"touch {self.harm}",)


def cma_study(directory, state: str):
    """A study of CMA-ES whose journal holds `state` in place of the state of its evolution."""
    from optuna.trial import create_trial

    words = ["lr=tag(log,interval(1e-4,1))", "batch=range(16,65,16)"]
    study = open_study(directory, words, sampler="cma_es")
    distributions = {d.key: d.distribution(enumerated=False) for d in study.space}
    in_journal = studies.open_study(directory, study.plan, create=False)
    for number in range(3):
        point = {"lr": 0.1, "batch": 16 * (number + 1)}
        attributes = {"cma:optimizer:0": state} if number == 2 else {}
        in_journal.add_trial(
            create_trial(params=point, distributions=distributions, value=0.5, system_attrs=attributes)
        )
    return study


def test_a_pickle_in_place_of_the_state_of_cma_es_is_not_executed(tmp_path):
    study = cma_study(tmp_path, pickle.dumps(Bomb(tmp_path / "harm")).hex())
    with pytest.raises(ValueError, match=r"journal\.log holds no state of CMA-ES .*system is not one of its parts"):
        study.ask()
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("state", ["zz", "", pickle.dumps(5).hex(), pickle.dumps([1]).hex()])
def test_a_damaged_state_of_cma_es_is_named(tmp_path, state):
    with pytest.raises(ValueError, match=r"journal\.log holds no state of CMA-ES"):
        cma_study(tmp_path, state).ask()


def test_cma_es_goes_on_with_its_evolution(tmp_path):
    """The state that is read back is Optuna's: a study that is opened anew each time learns as one that is not."""
    words = ["x=interval(-5.0,5.0)", "y=interval(-5.0,5.0)"]
    values = []
    for _ in range(60):
        study = open_study(tmp_path, words, sampler="cma_es", n_trials=60)
        number, proposal = study.ask()
        x, y = (float(word.partition("=")[2]) for word in proposal)
        values.append((x - 2) ** 2 + (y + 3) ** 2)
        study.tell(number, "completed", [values[-1]])
    assert sum(values[-10:]) < sum(values[:10]) / 4


# plans


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        (["model=mlp"], {}, "sweep.sampler=tpe has nothing to vary"),
        (WORDS, {"n_trials": None}, "sweep.sampler=tpe has no end of its own; give sweep.n_trials"),
        (WORDS, {"sampler": "grid"}, "lr=tag(log,interval(1e-4,1)) has infinitely many"),
        (WORDS, {"sampler": "cma_es"}, "sweep.sampler=cma_es knows numbers only, dropout=0,0.1,0.3 is a choice"),
        (WORDS[:1], {"sampler": "cma_es"}, "needs two parameters or more"),
        (WORDS, {"sampler": "qmc"}, "sweep.sampler=qmc knows numbers only"),
        (WORDS, {"sampler": "tpo"}, "sweep.sampler must be one of grid, tpe"),
        (WORDS, {"pruner": "axe"}, "sweep.pruner must be one of asha, hyperband, median or null, not 'axe'"),
        (WORDS, {"n_trials": 0}, "sweep.n_trials must be an integer of at least 1 or null, not 0"),
        (WORDS, {"n_jobs": 0}, "sweep.n_jobs must be an integer of at least 1"),
        (WORDS, {"max_minutes": -1}, "sweep.max_minutes must be a number above 0"),
        (WORDS, {"max_failure_rate": 2}, "sweep.max_failure_rate must be a number from 0 to 1, not 2"),
        (WORDS, {"start": {"lr": 1}}, "sweep.start must be a list of points"),
        (WORDS, {"objectives": {"test/loss": "min"}}, "the objective test/loss is not a val/ metric"),
        (WORDS, {"objectives": {"val/loss": "low"}}, "sweep.objectives must name metrics with min or max"),
        (
            WORDS,
            {"objectives": {"val/loss": "min", "val/f1": "max"}, "pruner": "asha"},
            "sweep.pruner=asha compares one objective, not val/loss, val/f1",
        ),
    ],
)
def test_a_mistake_in_a_plan_is_one_line(words, settings, message):
    with pytest.raises(ValueError) as error:
        make_plan(words, **settings)
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


def test_another_sweep_is_recognised_and_another_budget_is_the_same_sweep():
    plan = make_plan([*WORDS, "model=mlp"])
    assert not list(plan.differences(make_plan([*WORDS, "model=mlp"], n_trials=60)))
    other = make_plan(["lr=interval(0,1)", *WORDS[1:], "model=rnn"], pruner="asha")
    assert list(plan.differences(other)) == [
        "lr was tag(log,interval(1e-4,1)), is interval(0,1)",
        "model=mlp was given, is not",
        "model=rnn is given, was not",
        "sweep.pruner was None, is asha",
    ]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"space": {}}'])
def test_a_damaged_plan(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ValueError, match="is damaged"):
        Plan.read(tmp_path)


def test_no_plan(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a sweep"):
        Plan.read(tmp_path)
