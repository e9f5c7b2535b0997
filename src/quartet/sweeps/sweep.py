"""A sweep from its command line to its report: jobs are proposed, launched and judged until the plan is fulfilled.

It can be killed at any moment and goes on from its directory: the journal says which trials have no end, their run
directories say how far they came.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from quartet.cli import CONF, is_group, override_problems, strange_options
from quartet.config import check_pairing, settle_monitor, upgrade
from quartet.interruption import Interrupted
from quartet.run import Run, read_metrics, refuse_links_out
from quartet.say import printable, say
from quartet.sweeps.batches import launch_batches
from quartet.sweeps.child import Job
from quartet.sweeps.locks import JOBS, SWEEP, sweep_lock
from quartet.sweeps.plan import FILE, JOURNAL, Plan
from quartet.sweeps.pool import Ending, described
from quartet.sweeps.space import Dimension, parse
from quartet.sweeps.study import Study
from quartet.typed import argument, command, tensorboard
from quartet.workers import describe, revive

SAME_MISTAKE = 3  # jobs that fail alike before anything is trained, and the sweep gives up
LOCKS = (JOBS, SWEEP, f".{JOURNAL}.lock")
OURS = ("sweep=", "sweep.", "+sweep.")  # what jobs need not know


def sweep(loader: Any, launcher: Any, config: DictConfig, arguments: Sequence[str]) -> int | None:
    """Run or continue the sweep; returns the number of the best run. Exits with 1 where too many runs failed."""
    settings: Any = OmegaConf.to_container(config.sweep, resolve=True)
    space, fixed = parse(settings["params"], [word for word in arguments if not word.startswith(OURS)], loader)
    raise_problems(filter(None, (dimension.problem() for dimension in space)))
    raise_problems(_param_problems(settings["params"]))
    first = _composed(loader, config, [*fixed, *_first_point(space)])
    upgrade(first)
    choices = [f"{d.key}={','.join(d.values)}" for d in space if d.values and (CONF / d.key).is_dir()]
    if choices:  # they may fit each other in some of the jobs, but they have to exist
        raise_problems(override_problems("train", ["-m", *choices]))
    else:
        check_pairing(first)
    settle_monitor(first)
    plan = Plan.make(settings, _command(config), space, fixed, first.monitor)
    directory = Path(config.hydra.sweep.dir).absolute()
    with _directory(directory, plan, alone=not getattr(launcher, "adopts", False)) as made:
        return Sweep(directory, plan, space, launcher, settings, made=made).run()


def _param_problems(params: dict[str, Any]) -> Iterator[str]:
    """`sweep.params` may come from the file of a sweep that goes on: Hydra must not read configs from elsewhere for it."""
    for key, value in params.items():
        name = str(key).lstrip("+~")
        if name.startswith("hydra") or "@" in name or ".." in name:
            yield f"sweep.params: {key} is no setting of a run; vary keys such as optimizer.lr, or groups such as model"
        elif is_group(name):
            strange = strange_options(name, str(value))
            yield from (f"sweep.params: {name}={word} is no option of {name}" for word in strange)


def _composed(loader: Any, config: DictConfig, words: list[str]) -> DictConfig:
    """A job's config; here a misspelt key is found, on the command line or in `sweep.params`."""
    try:
        return loader.load_sweep_config(config, words)
    except HydraException:
        raise_problems(override_problems("train", words))
        raise


def raise_problems(problems: Any) -> None:
    lines = list(problems)
    if lines:
        raise ValueError("\n".join(lines))


def _first_point(space: list[Dimension]) -> list[str]:
    return [f"{d.key}={d.values[0] if d.values else (int(d.low or 0) if d.whole else d.low)}" for d in space]


def _command(config: DictConfig) -> list[str]:
    """What was typed behind -m, without the directory: what a sweep that goes on is started with."""
    words = [*config.hydra.overrides.task, *config.hydra.overrides.hydra]
    return [word for word in words if not word.startswith(("hydra.mode=", "hydra.sweep.dir=", "sweep.resume="))]


@contextmanager
def _directory(directory: Path, plan: Plan, *, alone: bool) -> Iterator[bool]:
    """The sweep's own: a new one, or that of the same sweep before; yields whether it was made here.

    `alone`: runs that it has left must have ended.
    """
    known = (directory / FILE).exists()
    if known:
        refuse_links_out(directory, "sweep")
        raise_problems(_refusals(directory, plan))
    elif directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"hydra.sweep.dir={directory} is not empty and no sweep; name another directory")
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    with sweep_lock(directory, alone=alone):
        Run(directory).write(FILE, plan.as_data())
        yield made


