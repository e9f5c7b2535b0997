"""Optuna's study in a sweep's directory: what was proposed, how far it came, what came out.

The journal is the record of trials, the run directories are the record of work. Only the sweep's process asks and tells;
a run that may be pruned reports to the same journal (`Reporter`), wherever it runs. Optuna is imported late.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import pickle
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from quartet.objective import Objective
from quartet.run import error_text
from quartet.sweeps.plan import JOURNAL, Plan
from quartet.sweeps.space import Dimension, point

NAME = "sweep"  # of the study in its journal


class Study:
    """Trials by number; a proposal is a list of overrides."""

    def __init__(self, directory: Path, plan: Plan, space: Sequence[Dimension]):
        self.plan, self.space = plan, list(space)
        self._study = open_study(directory, plan, create=True)
        self._distributions = {d.key: d.distribution(enumerated=plan.sampler == "grid") for d in space}

    @property
    def n_trials(self) -> int:
        return len(self._study.get_trials(deepcopy=False))

    def states(self) -> dict[int, str]:
        """Trial number -> running, complete, pruned or fail."""
        return {trial.number: trial.state.name.lower() for trial in self._study.get_trials(deepcopy=False)}

    def unfinished(self) -> Iterator[tuple[int, list[str]]]:
        """Trials that were proposed and have not ended yet, with their overrides."""
        from optuna.trial import Trial, TrialState

        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
            # what waits was enqueued, and `ask` takes it first
            waits = frozen.state is TrialState.WAITING
            yield self._proposal(self._study.ask() if waits else Trial(self._study, frozen._trial_id))

    def ask(self) -> tuple[int, list[str]]:
        """The next trial's number and overrides; known points come first, in their order, then those of a grid."""
        number, start = self.n_trials, self.plan.start
        if number < len(start):
            self._study.enqueue_trial(start[number])
        elif self.plan.sampler == "grid":
            self._study.enqueue_trial(point(self.space, number - len(start)))
        return self._proposal(self._study.ask())

    def _proposal(self, trial: Any) -> tuple[int, list[str]]:
        """Also of a trial that was cut off while it was being proposed: what it has stays, the rest is sampled."""
        # as `Study.ask` does with `fixed_distributions` (optuna 5.0, study/study.py), which only new trials can have
        values = {key: trial._suggest(key, distribution) for key, distribution in self._distributions.items()}
        words = [f"{key}={value if isinstance(value, str) else repr(value)}" for key, value in values.items()]
        return trial.number, words

    def tell(self, number: int, status: str, values: Sequence[float] | None = None) -> None:
        """`status` as in `result.json`; once for each trial."""
        from optuna.trial import TrialState

        state = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(status, TrialState.FAIL)
        self._study.tell(number, list(values) if values and state is TrialState.COMPLETE else None, state)

    def best(self) -> int | None:
        """The number of the best complete trial; None with several objectives."""
        from optuna.trial import TrialState

        if len(self.plan.objectives) > 1:
            return None
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        best = Objective(*next(iter(self.plan.objectives.items()))).best(trials, lambda trial: trial.values[0])
        return best.number if best else None


class Reporter:
    """What a run tells the study while it trains, and whether it should end."""

    def __init__(self, directory: Path, number: int):
        from optuna.trial import Trial

        plan = Plan.read(directory)
        study = open_study(directory, plan, create=False)
        frozen: Any = next((t for t in study.get_trials(deepcopy=False) if t.number == number), None)
        # a run that is trained again later, when its trial has ended, stands alone
        self._trial = None if frozen is None or frozen.state.is_finished() else Trial(study, frozen._trial_id)
        self._least = plan.min_validations

    def should_prune(self, value: float, validation: int) -> bool:
        """After validation number `validation`, the first being 1."""
        if self._trial is None:
            return False
        self._trial.report(value, validation)
        return validation >= self._least and self._trial.should_prune()


