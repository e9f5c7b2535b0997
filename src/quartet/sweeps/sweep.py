"""A sweep from its command line to its report: jobs are proposed, launched and judged until the plan is fulfilled.

It can be killed at any moment and resumes from its directory: the journal says which trials have no end, their run
directories say how far they came. Imports no torch.
"""

from __future__ import annotations

import itertools
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from quartet.commands.find import QUESTIONS
from quartet.config import check_pairing, settle_monitor
from quartet.config_errors import override_problems
from quartet.config_groups import CONF, is_group, unknown_options
from quartet.files import read_metrics
from quartet.objective import Objective
from quartet.old_configs import upgrade
from quartet.run import Run, error_text, make_paths_absolute, refuse_links_out
from quartet.say import printable, say
from quartet.signatures import refuse
from quartet.sweeps.cluster import QUEUED, run_in_batches
from quartet.sweeps.display import Display
from quartet.sweeps.jobs import Job, JobResult
from quartet.sweeps.plan import FILE, JOURNAL, Plan
from quartet.sweeps.space import Dimension, parse
from quartet.sweeps.study import Study
from quartet.system.signals import Interrupted
from quartet.typed import argument, command, tensorboard

SAME_MISTAKE = 3  # jobs that fail alike before anything is trained, and the sweep gives up
LOCK = ".sweep.lock"
OWN_WORDS = ("sweep=", "sweep.", "+sweep.")  # of the command line, which jobs need not know
NOT_REPEATED = ("hydra.mode=", "hydra.sweep.dir=", "sweep.resume=")  # words that a resumed sweep is not started with
PRUNING = "quartet.sweeps.pruning.Pruning"


def sweep(loader: Any, launcher: Any, config: DictConfig, arguments: Sequence[str]) -> int | None:
    """Run or resume the sweep; returns the number of the best run. Exits with 1 if too many runs failed.

    `loader` is Hydra's, to compose the jobs. Raises ValueError for what can be known to be wrong before anything starts,
    BlockingIOError if another process works on the sweep.
    """
    if config.resume is not None:
        raise ValueError(f"resume={config.resume} resumes a run as it was; leave out -m")
    settings: Any = OmegaConf.to_container(config.sweep, resolve=True)

    # 1. what varies; `params` may come from the file of a stranger's sweep: no config is read from elsewhere for it
    space, fixed = parse(settings["params"], [word for word in arguments if not word.startswith(OWN_WORDS)], loader)
    problems = [dimension.problem() for dimension in space]
    for key, value in settings["params"].items():
        name = str(key).lstrip("+~")
        if name.startswith("hydra") or "@" in name or ".." in name:
            problems.append(
                f"sweep.params: {key} is not a setting of a run; vary keys such as optimizer.lr, or groups such as model"
            )
        elif is_group(name):
            unknown = unknown_options(name, str(value))
            problems += [f"sweep.params: {name}={word} is not an option of {name}" for word in unknown]
    refuse(problems)

    # 2. the first job composes, and groups that are varied have the options that are named
    first_point = [f"{dimension.key}={dimension.first}" for dimension in space]
    try:
        first = upgrade(loader.load_sweep_config(config, [*fixed, *first_point]))
    except HydraException:
        refuse(override_problems("train", [*fixed, *first_point]))
        raise
    if questions := [name for name in QUESTIONS if first.get(name) or name in {d.key for d in space}]:
        raise ValueError(f"{questions[0]}=true looks at one setting and makes no run; leave out -m")
    # what is varied may fit each other in some of the jobs only
    choices = [f"{d.key}={','.join(d.values)}" for d in space if d.values and (CONF / d.key).is_dir()]
    if choices:
        refuse(override_problems("train", ["-m", *choices]))
    else:
        check_pairing(first)
    settle_monitor(first)

    # 3. the plan
    words = [*config.hydra.overrides.task, *config.hydra.overrides.hydra]
    repeated = [word for word in words if not word.startswith(NOT_REPEATED)]
    plan = Plan.make(settings, repeated, space, fixed, first.monitor)

    # 4. a directory that holds it and nothing else: a new one, or that of the same sweep before
    directory = Path(config.hydra.sweep.dir).absolute()
    if (directory / FILE).exists():
        refuse_links_out(directory, "sweep")
        differences = [f"  {line}" for line in Plan.read(directory).differences(plan)]
        if differences:
            remedy = "give its own command again, or another hydra.sweep.dir. What differs:"
            refuse([f"{directory} holds another sweep; {remedy}", *differences])
    elif directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"hydra.sweep.dir={directory} is not empty and not a sweep; name another directory")
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(directory / LOCK, timeout=0):
            Run(directory).write(FILE, asdict(plan))
            return Sweep(directory, plan, space, launcher, settings, loader, config, made).run()
    except Timeout as error:
        raise BlockingIOError(f"another process works on the sweep {directory}; stop that one first") from error


