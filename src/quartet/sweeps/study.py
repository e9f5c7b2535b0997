"""Optuna's study in a sweep's directory: what was proposed, how far it came, what came out.

The journal is the record of trials, the run directories are the record of work. Only the sweep's process asks and tells;
a run that may be pruned reports to the same journal (`Reporter`), wherever it runs. Optuna is imported late.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from quartet.files import cut_back
from quartet.run import described
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
        return len(self._trials(None))

    def states(self) -> dict[int, str]:
        """Trial number -> running, complete, pruned or fail."""
        return {trial.number: trial.state.name.lower() for trial in self._trials(None)}

    def unfinished(self) -> Iterator[tuple[int, list[str]]]:
        """Trials that were proposed and have no end yet, with their overrides."""
        from optuna.trial import TrialState

        for frozen in self._trials((TrialState.RUNNING, TrialState.WAITING)):
            if frozen.state is TrialState.WAITING:
                yield self._proposal(self._study.ask())
            else:
                from optuna.trial import Trial

                yield self._proposal(Trial(self._study, frozen._trial_id))

    def ask(self) -> tuple[int, list[str]]:
        """The next trial's number and overrides; known points come first, in their order."""
        known = self._known(self.n_trials)
        if known is not None:
            self._study.enqueue_trial(known)
        return self._proposal(self._study.ask())

    def tell(self, number: int, status: str, values: Sequence[float] | None = None) -> None:
        """`status` as in `result.json`; once for each trial."""
        from optuna.trial import TrialState

        state = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(status, TrialState.FAIL)
        self._study.tell(number, list(values) if values and state is TrialState.COMPLETE else None, state)

    def best(self) -> int | None:
        """The number of the best complete trial of one objective; the first of several."""
        from optuna.trial import TrialState

        trials = self._trials((TrialState.COMPLETE,))
        if not trials or len(self.plan.objectives) > 1:
            return None
        sign = 1 if next(iter(self.plan.objectives.values())) == "min" else -1
        return min(trials, key=lambda trial: sign * trial.values[0]).number

    def _trials(self, states: Any) -> list[Any]:
        return self._study.get_trials(deepcopy=False, states=states)

    def _known(self, number: int) -> dict[str, Any] | None:
        if number < len(self.plan.start):
            return self.plan.start[number]
        return point(self.space, number - len(self.plan.start)) if self.plan.sampler == "grid" else None

    def _proposal(self, trial: Any) -> tuple[int, list[str]]:
        """Also of a trial that was cut off while it was being proposed: what it has stays, the rest is sampled."""
        chosen = {key: _suggest(trial, key, distribution) for key, distribution in self._distributions.items()}
        return trial.number, [f"{key}={_text(value)}" for key, value in chosen.items()]


def reporter(run: Path) -> Reporter | None:
    """For the run directory of a sweep's job; None where the run has been taken out of its sweep."""
    note = run / "trial.json"
    if not (run.parent / JOURNAL).is_file() or not note.is_file():
        return None
    return Reporter(run.parent, int(json.loads(note.read_text(encoding="utf-8"))["number"]))


class Reporter:
    """What a run tells the study while it trains, and whether it should end."""

    def __init__(self, directory: Path, number: int):
        from optuna.trial import Trial

        plan = Plan.read(directory)
        study = open_study(directory, plan, create=False)
        frozen = next((t for t in study.get_trials(deepcopy=False) if t.number == number), None)
        self._open = frozen is not None and not frozen.state.is_finished()  # a run trained again later stands alone
        self._trial = Trial(study, frozen._trial_id) if frozen is not None and self._open else None
        self._least = plan.min_validations

    def is_hopeless(self, value: float, validation: int) -> bool:
        """After validation number `validation`, the first being 1."""
        if self._trial is None:
            return False
        self._trial.report(value, validation)
        return validation >= self._least and self._trial.should_prune()


def open_study(directory: Path, plan: Plan, *, create: bool) -> Any:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    _quiet(optuna)
    journal = directory / JOURNAL
    lock = _journal_lock(journal)
    if lock.acquire():  # which mends the end of the file
        lock.release()
    try:
        storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))
    except Exception as error:  # Optuna replays all lines
        if isinstance(error, OSError):
            raise
        raise ValueError(
            f"{_damage(journal)} ({described(error)}); restore the file from a copy, or start another sweep: "
            "the runs themselves are whole, scripts/report.py reads them"
        ) from error
    if not create:
        return optuna.load_study(study_name=NAME, storage=storage, pruner=_pruner(plan))
    study = optuna.create_study(
        study_name=NAME,
        storage=storage,
        directions=["minimize" if mode == "min" else "maximize" for mode in plan.objectives.values()],
        load_if_exists=True,
        pruner=_pruner(plan),
    )
    study.sampler = _sampler(plan, len(study.get_trials(deepcopy=False)))
    return study


