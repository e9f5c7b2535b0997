"""What a person sees of a sweep: lines in a pipe, a table that fits a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from quartet.run import Run
from quartet.sweeps.display import Display, progress, short
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
        "job 2 is past its time limit of 1:30: stopping it",
        "job 2 stopped at its time limit of 1.5 min; starting it again, from its last checkpoint if it has one",
        "job 3 failed: no (1:02:05)",
        *(f"  | line {i}" for i in range(2, 11)),
        "  | ValueError: no",
        "  all of it: 3.log",
    ]


@pytest.mark.parametrize("width", [30, 80, 200])
def test_the_table(job, capsys, monkeypatch, width):
    """Rows are the running jobs with what they have logged last, then the counts and the best so far; all of it fits."""
    monkeypatch.setattr("rich._console", None)  # the one that rich keeps has the width of its first use
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LINES", "4")
    shown = []
    monkeypatch.setattr("rich.live.Live.update", lambda self, content, **_: shown.append(content))
    with Display(total=9, live=True) as display:
        display.started(job(1))
        display.ended(JobResult(job(1), "completed", seconds=2), "completed", "  val/loss 0.1", best=True)
        for number in (2, 3, 4):
            display.started(job(number))
        table = shown[-1]
    console = Console(width=width, height=4)
    with console.capture() as capture:
        console.print(table)
    *rows, summary = capture.get().splitlines()
    assert [row.split()[:3] for row in rows] == [["job", "2", "lr=0.2"], ["job", "3", "lr=0.3"]]
    assert all(row.rstrip().endswith(" 0.0 s") and len(row) <= width for row in (*rows, "x 0.0 s"))
    if width >= 80:
        assert all(PROGRESS in row for row in rows)
        assert summary.rstrip() == "1 of 9 ended · 1 completed · 3 running · best: job 1  val/loss 0.1"
    assert "job 1 completed  val/loss 0.1 (best so far) (2.0 s, lr=0.1)" in capsys.readouterr().out.replace("\n", "")


def test_progress_is_read_from_the_metrics_of_the_run(job, tmp_path):
    assert progress(job(1)) == PROGRESS
    assert progress(Job(9, Run(tmp_path / "9"))) == ""


def test_short_names():
    words = "optimizer.lr=0.1 +data.source.x=conf/a.b model=mlp data.path=x.y=z"
    assert short(words) == "lr=0.1 x=conf/a.b model=mlp path=x.y=z"
