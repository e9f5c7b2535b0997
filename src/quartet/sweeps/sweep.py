"""A sweep from its command line to its report: jobs are proposed, launched and judged until the plan is fulfilled.

It can be killed at any moment and goes on from its directory: the journal says which trials have no end, their run
directories say how far they came.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from quartet.cli import CONF, is_group, override_problems, strange_options
from quartet.config import check_pairing, settle_monitor, upgrade
from quartet.interruption import Interrupted
from quartet.run import Run, described, read_metrics, refuse_links_out
from quartet.say import printable, say
from quartet.sweeps.batches import run_in_batches
from quartet.sweeps.cluster import QUEUED
from quartet.sweeps.display import Display
from quartet.sweeps.jobs import Job, JobResult
from quartet.sweeps.plan import FILE, JOURNAL, Plan
from quartet.sweeps.space import Dimension, parse
from quartet.sweeps.study import Study
from quartet.typed import argument, command, tensorboard, user_path

SAME_MISTAKE = 3  # jobs that fail alike before anything is trained, and the sweep gives up
LOCK = ".sweep.lock"
OURS = ("sweep=", "sweep.", "+sweep.")  # what jobs need not know


def sweep(loader: Any, launcher: Any, config: DictConfig, arguments: Sequence[str]) -> int | None:
    """Run or continue the sweep; returns the number of the best run. Exits with 1 where too many runs failed."""
    if config.resume is not None:
        raise ValueError(f"resume={config.resume} goes on with a run as it was; leave out -m")
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
    with _directory(directory, plan) as made:
        return Sweep(directory, plan, space, launcher, settings, loader, config, made=made).run()


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
def _directory(directory: Path, plan: Plan) -> Iterator[bool]:
    """The sweep's own: a new one, or that of the same sweep before; yields whether it was made here.

    Raises BlockingIOError if another process works there.
    """
    if (directory / FILE).exists():
        refuse_links_out(directory, "sweep")
        raise_problems(_refusals(directory, plan))
    elif directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"hydra.sweep.dir={directory} is not empty and not a sweep; name another directory")
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(directory / LOCK, timeout=0):
            Run(directory).write(FILE, plan.as_data())
            yield made
    except Timeout as error:
        raise BlockingIOError(f"another process works on the sweep {directory}; stop that one first") from error


def _refusals(directory: Path, plan: Plan) -> Iterator[str]:
    differences = list(Plan.read(directory).differences(plan))
    if differences:
        yield f"{directory} holds another sweep; give its own command again, or another hydra.sweep.dir. What differs:"
        yield from (f"  {line}" for line in differences)


class Sweep:
    """A sweep that is running: proposes jobs, has them trained, judges what came of them."""

    def __init__(
        self,
        directory: Path,
        plan: Plan,
        space: list[Dimension],
        launcher: Any,
        settings: dict[str, Any],
        loader: Any,
        config: DictConfig,
        *,
        made: bool = False,
    ):
        self.directory, self.plan, self.launcher, self.settings = directory, plan, launcher, settings
        self.loader, self.config = loader, config  # of Hydra, to compose the jobs
        self.made = made  # the directory, by this process
        self.study = Study(directory, plan, space)
        self.began = time.monotonic()
        self.mistakes: list[str] = []  # messages of jobs that failed before they trained
        self.killed: list[Run] = []  # runs that could not write their own end
        self.display: Display | None = None

    def run(self) -> int | None:
        """Until the plan is fulfilled; the number of the best run. What a sweep before has left is finished first."""
        unfinished = []
        for number, point in self.study.unfinished():
            run = Run(self.directory / str(number))
            if run.status in ("completed", "pruned", "failed"):  # it ended while nobody could note it
                self._judge(JobResult(Job(number, run), "completed"))
            else:
                unfinished.append((number, point))
        n, total = self.study.n_trials, self.plan.n_trials
        begun = f", {n - len(unfinished)} of them finished before, {len(unfinished)} to resume" if n else ""
        pruner = f" with {self.plan.pruner}" if self.plan.pruner else ""
        say(f"sweep of {total} runs ({self.plan.sampler}{pruner}){begun}: {self.directory}")
        try:
            self._launch(self._jobs(unfinished))
        except (Interrupted, KeyboardInterrupt):
            again = printable(command("train", "-m", argument("sweep.resume", self.directory)))
            print(f"\n{len(self._ends())} of {total} runs are finished; resume with: {again}", file=sys.stderr)
            raise
        self._conclude()
        return self.study.best()

    def _launch(self, jobs: Iterator[Job]) -> None:
        first = next(jobs, None)
        if first is None:  # a sweep that is finished starts no process
            return
        jobs = itertools.chain([first], jobs)
        with Display(self.plan.n_trials) as self.display:
            if hasattr(self.launcher, "run"):
                self.launcher.run(jobs, self.ended, self.display)
            else:
                n_jobs = self.settings["n_jobs"]
                run_in_batches(self.launcher, n_jobs, jobs, self.ended, self.display)

    # jobs

    def _jobs(self, unfinished: list[tuple[int, list[str]]]) -> Iterator[Job]:
        """What to train next, until there is nothing more to begin."""
        waiting = iter(unfinished)
        while not self._is_hopeless():
            proposed = next(waiting, None)
            if proposed is None:
                minutes = self.settings["max_minutes"]
                is_late = minutes is not None and time.monotonic() - self.began > 60 * minutes
                if is_late or self.study.n_trials >= self.plan.n_trials:
                    return
                proposed = self.study.ask()
            number, point = proposed
            job = Job(number, Run(self.directory / str(number)), " ".join(map(_short, point)) or "defaults")
            words = [*self.plan.fixed, *point]
            try:
                job = job._replace(run=self._create(number, words))
            except (HydraException, ValueError, OSError) as error:  # its words do not fit each other
                message = "\n".join(override_problems("train", words)) or described(error)
                self._write_end(job.run, error)
                job.run.write("trial.json", {"number": number, "overrides": words})
                self.ended(JobResult(job, "failed", message))
            else:
                yield job

    def _create(self, number: int, words: list[str]) -> Run:
        """The run directory of a job; one that has a checkpoint, or that a process still trains, stays as it is."""
        run = Run(self.directory / str(number))
        if run.last_checkpoint is not None or run.is_busy or (run.directory / QUEUED).exists():
            return run
        shutil.rmtree(run.directory, ignore_errors=True)
        config = self.loader.load_sweep_config(self.config, words)
        with open_dict(config):
            config.hydra.job.num = config.hydra.job.id = number
            choices = config.hydra.runtime.choices
            config.run.name = config.run.name or f"{choices['model']}-{choices['data']}"
            config.run.dir = str(run.directory)
            config.test = False  # a sweep chooses; only what is chosen is tested
            if len(self.plan.objectives) == 1:
                ((metric, mode),) = self.plan.objectives.items()
                config.monitor = {"metric": metric, "mode": mode}
                if self.plan.pruner:
                    target = "quartet.callbacks.pruning.Pruning"
                    config.callbacks.pruning = {"_target_": target, "monitor": metric, "mode": mode}
            for key in ("sweep", "hydra"):
                config.pop(key)
        upgrade(config)
        settle_monitor(config)
        check_pairing(config)
        _make_absolute(config)
        run = Run.create(config)
        run.write("trial.json", {"number": number, "overrides": words})
        return run

    def ended(self, result: JobResult) -> None:
        """Tell the study and the person what came of a job."""
        outcome, facts, best = self._judge(result)
        if self.display is not None:
            self.display.ended(result, outcome, facts, best=best)

    def _judge(self, result: JobResult) -> tuple[str, str, bool]:
        """What counts: completed, pruned, failed or stopped; the facts to show; whether it is the best so far."""
        run, number = result.job.run, result.job.number
        status = run.status
        if result.status == "stopped" and status not in ("completed", "pruned"):
            return (
                "stopped",
                f", to {'resume from its last checkpoint' if run.last_checkpoint else 'begin again'}",
                False,
            )
        metrics = run.read("result.json")["metrics"] if status in ("completed", "pruned") else {}
        values: list[Any] = [metrics.get(name) for name in self.plan.objectives]
        known = zip(self.plan.objectives, values, strict=True)
        shown = "".join(f"  {name} {value:.4g}" for name, value in known if value is not None)
        if status == "pruned":
            self.study.tell(number, "pruned")
            return "pruned", f" after {run.read('result.json')['steps']:,} steps{shown}", False
        if status == "completed" and all(value is not None and value == value for value in values):  # not NaN
            self.study.tell(number, "completed", values)
            return "completed", shown, self.study.best() == number
        self.study.tell(number, "failed")
        if status == "completed":
            return "failed", f": its {' and '.join(self.plan.objectives)} is missing or not a number", False
        if status == "failed" and not (run.directory / "preprocessing.json").exists():
            self.mistakes.append(result.message)
        if status in ("unfinished", "interrupted"):
            self._write_end(run, ChildProcessError(result.message))
        return "failed", f": {result.message}", False

    def _write_end(self, run: Run, error: Exception) -> None:
        """The end that a job could not write itself: it was killed, or it failed before it had a run."""
        run.directory.mkdir(exist_ok=True)
        metric, mode = next(iter(self.plan.objectives.items()))
        run.ended_badly(error, **best_logged(run, metric, mode))
        if (run.directory / "config.yaml").exists():
            self.killed.append(run)

    def _is_hopeless(self) -> bool:
        """Whether every job so far failed with the same mistake, before anything was trained, and that is not allowed."""
        if len(self.mistakes) < min(SAME_MISTAKE, self.plan.n_trials) or self.settings["max_failure_rate"] == 1:
            return False
        return len(self.mistakes) == len(self._ends()) and len(set(self.mistakes)) == 1

    def _ends(self) -> list[str]:
        return [state for state in self.study.states().values() if state not in ("running", "waiting")]

    # the end

    def _conclude(self) -> None:
        if self._is_hopeless():
            if not any(self.directory.glob("*/preprocessing.json")):
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
        """Remove what the sweep has written, but for the logs, which the messages name: it is not the latest one then."""
        with suppress(OSError):
            for number in self.study.states():
                shutil.rmtree(self.directory / str(number), ignore_errors=True)
            for name in (FILE, JOURNAL, LOCK, f".{JOURNAL}.lock"):
                (self.directory / name).unlink(missing_ok=True)
            if self.made:
                self.directory.rmdir()

    def _list_killed(self) -> None:
        """In TensorBoard's HPARAMS, which has runs that end by themselves already."""
        if not self.killed:
            return
        from quartet.build import build_loggers, opened
        from quartet.train import write_hparams

        for run in self.killed:
            with suppress(ValueError):  # its config is not that of a run
                metrics = run.read("result.json")["metrics"]
                write_hparams(run, build_loggers(opened(run), run.directory), metrics, "failed")

    def _report(self) -> None:
        """A report that fails says so, and the sweep is none the worse."""
        from quartet.report import report_sweep

        try:
            summary = report_sweep(self.directory).summary
            curves = [f"curves: {tensorboard(self.directory)}"] if any(self.directory.glob("*/events.*")) else []
            print(printable("\n".join(["", summary, *curves]), keep="\n"), flush=True)
        except Exception as error:
            again = command("report", argument("sweep", self.directory))
            print(printable(f"error: no report ({described(error)}); try again with: {again}"), file=sys.stderr)


def _make_absolute(config: DictConfig) -> None:
    """Write paths so that the job's config means the same from everywhere."""
    start, weights = config.finetune.init_from, config.model.get("weights")
    if start == "latest":
        raise ValueError(
            "finetune.init_from=latest would be another run in each job of a sweep; name the run directory"
        )
    if start is not None:
        config.finetune.init_from = str(Run.open(start, root=config.run.root).directory.resolve())
    if config.data.get("path"):
        config.data.path = user_path(config.data.path)
    if weights is not None and os.path.isfile(user_path(weights)):
        config.model.weights = user_path(weights)


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