def _refusals(directory: Path, plan: Plan) -> Iterator[str]:
    differences = list(Plan.read(directory).differences(plan))
    if differences:
        yield f"{directory} holds another sweep; give its own command again, or another hydra.sweep.dir. What differs:"
        yield from (f"  {line}" for line in differences)


class Sweep:
    """The state of a sweep that is going: what is to be done again, what failed, when it began."""

    def __init__(
        self,
        directory: Path,
        plan: Plan,
        space: list[Dimension],
        launcher: Any,
        settings: dict[str, Any],
        *,
        made: bool = False,
    ):
        self.directory, self.plan, self.launcher, self.settings = directory, plan, launcher, settings
        self.made = made  # the directory, by this process
        self.study = Study(directory, plan, space)
        self.again = [self._job(number, point) for number, point in self.study.unfinished()]
        self.began = time.monotonic()
        self.mistakes: list[str] = []  # messages of jobs that failed before they trained
        self.killed: list[Run] = []  # that could not write their own end

    def run(self) -> int | None:
        self._settle()
        self._introduce()
        try:
            self._launch()
        except (Interrupted, KeyboardInterrupt):
            done = len(self._ends())
            again = printable(command("train", "-m", argument("sweep.resume", self.directory)))
            print(f"\n{done} of {self.plan.n_trials} runs are finished; go on with: {again}", file=sys.stderr)
            raise
        self._conclude()
        return self.study.best()

    def _launch(self) -> None:
        first = self.next_job()
        if first is None:  # a sweep that is finished starts no process
            return
        self.again.insert(0, first)
        if hasattr(self.launcher, "stream"):
            self.launcher.stream(self.next_job, self.ended, total=self.plan.n_trials)
        else:
            launch_batches(self.launcher, self.next_job, self.ended, self.settings["n_jobs"])

    # jobs
    def next_job(self) -> Job | None:
        """What to run next; None where there is nothing more to begin."""
        if self._hopeless():
            return None
        if self.again:
            return self.again.pop(0)
        minutes = self.settings["max_minutes"]
        if minutes is not None and time.monotonic() - self.began > 60 * minutes:
            return None
        if self.study.n_trials >= self.plan.n_trials:
            return None
        return self._job(*self.study.ask())

    def _job(self, number: int, point: list[str]) -> Job:
        return Job(number, (*self.plan.fixed, *point), " ".join(map(_short, point)) or "defaults")

    def ended(self, ending: Ending) -> str:
        """Tell the study what came of a job; returns what there is to say about it."""
        run, number = Run(self.directory / str(ending.job.number)), ending.job.number
        status = run.status
        if ending.kind == "stopped" and status not in ("completed", "pruned"):
            return f"stopped, to {'go on from its last checkpoint' if run.last_checkpoint else 'begin again'}"
        if status == "pruned":
            self.study.tell(number, "pruned")
            return f"pruned after {run.read('result.json')['steps']:,} steps{self._value_text(run)}"
        values = self._values(run) if status == "completed" else None
        if values is not None:
            self.study.tell(number, "completed", values)
            return f"completed{self._value_text(run)}{' (best so far)' if self.study.best() == number else ''}"
        self.study.tell(number, "failed")
        return self._failed(run, ending, status)

    def _values(self, run: Run) -> list[float] | None:
        metrics = run.read("result.json")["metrics"]
        values = [metrics.get(name) for name in self.plan.objectives]
        return None if any(value is None or value != value for value in values) else values

    def _value_text(self, run: Run) -> str:
        metrics = run.read("result.json")["metrics"]
        known = [f"{name} {metrics[name]:.4g}" for name in self.plan.objectives if metrics.get(name) is not None]
        return "".join(f"  {text}" for text in known)

    def _failed(self, run: Run, ending: Ending, status: str) -> str:
        if status == "completed":
            return f"failed: its {' and '.join(self.plan.objectives)} is missing or no number"
        begun = (run.directory / "config.yaml").exists()
        if ending.error and "ValueError" in ending.error["types"] and not begun:
            self.mistakes.append(ending.error["message"])
        if status in ("unfinished", "interrupted"):
            self._note_failure(run, ending)
        return f"failed: {ending.message}"

    def _note_failure(self, run: Run, ending: Ending) -> None:
        """The end that a job could not write itself: it was killed, or it failed before it had a run."""
        run.directory.mkdir(exist_ok=True)
        known = best_logged(run, *next(iter(self.plan.objectives.items())))
        run.ended_badly(revive(ending.error) if ending.error else ChildProcessError(ending.message), **known)
        self.killed += [run] if (run.directory / "config.yaml").exists() else []
        run.write("trial.json", {"number": ending.job.number, "overrides": list(ending.job.overrides)})

    def _hopeless(self) -> bool:
        """Whether every job so far fails with the same mistake, before anything is trained, and that is not allowed."""
        if len(self.mistakes) < min(SAME_MISTAKE, self.plan.n_trials) or self.settings["max_failure_rate"] == 1:
            return False
        return len(self.mistakes) == len(self._ends()) and len(set(self.mistakes)) == 1

    def _ends(self) -> list[str]:
        return [state for state in self.study.states().values() if state not in ("running", "waiting")]

    # beginning and end
    def _settle(self) -> None:
        """Trials whose run came to its end while nobody could note it."""
        left = []
        for job in self.again:
            run = Run(self.directory / str(job.number))
            if run.status in ("completed", "pruned", "failed"):
                self.ended(Ending(job, "returned", "ended before"))
            else:
                left.append(job)
        self.again = left

    def _introduce(self) -> None:
        n, total = self.study.n_trials, self.plan.n_trials
        begun = f", {n - len(self.again)} of them finished before, {len(self.again)} to go on with" if n else ""
        what = f"{self.plan.sampler}{f' with {self.plan.pruner}' if self.plan.pruner else ''}"
        say(f"sweep of {total} runs ({what}){begun}: {self.directory}")

    def _conclude(self) -> None:
        if self._hopeless():
            if not any(self.directory.glob("*/config.yaml")):
                self._take_back()
            raise ValueError(f"{self.mistakes[0]}\nevery run of the sweep fails with this; it has stopped")
        self._list_killed()
        if self.settings["report"]:
            self._report()
        ends = self._ends()
        failed, rate = ends.count("fail"), self.settings["max_failure_rate"]
        if failed > rate * len(ends):
            print(f"error: {failed} of {len(ends)} runs failed, above sweep.max_failure_rate={rate}", file=sys.stderr)
            sys.exit(1)

    def _take_back(self) -> None:
        """What the sweep has written, except for the logs, which were named: so it is not the latest one."""
        with suppress(OSError):
            for number in self.study.states():
                folder = self.directory / str(number)
                for name in ("trial.json", "result.json", "error.txt"):
                    (folder / name).unlink(missing_ok=True)
                if folder.is_dir():
                    folder.rmdir()
            for name in (FILE, JOURNAL, *LOCKS):
                (self.directory / name).unlink(missing_ok=True)
            if self.made:
                self.directory.rmdir()

    def _list_killed(self) -> None:
        """In TensorBoard's HPARAMS, where runs that end by themselves are already."""
        if not self.killed:
            return
        from quartet.build import build_loggers, opened
        from quartet.train import write_hparams

        for run in self.killed:
            with suppress(ValueError):  # its config was not yet whole
                metrics = run.read("result.json")["metrics"]
                write_hparams(run, build_loggers(opened(run), run.directory), metrics, "failed")

    def _report(self) -> None:
        """Runs are worth more than what is said about them: a report that fails is told, and the sweep is none the worse."""
        from quartet.report import report_sweep

        try:
            summary = report_sweep(self.directory).summary
            curves = [f"curves: {tensorboard(self.directory)}"] if any(self.directory.glob("*/events.*")) else []
            print(printable("\n".join(["", summary, *curves]), keep="\n"), flush=True)
        except Exception as error:
            again = command("report", argument("sweep", self.directory))
            print(
                printable(f"error: no report ({described(describe(error))}); try again with: {again}"), file=sys.stderr
            )


def best_logged(run: Run, metric: str, mode: str) -> dict[str, Any]:
    """What a run that was killed had reached, from its metrics.csv: the parts of a result that are known."""
    rows = [row for row in read_metrics(run.directory / "metrics.csv") if row.get(metric) not in (None, "", "nan")]
    if not rows:
        return {}
    best = (min if mode == "min" else max)(rows, key=lambda row: float(row[metric]))
    metrics = {name: float(value) for name, value in best.items() if name and name.startswith("val/") and value}
    objective = {"name": metric, "value": metrics[metric]}
    return {"metrics": metrics, "objective": objective, "steps": int(rows[-1]["step"]) + 1}


def _short(word: str) -> str:
    """Four digits of a number are enough to read."""
    key, _, value = word.partition("=")
    return f"{key}={float(value):.4g}" if re.fullmatch(r"[\d.]{7,}(e-?\d+)?", value) else word
