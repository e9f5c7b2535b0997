"""The run directory: create, open, resolve "latest", read and write its files. Imports no torch.

config.yaml         the resolved config             preprocessing.json  what inference needs (plain data)
environment.json    versions, hardware, command     metrics.csv         every logged value
checkpoints/        best.ckpt, last.ckpt            events.*            TensorBoard
samples/ figures/   what a person looks at          result.json         written last
error.txt           only where the run failed    uncommitted.diff    what the code had beyond its commit
"""

from __future__ import annotations

import csv
import errno
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import secrets
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import yaml
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from quartet import trust
from quartet.config import upgrade
from quartet.interruption import Interrupted
from quartet.say import printable
from quartet.typed import PROJECT, argument, command

NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
COUNTS = ("steps", "epochs", "seconds", "peak_memory_bytes", "parameters")  # numbers in result.json
CONFIG_BYTES = 1_000_000  # a config has about 6 KB; names of columns or classes may make it longer
DEBUG = "debug"  # the folder of runs that trainer=debug makes
BEGUN = "QUARTET_BEGUN"  # the directory of the run that a user's command has just begun
CHANGES = "uncommitted.diff"
LOCK = ".lock"  # held by the process that trains a run
LOOKING = 0.2  # s that another process may hold the lock just to see whether it is free, see `is_busy`
PATIENCE = 60  # s that a process which nobody watches any more has to save and stop: twice what it needs at most
EARLY = (
    "config.yaml",
    "environment.json",
    CHANGES,
    "data.json",
    "preprocessing.json",
    "trial.json",
    LOCK,
)  # before it trains
TEMPORARY = re.compile(r"\.(config\.yaml|\w+\.json)\.[0-9a-f]{8}")
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "hydra-core", "omegaconf", "numpy")
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

        Raises FileExistsError where `run.dir` names a directory that is not empty, OSError where nothing can be written.
        """
        with _writable(config.run.dir or outputs(config.run.root)):
            run = cls._claim(config)
            try:
                text = OmegaConf.to_yaml(config, resolve=True)
                (run.directory / "config.yaml").write_text(text, encoding="utf-8")
                own = trust.packages(OmegaConf.to_container(config, resolve=True))  # noted for people, never believed
                facts = environment()
                run.write("environment.json", {**facts, "signature": signature(config), "own_packages": own})
                if (facts["git"] or {}).get("dirty") and (changes := _uncommitted()):
                    (run.directory / CHANGES).write_bytes(changes)
            except BaseException:
                run.discard()
                raise
        return run

    @classmethod
    def _claim(cls, config: DictConfig) -> Run:
        """A directory that is this process's alone, whoever else began at the same moment: only one makes `config.yaml`."""
        directory, made = _new_directory(config)
        try:
            (directory / "config.yaml").open("x").close()
        except FileExistsError as error:
            raise FileExistsError(_not_empty(config)) from error
        run = cls(directory)
        run._begun, run._made = True, made
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
        """It was begun by the same command as this process, in another one: `config` is its user's own."""
        self.trusted = set(trust.packages(OmegaConf.to_container(config, resolve=True)))
        os.environ[BEGUN] = str(self.directory)

    @property
    def may_download(self) -> bool:
        """Whether its config is that of the user's own command: a run that is read back fetches nothing."""
        return self._begun or os.environ.get(BEGUN) == str(self.directory)

    def for_workers(self) -> dict[str, str]:
        """What processes that train it for this one find in their environment."""
        return {**trust.environment(self.trusted), **({BEGUN: str(self.directory)} if self.may_download else {})}

    @classmethod
    def open(cls, where: str, root: str | Path = "outputs", kind: Kind | None = None) -> Run:
        """The run at a path, or the newest finished one with a checkpoint where `where` is "latest", which is said then.

        `kind`: of what kind, in a word, and whether a config is of it. Raises FileNotFoundError where there is none,
        ValueError where a link in it leads elsewhere.
        """
        run = cls(_latest(outputs(root), kind)) if where == "latest" else cls._at(where, "run")
        return run._closed()

    @classmethod
    def reopen(cls, where: str, root: str | Path = "outputs") -> Run:
        """The run at a path, or where that is "latest" the newest one that was interrupted or killed.

        ValueError where the run is completed.
        """
        if where == "latest":
            return cls(_latest_unfinished(outputs(root)))._closed()
        run = cls._at(where, "resume")._closed()
        if run.status == "completed":
            on = f" with {argument('finetune.init_from', run)}"
            more = f"start a new run{on}" if on else "start a new run with a larger trainer.max_epochs"
            raise ValueError(f"{run} is completed; its schedule ends where it did: to train longer, {more}")
        return run

    @classmethod
    def _at(cls, where: str, key: str) -> Run:
        for directory in (Path(where).expanduser().resolve(), PROJECT / where):
            if (directory / "config.yaml").is_file():
                return cls(directory)
        raise FileNotFoundError(f"{key}={where} is not a run directory (no config.yaml in it); try {key}=latest")

    def _closed(self) -> Run:
        refuse_links_out(self.directory, "run")
        return self

    @property
    def config(self) -> DictConfig:
        """As it was written: plain values, all of them resolved. ValueError where it is anything else."""
        path = self.directory / "config.yaml"
        try:
            config = OmegaConf.create(_yaml_text(path))
            values: Any = OmegaConf.to_container(config, resolve=False)
            _check_plain(values)
            text = str(values)
        except OSError:
            raise
        except Exception as error:  # of YAML, OmegaConf, the encoding, the depth
            raise ValueError(
                f"{path} is damaged or no plain data ({_first_line(error)}); bring back the file"
            ) from error
        if not isinstance(config, DictConfig) or not isinstance(config.get("run"), DictConfig):
            raise ValueError(f"{path} is no config of a run; bring back the file")
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
        """`best.ckpt`, or `last.ckpt` where the run kept no best one; FileNotFoundError where it has neither."""
        for name in ("best.ckpt", "last.ckpt"):
            if (self.checkpoints / name).is_file():
                return self.checkpoints / name
        raise FileNotFoundError(f"{self} has no checkpoint; it did not reach its first validation, train it again")

    @property
    def last_checkpoint(self) -> Path | None:
        """What training goes on from, if there is something."""
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
    def exclusively(self) -> Iterator[None]:
        """Only one process (the first worker of one run) trains here; a killed one leaves no lock behind.

        Raises BlockingIOError while another one does.
        """
        if os.environ.get("RANK", "0") != "0":
            yield
            return
        try:
            with FileLock(self.directory / LOCK, timeout=LOOKING):
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

    def wait_until_free(self, seconds: float = PATIENCE) -> None:
        """Wait for a process that a kill has left behind to save and stop; BlockingIOError if it does not in time."""
        until = time.monotonic() + seconds
        while self.is_busy and time.monotonic() < until:
            time.sleep(0.1)
        with self.exclusively():
            pass

    def ended_badly(self, error: BaseException, **facts: Any) -> None:
        """Say so in `result.json`, with the facts that are known, and why in `error.txt`; nothing on a full disk."""
        interrupted = isinstance(error, Interrupted | KeyboardInterrupt)
        nothing: dict[str, Any] = {"metrics": {}, "objective": {"name": None, "value": None}}
        if not interrupted:
            nothing["error"] = described(error)
        if not interrupted:
            with suppress(Exception):
                text = "".join(traceback.format_exception(error))
                (self.directory / "error.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
        with suppress(Exception):
            self.write("result.json", {"status": "interrupted" if interrupted else "failed", **nothing, **facts})

    def write(self, name: str, values: dict[str, Any]) -> None:
        """Plain data as JSON, whole or not at all."""
        text = json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n"
        with _writable(self.directory), written(self.directory / name) as file:
            # a name that is not UTF-8 becomes JSON's own \udc…, and the same name when it is read
            file.write(text.encode("utf-8", "backslashreplace"))

    def read(self, name: str) -> dict[str, Any]:
        path = self.directory / name
        if not path.is_file():
            raise FileNotFoundError(f"{self} has no {name}; the run did not get that far, train it again")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is damaged ({_first_line(error)}); bring back the file, or train again"
            ) from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} is no {name} of a run; bring back the file, or train again")
        if name == "result.json" and (wrong := _misshapen(values)):
            raise ValueError(f"{path} is damaged ({wrong}); bring back the file, or train again")
        return values

    def __str__(self) -> str:
        """The path as a person would type it from here."""
        here = Path.cwd()
        return str(self.directory.relative_to(here) if self.directory.is_relative_to(here) else self.directory)