def _damage(journal: Path) -> str:
    """Where Optuna cannot read it, for a person."""
    for number, line in enumerate(journal.read_bytes().splitlines(), 1):
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            return f"line {number} of {journal} is damaged"
    return f"{journal} is damaged"


def _sampler(plan: Plan, n_trials: int) -> Any:
    """A sweep that goes on draws anew and not the same again, so the seed counts the trials there are."""
    from optuna import samplers

    seed = plan.seed + 1009 * n_trials  # a prime: neighbouring seeds of two sweeps do not meet
    if plan.sampler == "tpe":
        return samplers.TPESampler(multivariate=True, constant_liar=True, seed=seed)
    if plan.sampler == "gp":
        return samplers.GPSampler(seed=seed)
    if plan.sampler == "cma_es":
        return _cma_es()(seed=seed)
    if plan.sampler == "qmc":
        return samplers.QMCSampler(scramble=True, seed=plan.seed)  # which keeps its place in the study
    return samplers.RandomSampler(seed=seed)


def _cma_es() -> Any:
    from optuna.samplers import CmaEsSampler

    class Careful(CmaEsSampler):
        """Optuna keeps the state of the evolution in the journal, pickled; the journal may be a stranger's."""

        def _restore_optimizer(self, completed_trials: Any) -> Any:
            prefix = self._attr_key_optimizer
            for trial in reversed(completed_trials):
                parts = {key: value for key, value in trial.system_attrs.items() if key.startswith(prefix)}
                if parts:
                    return _read_state(self._concat_optimizer_attrs(parts))
            return None

    return Careful


def _read_state(text: str) -> Any:
    try:
        state = _Numbers(io.BytesIO(bytes.fromhex(text))).load()
        return state if state.dim else None
    except Exception as error:
        raise ValueError(f"{JOURNAL} holds no state of CMA-ES ({error}); start another sweep") from error


class _Numbers(pickle.Unpickler):
    """Reads what a CMA-ES consists of, and runs nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "cmaes" and name in ("CMA", "SepCMA", "CMAwM"):
            return super().find_class(module, name)
        if module.partition(".")[0] == "numpy" and name in ("dtype", "ndarray", "scalar", "_reconstruct"):
            return super().find_class(module, name)
        raise ValueError(f"{module}.{name} is none of its parts")


def _pruner(plan: Plan) -> Any:
    from optuna import pruners

    least, factor = plan.min_validations, plan.reduction_factor
    if plan.pruner == "asha":
        return pruners.SuccessiveHalvingPruner(min_resource=least, reduction_factor=factor)
    if plan.pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource=least, reduction_factor=factor)
    if plan.pruner == "median":
        return pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=least)  # five: a median of fewer says little
    return pruners.NopPruner()


def _suggest(trial: Any, key: str, distribution: Any) -> Any:
    from optuna.distributions import CategoricalDistribution, IntDistribution

    d = distribution
    if isinstance(d, CategoricalDistribution):
        return trial.suggest_categorical(key, d.choices)
    if isinstance(d, IntDistribution):
        return trial.suggest_int(key, d.low, d.high, step=d.step, log=d.log)
    return trial.suggest_float(key, d.low, d.high, step=d.step, log=d.log)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _quiet(optuna: Any) -> None:
    import warnings

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", module=r"optuna(\..*)?")
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def _journal_lock(journal: Path) -> Any:
    """The kernel's lock, which ends with its process; Optuna's own stay behind a killed one for half a minute."""
    from optuna.storages.journal._file import BaseJournalFileLock

    class JournalLock(BaseJournalFileLock):
        def __init__(self) -> None:
            self._lock = FileLock(journal.with_name(f".{journal.name}.lock"))

        def acquire(self) -> bool:
            self._lock.acquire()
            with journal.open("ab") as file:  # cut off what a killed job has half written, before writing behind it
                cut_back(file)
            return True

        def release(self) -> None:
            self._lock.release()

    return JournalLock()