@dataclass
class Sweep:
    """A sweep that is running: proposes jobs, has them trained, judges what came of them."""

    directory: Path
    plan: Plan
    space: list[Dimension]
    launcher: Any
    settings: dict[str, Any]
    loader: Any  # Hydra's, to compose the jobs from `config`
    config: DictConfig
    made: bool = False  # the directory, by this process
    mistakes: list[str] = field(default_factory=list)  # messages of jobs that failed before they trained
    killed: list[Run] = field(default_factory=list)  # runs that could not write their own end
    display: Display | None = None

    def __post_init__(self) -> None:
        self.study = Study(self.directory, self.plan, self.space)
        self.began = time.monotonic()

    def run(self) -> int | None:
        """Until the plan is fulfilled and reported; the number of the best run.

        Raises ValueError if all runs fail with one mistake; exits with 1 if too many failed.
        """
        # 1. trials without an end: some have ended while nobody could note it, the others are resumed
        unfinished = []
        for number, point in self.study.unfinished():
            run = Run(self.directory / str(number))
            if run.status in ("completed", "pruned", "failed"):
                self._judge(JobResult(Job(number, run), "completed"))
            else:
                unfinished.append((number, point))
        n, total = self.study.n_trials, self.plan.n_trials
        progress = f", {n - len(unfinished)} of them finished before, {len(unfinished)} to resume" if n else ""
        pruner = f" with {self.plan.pruner}" if self.plan.pruner else ""
        say(f"sweep of {total} runs ({self.plan.sampler}{pruner}){progress}: {self.directory}")

        # 2. the jobs; a sweep that is finished starts no process
        jobs = self._jobs(unfinished)
        try:
            first = next(jobs, None)
            if first is not None:
                jobs = itertools.chain([first], jobs)
                with Display(total) as self.display:
                    if hasattr(self.launcher, "run"):
                        self.launcher.run(jobs, self.ended, self.display)
                    else:
                        # one of Hydra's own or of another plugin
                        run_in_batches(self.launcher, self.settings["n_jobs"], jobs, self.ended, self.display)
        except (Interrupted, KeyboardInterrupt):
            again = printable(command("train", "-m", argument("sweep.resume", self.directory)))
            print(f"\n{len(self._ends())} of {total} runs are finished; resume with: {again}", file=sys.stderr)
            raise

        # 3. all fail alike: remove what was written, so that it is not the latest sweep, unless something was trained
        if self._all_fail_alike():
            if not any(self.directory.glob("*/preprocessing.json")):
                with suppress(OSError):
                    for number in self.study.states():
                        shutil.rmtree(self.directory / str(number), ignore_errors=True)
                    for name in (FILE, JOURNAL, LOCK, f".{JOURNAL}.lock"):
                        (self.directory / name).unlink(missing_ok=True)
                    if self.made:
                        self.directory.rmdir()
            raise ValueError(f"{self.mistakes[0]}\nevery run of the sweep fails with this; it has stopped")

        # 4. list killed runs in TensorBoard's HPARAMS, as runs that end by themselves do, unless a config is not a run's
        if self.killed:
            from quartet.build import build_loggers, opened
            from quartet.engine.fit import write_hparams

            for run in self.killed:
                with suppress(ValueError):
                    write_hparams(run, build_loggers(opened(run), run.directory), run.read("result.json"))

        # 5. report; without one the sweep is still complete
        if self.settings["report"]:
            from quartet.report import report_sweep

            try:
                summary = report_sweep(self.directory).summary
                curves = [f"curves: {tensorboard(self.directory)}"] if any(self.directory.glob("*/events.*")) else []
                print(printable("\n".join(["", summary, *curves]), keep="\n"), flush=True)
            except Exception as error:
                again = command("report", argument("sweep", self.directory))
                print(printable(f"error: no report ({error_text(error)}); try again with: {again}"), file=sys.stderr)

        # 6. the exit code
        ends = self._ends()
        failed, rate = ends.count("fail"), self.settings["max_failure_rate"]
        if failed > rate * len(ends):
            print(f"error: {failed} of {len(ends)} runs failed, above sweep.max_failure_rate={rate}", file=sys.stderr)
            sys.exit(1)
        return self.study.best()

    def _jobs(self, unfinished: list[tuple[int, list[str]]]) -> Iterator[Job]:
        """What to train next, until there is nothing more to begin."""
        waiting = iter(unfinished)
        while not self._all_fail_alike():
            proposed = next(waiting, None)
            if proposed is None:
                minutes = self.settings["max_minutes"]
                is_late = minutes is not None and time.monotonic() - self.began > 60 * minutes
                if is_late or self.study.n_trials >= self.plan.n_trials:
                    return
                proposed = self.study.ask()
            number, point = proposed
            # four digits of a number are enough to read
            shown = (word.partition("=") for word in point)
            label = " ".join(
                f"{key}={float(value):.4g}" if re.fullmatch(r"[\d.]{7,}(e-?\d+)?", value) else f"{key}={value}"
                for key, _, value in shown
            )
            job = Job(number, Run(self.directory / str(number)), label or "defaults")
            words = [*self.plan.fixed, *point]
            try:
                job = job._replace(run=self._create(number, words))
            except (HydraException, ValueError, OSError) as error:
                # its words do not fit each other
                message = "\n".join(override_problems("train", words)) or error_text(error)
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

        # compose as Hydra would for this job; a sweep chooses, and only what is chosen is tested
        config = self.loader.load_sweep_config(self.config, words)
        with open_dict(config):
            config.hydra.job.num = config.hydra.job.id = number
            choices = config.hydra.runtime.choices
            config.run.name = config.run.name or f"{choices['model']}-{choices['data']}"
            config.run.dir = str(run.directory)
            config.test = False
            if len(self.plan.objectives) == 1:
                ((metric, mode),) = self.plan.objectives.items()
                config.monitor = {"metric": metric, "mode": mode}
                if self.plan.pruner:
                    config.callbacks.pruning = {"_target_": PRUNING, "monitor": metric, "mode": mode}
            for key in ("sweep", "hydra"):
                config.pop(key)
        upgrade(config)
        settle_monitor(config)
        check_pairing(config)
        make_paths_absolute(config, in_sweep=True)
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
        # the run directory says how a run ended: it may have ended while the process was stopped
        run, number = result.job.run, result.job.number
        status = run.status
        if result.status == "stopped" and status not in ("completed", "pruned"):
            later = "resume from its last checkpoint" if run.last_checkpoint else "begin again"
            return "stopped", f", to {later}", False
        metrics = run.read("result.json")["metrics"] if status in ("completed", "pruned") else {}
        values: list[Any] = [metrics.get(name) for name in self.plan.objectives]
        known = zip(self.plan.objectives, values, strict=True)
        shown = "".join(f"  {name} {value:.4g}" for name, value in known if value is not None)
        if status == "pruned":
            self.study.tell(number, "pruned")
            return "pruned", f" after {run.read('result.json')['steps']:,} steps{shown}", False
        # NaN is not equal to itself
        if status == "completed" and all(value is not None and value == value for value in values):
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
        run.mark_failed(error, **best_logged(run, Objective(metric, mode)))
        if (run.directory / "config.yaml").exists():
            self.killed.append(run)

    def _all_fail_alike(self) -> bool:
        """Whether every job so far failed with the same mistake, before anything was trained, and that is not allowed."""
        if len(self.mistakes) < min(SAME_MISTAKE, self.plan.n_trials) or self.settings["max_failure_rate"] == 1:
            return False
        return len(self.mistakes) == len(self._ends()) and len(set(self.mistakes)) == 1

    def _ends(self) -> list[str]:
        return [state for state in self.study.states().values() if state not in ("running", "waiting")]


def best_logged(run: Run, objective: Objective) -> dict[str, Any]:
    """What a run that was killed had reached, from its metrics.csv: the parts of a result that are known."""
    rows = read_metrics(run.directory / "metrics.csv")
    best = objective.best(rows, lambda row: float(row.get(objective.metric) or "nan"))
    if best is None:
        return {}
    metrics = {name: float(value) for name, value in best.items() if name.startswith("val/") and value}
    steps = [int(row["step"]) + 1 for row in rows if row.get(objective.metric) not in (None, "", "nan")]
    return {
        "metrics": metrics,
        "objective": {"name": objective.metric, "value": metrics[objective.metric]},
        "steps": steps[-1],
    }