def open_study(directory: Path, plan: Plan, *, create: bool) -> Any:
    """The study in the journal of a sweep; ValueError if the journal is damaged."""
    import optuna
    from optuna import pruners, samplers
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", module=r"optuna(\..*)?")
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

    # 1. the journal, whose end is mended before Optuna replays its lines
    journal = directory / JOURNAL
    lock = journal_lock(journal)
    lock.acquire()
    lock.release()
    try:
        storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))
    except OSError:
        raise
    except Exception as error:
        place = str(journal)
        for number, line in enumerate(journal.read_bytes().splitlines(), 1):
            try:
                json.loads(line)
            except (ValueError, RecursionError):
                place = f"line {number} of {journal}"
                break
        raise ValueError(
            f"{place} is damaged ({error_text(error)}); restore the file from a copy, or start another sweep: "
            "the runs themselves are intact, scripts/report.py reads them"
        ) from error

    # 2. what stops hopeless runs
    least, factor = plan.min_validations, plan.reduction_factor
    make_pruner: dict[str | None, Any] = {
        "asha": lambda: pruners.SuccessiveHalvingPruner(min_resource=least, reduction_factor=factor),
        "hyperband": lambda: pruners.HyperbandPruner(min_resource=least, reduction_factor=factor),
        # a median of fewer than five says little
        "median": lambda: pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=least),
    }
    pruner = make_pruner.get(plan.pruner, pruners.NopPruner)()
    if not create:
        return optuna.load_study(study_name=NAME, storage=storage, pruner=pruner)

    # 3. what proposes them
    directions: Any = ["minimize" if mode == "min" else "maximize" for mode in plan.objectives.values()]
    study = optuna.create_study(
        study_name=NAME, storage=storage, directions=directions, load_if_exists=True, pruner=pruner
    )
    # a sweep that resumes draws anew and not the same again; a prime, so that neighbouring seeds do not meet
    seed = plan.seed + 1009 * len(study.get_trials(deepcopy=False))
    make_sampler: dict[str, Any] = {
        "tpe": lambda: samplers.TPESampler(multivariate=True, constant_liar=True, seed=seed),
        "gp": lambda: samplers.GPSampler(seed=seed),
        "cma_es": lambda: safe_cma_es()(seed=seed),
        # it keeps its place in the study, so its seed stays
        "qmc": lambda: samplers.QMCSampler(scramble=True, seed=plan.seed),
        "random": lambda: samplers.RandomSampler(seed=seed),
        # all points of a grid are enqueued, nothing is sampled
        "grid": lambda: samplers.RandomSampler(seed=seed),
    }
    study.sampler = make_sampler[plan.sampler]()
    return study


def safe_cma_es() -> Any:
    """The class of Optuna's CMA-ES, which keeps its state in the journal, pickled; the journal may be a stranger's."""
    from optuna.samplers import CmaEsSampler

    class StateUnpickler(pickle.Unpickler):
        """Reads what a CMA-ES consists of, and runs nothing else."""

        def find_class(self, module: str, name: str) -> Any:
            parts = {"cmaes": ("CMA", "SepCMA", "CMAwM"), "numpy": ("dtype", "ndarray", "scalar", "_reconstruct")}
            if name in parts.get(module.partition(".")[0], ()):
                return super().find_class(module, name)
            raise ValueError(f"{module}.{name} is not one of its parts")

    class SafeCmaEsSampler(CmaEsSampler):
        def _restore_optimizer(self, completed_trials: Any) -> Any:
            # the last trial that has a state has the newest one
            prefix = self._attr_key_optimizer
            for trial in reversed(completed_trials):
                parts = {key: value for key, value in trial.system_attrs.items() if key.startswith(prefix)}
                if not parts:
                    continue
                try:
                    state = StateUnpickler(io.BytesIO(bytes.fromhex(self._concat_optimizer_attrs(parts)))).load()
                    return state if state.dim else None
                except Exception as error:
                    raise ValueError(f"{JOURNAL} holds no state of CMA-ES ({error}); start another sweep") from error
            return None

    return SafeCmaEsSampler


def journal_lock(journal: Path) -> Any:
    """The kernel's lock, which ends with its process; Optuna's own stay behind a killed one for half a minute."""
    from optuna.storages.journal._file import BaseJournalFileLock

    class JournalLock(BaseJournalFileLock):
        def __init__(self) -> None:
            self._lock = FileLock(journal.with_name(f".{journal.name}.lock"))

        def acquire(self) -> bool:
            self._lock.acquire()
            # cut off what a killed job has half written, before writing behind it
            with journal.open("ab+") as file:
                if size := file.seek(0, os.SEEK_END):  # an empty file cannot be mapped
                    # mapped, because the journal of a long sweep is large and only its end is looked at
                    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                        end = content.rfind(b"\n") + 1
                    if end < size:
                        file.truncate(end)
            return True

        def release(self) -> None:
            self._lock.release()

    return JournalLock()