def described(error: BaseException) -> str:
    """An error in one line for a person, with its type unless the message says all."""
    message = str(error)
    if message and isinstance(error, ValueError | OSError):
        return message
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
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path`, or of a link there, at the end: whole, or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def cut_back(file: IO[bytes]) -> None:
    """Cut a file of lines, open for appending, to its last whole line: a full disk or a killed process cuts lines."""
    path, size = Path(file.name), file.seek(0, os.SEEK_END)
    with path.open("rb") as lines:
        end, block = size, 1 << 16
        while end > 0:
            begin = max(0, end - block)
            lines.seek(begin)
            found = lines.read(end - begin).rfind(b"\n")
            if found >= 0:
                end = begin + found + 1
                break
            end = begin
    if end < size:
        file.truncate(end)


def outputs(root: str | Path) -> Path:
    """Where runs live: `QUARTET_OUTPUTS`, or `root` relative to the project, whatever the working directory."""
    return Path(os.environ.get("QUARTET_OUTPUTS") or PROJECT / Path(root).expanduser()).expanduser().absolute()


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The rows of a `metrics.csv` as texts, empty where nothing was logged; no rows where there is no file.

    A power failure may leave a line that is cut, or zeros and other signs in place of lines: such rows are left out.
    """
    if not path.is_file():
        return []
    text = path.read_bytes().decode("utf-8", "replace").replace("\0", "")
    complete = text[: text.rfind("\n") + 1]
    rows: list[dict[str, str]] = []
    with suppress(csv.Error):  # a field that never ends: what stands before it counts
        for row in csv.DictReader(io.StringIO(complete, newline="")):
            if _is_whole(row):
                rows.append(row)
    return rows


def _is_whole(row: Mapping[Any, Any]) -> bool:
    """One value for each name, all of them numbers where there are any; the step is a whole one."""
    if None in row or None in row.values() or not re.fullmatch("[0-9]{1,18}", row.get("step", "")):
        return False
    try:
        return bool([float(value) for value in row.values() if value])
    except ValueError:
        return False


def sweep_command(where: str) -> tuple[Path, list[str]]:
    """The directory of a sweep, or of the newest one where `where` is "latest", and the arguments that began it.

    FileNotFoundError where there is none.
    """
    if where == "latest":
        found = [path.parent for path in (outputs("outputs") / "sweeps").glob("*/sweep.json")]
        if not found:
            raise FileNotFoundError(f"no sweep below {outputs('outputs') / 'sweeps'}; start one with -m")
        directory = max(found, key=lambda path: (path / "sweep.json").stat().st_mtime_ns)
    else:
        places = (Path(where).expanduser().absolute(), PROJECT / where)
        directory = next((place for place in places if (place / "sweep.json").is_file()), None)
        if directory is None:
            raise FileNotFoundError(f"{where} is no sweep (no sweep.json in it); try sweep.resume=latest")
    words = Run(directory).read("sweep.json").get("command")
    if not isinstance(words, list):
        raise ValueError(f"{directory / 'sweep.json'} is damaged (no command in it); start another sweep")
    return directory, [str(word) for word in words]


def signature(config: DictConfig) -> str:
    """What makes two runs repetitions of one experiment: the hash of the config without paths, seed and fold.

    Whether it is tested or may be pruned is not counted either.
    """
    values: Any = OmegaConf.to_container(config, resolve=True)
    for name in ("run", "seed", "test", "sweep"):
        values.pop(name, None)
    for group, key in (("callbacks", "pruning"), ("data", "path"), ("data", "fold"), ("data", "seed")):
        if isinstance(values.get(group), dict):
            values[group].pop(key, None)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def environment() -> dict[str, Any]:
    """When, where, from what code and with which versions; without importing the packages."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "working_directory": os.getcwd(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "git": _git_state(),
    }


def _misshapen(result: dict[str, Any]) -> str | None:
    """What of a `result.json` is not as we write it; parts may be missing."""

    def is_number(value: Any) -> bool:
        return type(value) is float or (type(value) is int and abs(value) < 2**63)

    metrics, objective = result.get("metrics", {}), result.get("objective", {})
    numbers: dict[str, Any] = {key: result.get(key) for key in COUNTS}
    if not isinstance(metrics, dict) or not isinstance(objective, dict):
        return f"{'objective' if isinstance(metrics, dict) else 'metrics'} is not an object"
    if not isinstance(result.get("status", ""), str):
        return "status is not a text"
    if not isinstance(objective.get("name"), str | None):
        return "objective.name is not a text"
    numbers |= {f"metrics.{name}": value for name, value in metrics.items()} | {
        "objective.value": objective.get("value")
    }
    wrong = [name for name, value in numbers.items() if not (value is None or is_number(value))]
    wrong += [name for name in COUNTS if type(numbers[name]) is float and not math.isfinite(numbers[name])]
    if wrong:
        return f"{printable(wrong[0])} is not a number"
    speed = result.get("throughput") or {"per_second": None, "unit": ""}
    if (
        not isinstance(speed, dict)
        or not is_number(speed.get("per_second") or 0)
        or not isinstance(speed.get("unit"), str)
    ):
        return "throughput is not a number with its unit"
    return None


def _new_directory(config: DictConfig) -> tuple[Path, bool]:
    """An empty directory, and whether it was made."""
    if config.run.dir is not None:
        directory = Path(config.run.dir).expanduser().absolute()
        try:
            directory.mkdir(parents=True)
            return directory, True
        except FileExistsError as error:
            if not directory.is_dir() or any(directory.iterdir()):
                raise FileExistsError(_not_empty(config)) from error
            return directory, False
    parent = outputs(config.run.root) / config.run.name
    while True:
        directory = parent / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{secrets.token_hex(3)}"
        try:
            directory.mkdir(parents=True)
            return directory, True
        except FileExistsError:  # somebody else drew the same name in the same second: draw again
            continue


def _not_empty(config: DictConfig) -> str:
    what = "not empty" if Path(config.run.dir).expanduser().is_dir() else "a file"
    return f"run.dir={config.run.dir} is {what}; name another directory, or leave run.dir out"


@contextmanager
def _writable(where: str | Path) -> Iterator[None]:
    """An OSError says what to do where a new run has no place."""
    try:
        yield
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        remedy = "make room or name another place with run.root=…, run.dir=… or QUARTET_OUTPUTS"
        raise OSError(f"no run can be written to {where} ({error.strerror}); {remedy}") from error


def _yaml_text(path: Path) -> str:
    """ValueError where it would cost much to load: what is named once and used often grows to any size."""
    with path.open("rb") as file:
        content = file.read(CONFIG_BYTES + 1)
    if len(content) > CONFIG_BYTES:
        raise ValueError(f"it has more than {CONFIG_BYTES:,} bytes")
    text = content.decode("utf-8-sig")
    if ("&" in text or "*" in text) and any(getattr(event, "anchor", None) for event in yaml.parse(text)):
        raise ValueError("it refers to parts of itself with & and *")
    return text


def _check_plain(values: Any) -> None:
    """ValueError where there is more than YAML's own texts, numbers, true, false and null; YAML can make paths and bytes."""
    if isinstance(values, dict):
        for key, value in values.items():
            if type(key) not in (str, int, float, bool) or not str(key).isprintable():
                raise ValueError(f"the key {key!r} is not plain text")
            _check_plain(value)
    elif isinstance(values, list):
        for value in values:
            _check_plain(value)
    elif values is not None and type(values) not in (str, int, float, bool):
        raise ValueError(f"a {type(values).__name__} is not a text or number")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _latest(root: Path, kind: Kind | None) -> Path:
    """The newest run below `root` that has ended with a checkpoint, but for those that a sweep gave up."""

    def is_trained(run: Path) -> bool:
        return any((run / "checkpoints").glob("*.ckpt")) and _status(run) not in ("pruned", "damaged")

    word, fits = kind or ("run", None)
    trained = _newest(root, is_trained, fits)
    if trained is None:
        raise FileNotFoundError(f"no trained {word} below {root}; train one with: {command('train')}")
    return trained


def _latest_unfinished(root: Path) -> Path:
    unfinished = _newest(root, lambda run: _status(run) in ("interrupted", "unfinished"))
    if unfinished is None:
        raise FileNotFoundError(
            f"no run below {root} was interrupted or killed; name one that failed or was pruned with resume=<directory>"
        )
    return unfinished


def _newest(
    root: Path, wanted: Callable[[Path], bool], fits: Callable[[DictConfig], bool] | None = None
) -> Path | None:
    """The newest that nobody trains and whose config can be read, of whoever it is; says which one it is."""
    for path in sorted(_runs(root), key=_age, reverse=True):
        with suppress(OSError, ValueError):
            run = Run(path)
            if wanted(path) and not run.is_busy and (fits is None or fits(run.config)) and run.config:
                print(printable(f"latest: {run}"), file=sys.stderr, flush=True)
                return path
    return None


def _status(run: Path) -> str:
    try:
        return Run(run).status
    except (OSError, ValueError):  # one that is named says so
        return "damaged"


def _runs(root: Path) -> Iterator[Path]:
    """The run directories below `root`, however deep, but for those that only try whether everything runs."""
    for folder, folders, files in os.walk(root):
        if "config.yaml" in files:
            folders.clear()
            yield Path(folder)
        elif folder == str(root):
            folders[:] = [name for name in folders if name != DEBUG]


def _age(run: Path) -> int:
    with suppress(OSError):  # removed meanwhile
        return (run / "config.yaml").stat().st_mtime_ns
    return 0


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git_state() -> dict[str, Any] | None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(PROJECT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _uncommitted() -> bytes:
    """What differs from the last commit, as `git apply` takes it; nothing where that is large or cannot be known."""
    try:
        command = ["git", "-C", str(PROJECT), "diff", "--binary", "HEAD"]
        found = subprocess.run(command, capture_output=True, check=True, timeout=10).stdout
        return found if len(found) < CONFIG_BYTES else b""
    except (OSError, subprocess.SubprocessError):
        return b""
