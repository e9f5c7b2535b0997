"""What a person sees of a sweep: lines in a pipe, a table that fits a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from quartet.sweeps.child import Job
from quartet.sweeps.display import Display, clip, short, table, whole_parts
from quartet.sweeps.pool import Ending

PROGRESS = "epoch 33/60   55%  train/loss 0.1196  val/loss 0.03222  4,513 samples/s  elapsed 0:06  left 0:05"


def job(number: int) -> Job:
    return Job(number, ("model=mlp", f"optimizer.lr=0.{number}"), f"optimizer.lr=0.{number}")


@pytest.fixture
def log(tmp_path) -> Path:
    """A log of twelve lines; of the progress bar in it the last state is a line."""
    path = tmp_path / "3.log"
    path.write_text("".join(f"line {i}\n" for i in range(11)) + "half\r\x1b[31mValueError\x1b[0m: no\n")
    return path


def test_plain_lines(log, capsys, monkeypatch):
    """One line for each start and end, the last ten lines of a failed job's log; nothing but text."""
    monkeypatch.chdir(log.parent)
    with Display(total=3, live=False) as display:
        for number in (1, 2, 3, 4):
            display.started(job(number), log)
        display.tick()
        display.ended(Ending(job(1), "returned", "completed", seconds=12.31), "completed  val/loss 0.1 (best so far)")
        display.overdue(job(2), 90)
        display.retried(Ending(job(2), "timeout", "stopped at its time limit of 1.5 min"))
        display.started(job(2), log)
        display.ended(Ending(job(2), "returned", "completed", seconds=100, attempts=2), "completed")
        display.ended(Ending(job(3), "error", "no", seconds=3725, log=log), "failed: no")
        display.ended(Ending(job(4), "stopped", "stopped with the sweep", seconds=0.04), "stopped, to go on")
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        *(f"job {number} started: optimizer.lr=0.{number}" for number in (1, 2, 3, 4)),
        "job 1 completed  val/loss 0.1 (best so far) (12.3 s)",
        "job 2 completed (1:40, 2 attempts)",
        "job 4 stopped, to go on (0.0 s)",
    ]
    assert err.splitlines() == [
        "job 2 is past its time limit of 1.5 min: stopping it",
        "job 2 stopped at its time limit of 1.5 min; starting it again, from its last checkpoint if it has one",
        "job 3 failed: no (1:02:05)",
        *(f"  | line {i}" for i in range(2, 11)),
        "  | ValueError: no",
        "  all of it: 3.log",
    ]


def test_the_table(log, capsys, monkeypatch):
    """Rows are the running jobs with their last line of progress, then the counts and the best so far."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "4")
    with Display(total=9, live=True) as display:
        display.started(job(1), log)
        display.ended(Ending(job(1), "returned", "completed", seconds=2), "completed  val/loss 0.1 (best so far)")
        for number in (2, 3, 4):
            display.started(job(number), log)
        log.write_text(f"{PROGRESS}\nsomething else\n")
        *rows, summary = display._table().plain.splitlines()
    assert rows == [
        f"job {n}  lr=0.{n}  epoch 33/60  55%  train/loss 0.1196                         0.0 s" for n in (2, 3)
    ]
    assert summary == "1 of 9 ended · 1 completed · 3 running · best: job 1  val/loss 0.1"
    assert "job 1 completed  val/loss 0.1 (best so far) (2.0 s, lr=0.1)" in capsys.readouterr().out


@pytest.mark.parametrize("width", [0, 1, 10, 40, 80, 200])
def test_lines_of_the_table_fit(width):
    rows = [("job 7", "optimizer.lr=0.001 " * 5, PROGRESS, "1:04:09"), ("job 12", "x=1", "", "3.0 s")]
    assert all(len(line) <= width for line in table(rows, width))
    assert table([], width) == []


def test_clipping():
    assert [clip("optimizer", n) for n in (9, 5, 1, 0)] == ["optimizer", "opti…", "…", ""]
    assert whole_parts(PROGRESS, 40) == "epoch 33/60  55%  train/loss 0.1196"
    assert whole_parts("step  120/2400    5%  train/loss 3.2", 22) == "step  120/2400  5%"
    assert whole_parts(PROGRESS, 3) == ""


def test_short_names():
    assert (
        short("optimizer.lr=0.1 +data.recipe.x=conf/a.b model=mlp data.path=x.y=z")
        == "lr=0.1 x=conf/a.b model=mlp path=x.y=z"
    )
