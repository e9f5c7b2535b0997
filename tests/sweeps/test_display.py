"""What a person sees of a sweep: lines in a pipe, a table that fits a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from quartet.run import Run
from quartet.sweeps.display import Display, clip, progress, short, table, whole_parts
from quartet.sweeps.jobs import Job, JobResult

PROGRESS = "step 1,200  train/loss 0.1196  val/loss 0.03222"


@pytest.fixture
def job(tmp_path):
    """job(3) -> a job with a log of twelve lines and a run that has logged a step."""

    def make(number: int) -> Job:
        directory = tmp_path / str(number)
        directory.mkdir(exist_ok=True)
        rows = "step,train/loss,val/loss\n1189,0.2,0.03222\n1199,0.1196,\n"
        (directory / "metrics.csv").write_text(rows)
        return Job(number, Run(directory), f"optimizer.lr=0.{number}")

    return make


@pytest.fixture
def log(tmp_path) -> Path:
    path = tmp_path / "3.log"
    path.write_text("".join(f"line {i}\n" for i in range(11)) + "half\r\x1b[31mValueError\x1b[0m: no\n")
    return path


def test_plain_lines(job, log, capsys, monkeypatch):
    """One line for each start and end, the last ten lines of a failed job's log; nothing but text."""
    monkeypatch.chdir(log.parent)
    with Display(total=3, live=False) as display:
        for number in (1, 2, 3, 4):
            display.started(job(number), log)
        display.tick()
        display.ended(JobResult(job(1), "completed", seconds=12.31), "completed", "  val/loss 0.1", best=True)
        display.overdue(job(2), 90)
        display.retried(JobResult(job(2), "timeout", "stopped at its time limit of 1.5 min"))
        display.started(job(2), log)
        display.ended(JobResult(job(2), "completed", seconds=100, attempts=2), "completed", "")
        display.ended(JobResult(job(3), "failed", "no", seconds=3725, log=log), "failed", ": no")
        display.ended(JobResult(job(4), "stopped", seconds=0.04), "stopped", ", to begin again")
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        *(f"job {number} started: optimizer.lr=0.{number}" for number in (1, 2, 3, 4)),
        "job 1 completed  val/loss 0.1 (best so far) (12.3 s)",
        "job 2 completed (1:40, 2 attempts)",
        "job 4 stopped, to begin again (0.0 s)",
    ]
    assert err.splitlines() == [
        "job 2 is past its time limit of 1.5 min: stopping it",
        "job 2 stopped at its time limit of 1.5 min; starting it again, from its last checkpoint if it has one",
        "job 3 failed: no (1:02:05)",
        *(f"  | line {i}" for i in range(2, 11)),
        "  | ValueError: no",
        "  all of it: 3.log",
    ]


def test_the_table(job, capsys, monkeypatch):
    """Rows are the running jobs with what they have logged last, then the counts and the best so far."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "4")
    shown = []
    with Display(total=9, live=True) as display:
        monkeypatch.setattr(display._live, "update", lambda text, **_: shown.append(str(text)))
        display.started(job(1))
        display.ended(JobResult(job(1), "completed", seconds=2), "completed", "  val/loss 0.1", best=True)
        for number in (2, 3, 4):
            display.started(job(number))
        *rows, summary = shown[-1].splitlines()
    assert [row.split("  ", 2)[:2] for row in rows] == [["job 2", "lr=0.2"], ["job 3", "lr=0.3"]]
    assert all(PROGRESS in row and row.endswith(" 0.0 s") and len(row) <= 80 for row in rows)
    assert summary == "1 of 9 ended · 1 completed · 3 running · best: job 1  val/loss 0.1"
    assert "job 1 completed  val/loss 0.1 (best so far) (2.0 s, lr=0.1)" in capsys.readouterr().out


def test_progress_is_read_from_the_metrics_of_the_run(job, tmp_path):
    assert progress(job(1)) == PROGRESS
    assert progress(Job(9, Run(tmp_path / "9"))) == ""


@pytest.mark.parametrize("width", [0, 1, 10, 40, 80, 200])
def test_lines_of_the_table_fit(width):
    rows = [("job 7", "optimizer.lr=0.001 " * 5, PROGRESS, "1:04:09"), ("job 12", "x=1", "", "3.0 s")]
    assert all(len(line) <= width for line in table(rows, width))
    assert table([], width) == []


def test_clipping():
    assert [clip("optimizer", n) for n in (9, 5, 1, 0)] == ["optimizer", "opti…", "…", ""]
    assert whole_parts(PROGRESS, 40) == "step 1,200  train/loss 0.1196"
    assert whole_parts(PROGRESS, 3) == ""


def test_short_names():
    words = "optimizer.lr=0.1 +data.source.x=conf/a.b model=mlp data.path=x.y=z"
    assert short(words) == "lr=0.1 x=conf/a.b model=mlp path=x.y=z"
