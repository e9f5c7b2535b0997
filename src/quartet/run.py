"""The run directory: create, open, resolve "latest", lock, read and write its files. Imports no torch.

config.yaml         the resolved config             preprocessing.json  what inference needs (plain data)
environment.json    versions, hardware, command     metrics.csv         every logged value
checkpoints/        best.ckpt, last.ckpt            events.*            TensorBoard
samples/ figures/   what a person looks at          result.json         written last
error.txt           only if the run failed          uncommitted.diff    what the code had beyond its commit
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from quartet import trust
from quartet.environment import environment, uncommitted_changes
from quartet.files import check_plain, read_yaml, result_problem, written
from quartet.old_configs import upgrade
from quartet.say import printable
from quartet.system.signals import Interrupted
from quartet.typed import PROJECT, argument, command, user_path

NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
DEBUG = "debug"  # the folder of runs that trainer=debug makes
BEGUN = "QUARTET_BEGUN"  # the directory of the run that a user's command has just begun
CHANGES = "uncommitted.diff"
ENSEMBLE = "ensemble.json"  # of a run that combines others
LOCK = ".lock"  # held by the process that trains a run
LOCK_TIMEOUT_S = 0.2  # another process may hold the lock just to see whether it is free, see `is_busy`
ORPHAN_TIMEOUT_S = 60  # for a process that nobody watches any more to save and stop: twice what it needs at most
# what a run may consist of before it trains
EARLY = ("config.yaml", "environment.json", CHANGES, "data.json", "preprocessing.json", "trial.json", LOCK)
TEMPORARY = re.compile(r"\.(config\.yaml|\w+\.json)\.[0-9a-f]{8}")
Kind = tuple[str, Callable[[DictConfig], bool]]


class Run:
    """One run directory. `Run.create` makes it, `Run.open` finds it; every command works from it alone."""

    def __init__(self, directory: Path):
        self.directory = directory
        # of the process that began it, never what a file says
        self.trusted: set[str] = set()  # packages that its user named
        self._begun = self._made = False  # here; the directory itself too

    @classmethod
    def create(cls, config: DictConfig) -> Run:
        """A new directory with `config.yaml` and `environment.json`; its name never collides with another run's.

        Raises FileExistsError if `run.dir` names a directory that is not empty, OSError if nothing can be written.
        """

        def taken() -> FileExistsError:
            what = "not empty" if Path(config.run.dir).expanduser().is_dir() else "a file"
            return FileExistsError(f"run.dir={config.run.dir} is {what}; name another directory, or leave run.dir out")

        with _explain_unwritable(config.run.dir or outputs(config.run.root)):
            # 1. an empty directory: the one that was asked for, or one whose name nobody else has drawn
            made = True
            directory = Path(config.run.dir or "").expanduser().absolute()
            if config.run.dir is not None:
                try:
                    directory.mkdir(parents=True)
                except FileExistsError as error:
                    if not directory.is_dir() or any(directory.iterdir()):
                        raise taken() from error
                    made = False
            while config.run.dir is None:
                name = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{secrets.token_hex(3)}"
                directory = outputs(config.run.root) / config.run.name / name
                with suppress(FileExistsError):
                    directory.mkdir(parents=True)
                    break
            # 2. of processes that began at the same moment one makes the config, and the run is that one's
            try:
                (directory / "config.yaml").open("x").close()
            except FileExistsError as error:
                raise taken() from error
            run = cls(directory)
            run._begun, run._made = True, made
            # 3. its config and its environment
            try:
                (directory / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")
                own = trust.packages(OmegaConf.to_container(config, resolve=True))  # noted for people, never believed
                facts = environment()
                run.write("environment.json", {**facts, "signature": signature(config), "own_packages": own})
                if (facts["git"] or {}).get("dirty") and (changes := uncommitted_changes()):
                    (directory / CHANGES).write_bytes(changes)
            except BaseException:
                run.discard()
                raise
        return run

    def discard(self) -> None:
        """Take back a run that was begun here and has not trained: its files, and the directory if it was made for it.

        Raises nothing: it is called while the mistake itself is on its way to the user.
        """
        if not self._begun:
            return
        with suppress(OSError):
            for path in list(self.directory.iterdir()):
                if path.name in EARLY or TEMPORARY.fullmatch(path.name):
                    with suppress(OSError):
                        path.unlink()
        if self._made:
            with suppress(OSError):
                self.directory.rmdir()

    def adopt(self, config: DictConfig) -> None:
        """Another process of the same command has begun the run: `config` is the user's own."""
        self.trusted = set(trust.packages(OmegaConf.to_container(config, resolve=True)))
        os.environ[BEGUN] = str(self.directory)

    @property
    def may_download(self) -> bool:
        """Whether its config is that of the user's own command: a run that is read back fetches nothing."""
        return self._begun or os.environ.get(BEGUN) == str(self.directory)

    def for_workers(self) -> dict[str, str]:
        """Environment variables of processes that train it on behalf of this one."""
        return {**trust.environment(self.trusted), **({BEGUN: str(self.directory)} if self.may_download else {})}

    @classmethod
    def open(cls, where: str, root: str | Path = "outputs", kind: Kind | None = None) -> Run:
        """The run at a path, or if `where` is "latest" the newest one with a checkpoint that was not pruned.

        `kind`: of what kind, in a word, and whether a config is of it. Raises FileNotFoundError if there is none,
        ValueError if a link in it leads elsewhere.
        """
        word, fits = kind or ("run", None)

        def is_trained(run: Run) -> bool:
            whole = any(run.checkpoints.glob("*.ckpt")) or (run.directory / ENSEMBLE).is_file()
            return whole and run.status != "pruned" and (not fits or fits(run.config))

        missing = f"no trained {word} below {outputs(root)}; train one with: {command('train')}"
        return cls._find("run", where, root, is_trained, missing)

    @classmethod
    def open_for_resume(cls, where: str, root: str | Path = "outputs") -> Run:
        """The run at a path, or if that is "latest" the newest one that was interrupted or killed.

        Raises ValueError if the run is completed.
        """
        missing = f"no run below {outputs(root)} was interrupted or killed; "
        missing += "name one that failed or was pruned with resume=<directory>"
        run = cls._find("resume", where, root, lambda run: run.status in ("interrupted", "unfinished"), missing)
        if run.status == "completed":
            raise ValueError(
                f"{run} is completed; its schedule ends where it did: to train longer, start a new run with "
                f"{argument('finetune.init_from', run)}"
            )
        return run

    @classmethod
    def _find(cls, key: str, where: str, root: str | Path, wanted: Callable[[Run], bool], missing: str) -> Run:
        """The run at a path, or the newest wanted one; no link in it leads elsewhere."""
        if where == "latest":
            run = cls.newest(outputs(root), wanted, missing)
            print(printable(f"latest: {run}"), file=sys.stderr, flush=True)
        else:
            places = (Path(where).expanduser().resolve(), PROJECT / where)
            found = next((place for place in places if (place / "config.yaml").is_file()), None)
            if found is None:
                raise FileNotFoundError(
                    f"{key}={where} is not a run directory (no config.yaml in it); try {key}=latest"
                )
            run = cls(found)
        refuse_links_out(run.directory, "run")
        return run

    @classmethod
    def newest(cls, root: Path, wanted: Callable[[Run], bool], missing: str) -> Run:
        """The newest wanted run below `root`, however deep, that nobody trains and whose config can be read.

        Runs that only try whether everything works are left out. FileNotFoundError with the text `missing`.
        """
        found: list[tuple[int, Path]] = []
        for folder, folders, files in os.walk(root):
            if "config.yaml" in files:
                folders.clear()
                with suppress(OSError):  # removed meanwhile
                    found.append((Path(folder, "config.yaml").stat().st_mtime_ns, Path(folder)))
            elif folder == str(root):
                folders[:] = [name for name in folders if name != DEBUG]
        for _, path in sorted(found, key=lambda item: item[0], reverse=True):
            run = cls(path)
            with suppress(OSError, ValueError):  # damaged: one that is named says so
                if wanted(run) and not run.is_busy and run.config:
                    return run
        raise FileNotFoundError(missing)

    @property
    def config(self) -> DictConfig:
        """As it was written: plain values, all of them resolved. ValueError if it is anything else."""
        path = self.directory / "config.yaml"
        try:
            config = OmegaConf.create(read_yaml(path))
            values: Any = OmegaConf.to_container(config, resolve=False)
            check_plain(values)
            text = str(values)
        except OSError:
            raise
        except Exception as error:  # of YAML, OmegaConf, the encoding, the depth
            raise ValueError(f"{path} is damaged or not plain data ({_first_line(error)}); restore the file") from error
        if not isinstance(config, DictConfig) or not isinstance(config.get("run"), DictConfig):
            raise ValueError(f"{path} is not the config of a run; restore the file")
        if "${" in text:
            raise ValueError(
                f"{path} refers to other values with ${{…}}, which the config of a run never does; write them out"
            )
        return upgrade(config)

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    @property
    def best_checkpoint(self) -> Path:
        """`best.ckpt`, or `last.ckpt` if the run kept no best one; FileNotFoundError if it has neither."""
        for name in ("best.ckpt", "last.ckpt"):
            if (self.checkpoints / name).is_file():
                return self.checkpoints / name
        raise FileNotFoundError(f"{self} has no checkpoint; it did not reach its first validation, train it again")

    @property
    def last_checkpoint(self) -> Path | None:
        """What training resumes from, if there is something."""
        path = self.checkpoints / "last.ckpt"
        return path if path.is_file() else None

    @property
    def status(self) -> str:
        """completed, interrupted, failed, pruned, or unfinished: still running, or killed."""
        try:
            return str(self.read("result.json").get("status", "unfinished"))
        except FileNotFoundError:
            return "unfinished"

    @contextmanager
    def exclusively(self, timeout: float = LOCK_TIMEOUT_S) -> Iterator[None]:
        """Only one process (the first worker of one run) trains here; a killed one leaves no lock behind.

        Raises BlockingIOError if another one still does after `timeout` seconds.
        """
        if os.environ.get("RANK", "0") != "0":
            yield
            return
        try:
            with FileLock(self.directory / LOCK, timeout=timeout):
                yield
        except Timeout as error:
            raise BlockingIOError(f"{self} is being trained by another process; stop that one first") from error

    @property
    def is_busy(self) -> bool:
        """Whether a process trains here."""
        path = self.directory / LOCK
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # a disk without locks, or the run of somebody else
            return False

    def wait_until_free(self, seconds: float = ORPHAN_TIMEOUT_S) -> None:
        """Wait for a process that a kill has left behind to save and stop; BlockingIOError if it does not in time."""
        with self.exclusively(seconds):
            pass

    def mark_failed(self, error: BaseException, **facts: Any) -> None:
        """Write the status, "interrupted" or "failed", with the facts that are known, and the cause into `error.txt`.

        Raises nothing, not even if the disk is full.
        """
        interrupted = isinstance(error, Interrupted | KeyboardInterrupt)
        result: dict[str, Any] = {"status": "interrupted" if interrupted else "failed", "metrics": {}}
        result["objective"] = {"name": None, "value": None}
        if not interrupted:
            result["error"] = error_text(error)
            with suppress(Exception):
                text = "".join(traceback.format_exception(error))
                (self.directory / "error.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
        with suppress(Exception):
            self.write("result.json", {**result, **facts})

    def write(self, name: str, values: dict[str, Any]) -> None:
        """Plain data as JSON, atomically."""
        text = json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n"
        with _explain_unwritable(self.directory), written(self.directory / name) as file:
            # a name that is not UTF-8 becomes JSON's own \udc…, and the same name when it is read
            file.write(text.encode("utf-8", "backslashreplace"))

    def read(self, name: str) -> dict[str, Any]:
        """FileNotFoundError if the run has no such file, ValueError if it is damaged."""
        path = self.directory / name
        if not path.is_file():
            raise FileNotFoundError(f"{self} has no {name}; the run did not get that far, train it again")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            problem = None if isinstance(values, dict) else "it is not an object"
        except (ValueError, RecursionError) as error:
            problem = _first_line(error)
        if problem is None and name == "result.json":
            problem = result_problem(values)
        if problem:
            raise ValueError(f"{path} is damaged ({problem}); restore the file, or train again")
        return values

    def __str__(self) -> str:
        """The path as a person would type it from here."""
        here = Path.cwd()
        return str(self.directory.relative_to(here) if self.directory.is_relative_to(here) else self.directory)


def outputs(root: str | Path) -> Path:
    """Where runs live: `QUARTET_OUTPUTS`, or `root` relative to the project, whatever the working directory."""
    return Path(os.environ.get("QUARTET_OUTPUTS") or PROJECT / Path(root).expanduser()).expanduser().absolute()


def find_sweep(where: str, key: str = "sweep", *, planned: bool = False) -> Path:
    """The directory of a sweep, or of the newest one if `where` is "latest"; FileNotFoundError if there is none.

    `planned`: only one that can be resumed, by its `sweep.json`; older ones are known by their runs 0, 1, …
    """
    root = outputs("outputs") / "sweeps"
    places = [*root.glob("*")] if where == "latest" else [Path(where).expanduser().absolute(), PROJECT / where]
    markers = {}
    for place in places:
        if (place / "sweep.json").is_file():
            markers[place] = place / "sweep.json"
        elif not planned and any(path.is_dir() for path in place.glob("*") if path.name.isdecimal()):
            markers[place] = place
    if markers:
        newest = max(markers, key=lambda place: markers[place].stat().st_mtime_ns)
        return newest if where == "latest" else next(iter(markers))
    if where == "latest":
        start = command("train", "-m", "optimizer.lr=1e-3,3e-3")
        raise FileNotFoundError(f"no sweep below {root}; start one with: {start}")
    signs = "no sweep.json in it" if planned else "neither sweep.json nor runs 0, 1, … in it"
    raise FileNotFoundError(f"{key}={where} is not a sweep ({signs}); try {key}=latest")


def sweep_command(where: str) -> tuple[Path, list[str]]:
    """The directory of a sweep and the arguments that began it; FileNotFoundError if there is none."""
    directory = find_sweep(where, "sweep.resume", planned=True)
    words = Run(directory).read("sweep.json").get("command")
    if not isinstance(words, list):
        raise ValueError(f"{directory / 'sweep.json'} is damaged (no command in it); start another sweep")
    return directory, [str(word) for word in words]


def make_paths_absolute(config: DictConfig, *, in_sweep: bool = False) -> None:
    """Write paths so that the config means the same from every directory.

    Raises FileNotFoundError if there is no run to start from, ValueError for init_from=latest `in_sweep`.
    """
    start, weights = config.finetune.init_from, config.model.get("weights")
    if start == "latest" and in_sweep:
        raise ValueError(
            "finetune.init_from=latest would be another run in each job of a sweep; name the run directory"
        )
    if start is not None:
        try:
            config.finetune.init_from = str(Run.open(start, root=config.run.root).directory.resolve())
        except FileNotFoundError as error:
            if start == "latest":
                raise
            message = f"finetune.init_from={start} is not a run directory (no config.yaml in it); name a run, or latest"
            raise FileNotFoundError(message) from error
    if config.data.get("path"):
        config.data.path = user_path(config.data.path)
    if weights is not None and weights.endswith((".pth", ".pt")):  # a file, not the name of one of torchvision's
        config.model.weights = user_path(weights)


def signature(config: DictConfig) -> str:
    """What makes two runs repetitions of one experiment: the hash of the config without paths, seed and fold.

    Whether it is tested, watched or may be pruned is not counted either.
    """
    values: Any = OmegaConf.to_container(config, resolve=True)
    for name in ("run", "seed", "test", "sweep", "summary", "find_lr", "find_batch_size"):
        values.pop(name, None)
    within = (("callbacks", "pruning"), ("trainer", "profiler"), ("data", "path"), ("data", "fold"), ("data", "seed"))
    for group, key in within:
        if isinstance(values.get(group), dict):
            values[group].pop(key, None)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def error_text(error: BaseException) -> str:
    """An error for a person: the lines of a ValueError or OSError, anything else in one line that begins with its type."""
    if isinstance(error, ValueError | OSError) and str(error):
        return str(error)
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def refuse_links_out(directory: Path, kind: str) -> None:
    """ValueError for a link that leads out of a run or sweep: what is written there would change files of somebody else."""
    home = directory.resolve()
    for folder, folders, files in os.walk(home):
        for path in (Path(folder, name) for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                raise ValueError(
                    f"{path} climbs out of the {kind}, to {path.resolve()}; put what it names in its place"
                )


@contextmanager
def _explain_unwritable(where: str | Path) -> Iterator[None]:
    """An OSError says what to do if a run cannot be written to `where`."""
    try:
        yield
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        remedy = "make room or name another place with run.root=…, run.dir=… or QUARTET_OUTPUTS"
        raise OSError(f"no run can be written to {where} ({error.strerror}); {remedy}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
