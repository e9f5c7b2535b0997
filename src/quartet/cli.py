"""From a command line to a function: Hydra composes, mistakes become one clear message. Imports no torch."""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from quartet import config_groups, trust, typed
from quartet.config_errors import FULL_ERROR, compose, error_lines, known_keys, override_problems, suggestion
from quartet.config_groups import CONF
from quartet.run import outputs, sweep_command
from quartet.say import printable
from quartet.system.cores import share_cores
from quartet.system.quiet import quiet_libraries
from quartet.system.signals import Interrupted

TRAINING = ("train", "baseline")  # commands that are given the settings of a run, not a run
# options of Hydra that take a value
FLAGS = ("config-dir", "cd", "config-path", "cp", "config-name", "cn", "package", "p", "info", "cfg", "c", "sc", "run")
FLAGS += ("shell-completion", "experimental-rerun", "hydra-help", "version")
# keys whose value is text, whatever it looks like
TEXTS = ("run", "run.name", "run.dir", "run.root", "resume", "sweep_directory", "runs", "output", "prompt", "split")
TEXTS += ("data.path", "finetune.init_from", "input", "prompts", "score", "score_file")
OmegaConf.register_new_resolver("outputs", lambda: str(outputs("outputs")), replace=True)  # for conf/hydra


def command(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Decorate `work(config)` into the `main()` of a script whose arguments are Hydra's `key=value`.

    An error ends the process with one message on stderr, exit code 1 and no traceback, unless HYDRA_FULL_ERROR=1.
    """

    def decorate(work: Callable[[DictConfig], Any]) -> Callable[[], None]:
        def main() -> None:
            if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # the script has put Python's own aside
                signal.signal(signal.SIGINT, signal.default_int_handler)
            full = os.environ.get(FULL_ERROR, "0") not in ("", "0")
            os.environ[FULL_ERROR] = "1"  # so that Hydra hands us its errors instead of printing them
            quiet_libraries()
            share_cores()
            failures: list[Exception] = []

            def job(config: DictConfig) -> Any:
                """A failure of a run is printed here, that of a sweep's job by the sweep."""
                try:
                    _keep_texts(config)
                    return work(config)
                except BrokenPipeError:
                    _end_without_reader()
                except Exception as error:
                    if full:
                        traceback.print_exc()
                    if in_sweep():
                        raise
                    failures.append(error)
                    print(_message(error, config_name), file=sys.stderr, flush=True)

            try:
                # 1. the words as Hydra reads them, and what they allow
                words = [quoted(word, sweeps=config_name in TRAINING) for word in sys.argv[1:]]
                if any(word.startswith("resume=") for word in words):  # the default's data may have no such key
                    words = [re.sub("^data.path=", "++data.path=", word) for word in words]
                sys.argv[1:] = words
                _refuse_foreign(config_name, words)
                trust.inherit(trust.packages_in_words(words))  # what the user types is the user's own
                # 2. words of a file may be a stranger's, and are looked at only now
                sys.argv[1:] = words = resumed_arguments(words)
                if {"-h", "--help"} & set(words):
                    return print(help_text(config_name, work.__globals__.get("__doc__") or "", words))
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
            except KeyboardInterrupt:
                sys.exit(130)
            except Interrupted as interruption:
                sys.exit(interruption.exit_code)
            except BrokenPipeError:
                _end_without_reader()
            except Exception as error:  # of composing, not of the job
                if full:
                    raise
                print(_message(error, config_name, composing=True), file=sys.stderr)
                sys.exit(1)
            if failures:
                sys.exit(1)

        return main

    return decorate


def _end_without_reader() -> NoReturn:
    """End without a word if standard output is a pipe that nobody reads any more, as `| head` leaves it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + 13)  # as SIGPIPE ends a program


def in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


# words of a command line


def help_text(config_name: str, purpose: str, arguments: list[str]) -> str:
    """What can be chosen and what can be set, with the choices made so far; Hydra's own help takes twice as long."""
    config = compose(config_name, [word for word in arguments if not word.startswith("-")])
    names = [path.name for path in sorted(CONF.iterdir()) if path.is_dir() and path.name in config]
    names += ["experiment"] if "model" in config else []
    options = [f"  {name:<12}{', '.join(config_groups.options(name))}" for name in names]
    choices = ["choose (group=option)", *options, ""] if options else []
    flags = "-m: every combination of values with commas   --cfg job: the config alone   --resolve: references followed"
    told = ["", *choices, flags] if options else [flags]
    return "\n".join([purpose.strip(), "", "set (key=value)", OmegaConf.to_yaml(config), *told])


def resumed_arguments(words: list[str]) -> list[str]:
    """`sweep.resume=…` stands for the command that began the sweep, in its directory.

    Raises ValueError if that command, which may be a stranger's, would run programs, fetch files or use packages.
    """
    where = [word.partition("=")[2] for word in words if word.startswith("sweep.resume=")]
    if not where or where[-1] == "null":
        return words
    if not {"-m", "--multirun"} & set(words):
        raise ValueError(f"sweep.resume={where[-1]} resumes a sweep; say -m too")
    # 1. what may be wrong with the words of the file; those that the user has typed too are the user's own
    directory, command = sweep_command(where[-1])
    for word in command:
        if not _is_harmless(word) and word not in words:
            raise ValueError(
                f"{directory / 'sweep.json'} would set {word}, which could run programs or fetch files; "
                "say it too if you mean it"
            )
    named = set(trust.packages_in_words(command)) - trust.trusted()
    if named:
        raise ValueError(
            f"{directory / 'sweep.json'} would use the package {', '.join(sorted(named))}, which a file alone cannot ask "
            f"for; if it is yours, set {trust.VARIABLE}={','.join(sorted(named))} or name it in conf/"
        )
    # 2. the user's words come last, so that they win, but for the place
    place = f"hydra.sweep.dir={typed.hydra(str(directory))}"
    flags = [word for word in words if word.startswith("-")]
    others = [word for word in words if not word.startswith(("-", "sweep.resume="))]
    return [*flags, *command, *others, place]


def _is_harmless(word: str) -> bool:
    """Whether a word of a sweep's file is believed: Hydra's own settings run code, as does a config from elsewhere.

    Of a config group only the options in conf/ count.
    """
    if re.match(r"hydra/launcher=\w+$|hydra\.launcher\.(?!_|init|slurm_(setup|additional))\w+=[\w.:-]*$", word):
        return True
    setting = re.match(r"[+~]*((?!hydra)[A-Za-z_][\w./-]*)(?:=|$)", word)
    if setting is None or ".." in setting[1] or setting[1].endswith("download"):
        return False
    return not config_groups.is_group(setting[1]) or not config_groups.unknown_options(
        setting[1], word[setting.end() :]
    )


def quoted(word: str, *, sweeps: bool) -> str:
    """An argument with quotes around its value if Hydra cannot read it without: a path with letters beyond ASCII.

    Unless it `sweeps`, a text with commas or brackets is that text.
    """
    found = re.fullmatch(r"([\w./+~@]+)=([^'\"\[{].*)", word, re.DOTALL)
    if found is None or (sweeps and re.search(r"[\[\]{}()'\"]", found[2])):
        return word
    try:
        override = OverridesParser.create().parse_override(word)
        plain = sweeps or not (override.is_sweep_override() or isinstance(override.value(), list | dict))
        if plain and found[2] == found[2].strip():
            return word
    except HydraException:
        pass
    return f"{found[1]}={typed.hydra(found[2])}"


def _refuse_foreign(config_name: str, words: list[str]) -> None:
    """ValueError for what belongs to another command, or is written as other programs have it."""
    for word in words:
        key, _, value = word.partition("=")
        if config_name in TRAINING and key == "run":
            raise ValueError(
                f"{word}: run= is for scripts/evaluate.py and scripts/generate.py; to resume a run: resume=…"
            )
        if re.fullmatch(r"--?[a-z][\w.]*", key) and value and key.lstrip("-") not in FLAGS:
            near = suggestion(key.lstrip("-"), sorted(known_keys(config_name, [])), value)
            raise ValueError(f"{word}: settings have no dashes{near}")


def _keep_texts(config: DictConfig) -> None:
    """Names and paths stay what was typed if Hydra reads a number or truth value: run.name=2024."""
    for key in TEXTS:
        value = OmegaConf.select(config, key, default=None)
        if isinstance(value, bool | int | float):
            words = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
            said = [word.partition("=")[2] for word in words if word.lstrip("+").startswith(f"{key}=")]
            OmegaConf.update(config, key, said[-1] if said else str(value))


# messages


def _message(error: Exception, config_name: str, *, composing: bool = False) -> str:
    theirs = isinstance(error, HydraException | OmegaConfBaseException) or not in_sweep()
    problems = list(override_problems(config_name, sys.argv[1:])) if composing and theirs else []
    lines = [line for problem in problems or [error_lines(error)] for line in problem.split("\n")]
    return "\n".join(f"error: {printable(line)}" for line in lines)
