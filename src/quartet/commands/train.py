"""Training from the command line: from a composed config to a finished run, and what is printed before and after."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from quartet import trust
from quartet.cli import in_sweep
from quartet.commands.find import asked, find
from quartet.config import check_pairing
from quartet.engine.workers import environment_rank, execute, share_directory
from quartet.files import written
from quartet.run import DEBUG, Run, make_paths_absolute
from quartet.say import TAB, printable, say
from quartet.system.signals import Interrupted, stoppable
from quartet.typed import argument, command, tensorboard

if TYPE_CHECKING:
    from quartet.data.base import DataModule

DATA_READY_TIMEOUT_S = 3600  # for another machine that reads the data: tokenising 1 GB takes 20 minutes
SAMPLE_TOKENS = 160  # about ten lines of code
HEADLINES = ("loss", "bits_per_byte", "perplexity", "accuracy", "auroc", "f1", "r2", "rmse")


def run_command(config: DictConfig) -> float | None:
    """Train one run (a job, inside a sweep) and say what came out; returns the monitored value for sweepers."""
    if asked(config) and not in_sweep():
        return find(config)
    rank, _ = environment_rank() or (0, 1)
    os.environ.setdefault("RANK", str(rank))  # SLURM has another name for it; the first one writes and speaks
    with stoppable():
        if in_sweep():  # started by a launcher of Hydra: the sweep has made the run already
            hydra = HydraConfig.get()
            run = Run(Path(hydra.sweep.dir).absolute() / str(hydra.job.num))
            try:
                execute(run)
            except Exception as error:
                if run.status == "unfinished":  # a mistake that was found before it trained
                    run.mark_failed(error)
                raise
        else:
            run, data = _resume(config) if config.resume is not None else _begin(config)
            try:
                execute(run, data)
            except Interrupted as interruption:
                again = f"{_trust_prefix(run)}{command('train', argument('resume', run))}"
                print(printable(f"{interruption}; resume with: {again}"), file=sys.stderr)
                raise
    if rank > 0:
        return None
    result = run.read("result.json")
    _print_result(run, result)
    return result["objective"]["value"]


def create(config: DictConfig) -> tuple[Run, DataModule]:
    """Check the config, make its run directory and read the data; a mistake found before training leaves no directory."""
    from quartet import build
    from quartet.engine.fit import fit_data
    from quartet.engine.weights import find_source

    build.check(config)
    make_paths_absolute(config)
    find_source(config)  # refused before any data are read
    run = Run.create(config)
    run.trusted = set(trust.packages(build.plain(config)))
    try:
        return run, fit_data(run, run.config)
    except BaseException:
        run.discard()
        raise


def create_and_train(config: DictConfig) -> tuple[Run, dict[str, Any]]:
    """A whole run in this process, for programs and tests: the run and what `result.json` says."""
    from quartet.engine.fit import train

    run, data = create(config)
    return run, train(run, data)


def _begin(config: DictConfig) -> tuple[Run, DataModule | None]:
    """A new run; with its data, if this process has read them."""
    choices = HydraConfig.get().runtime.choices
    chosen = choices.get("sweep", "default")
    if chosen != "default":
        raise ValueError(f"sweep={chosen} makes many runs; say -m too")
    with open_dict(config):
        if config.run.name is None:
            config.run.name = "{model}-{data}".format(**choices)
        if choices.get("trainer") == DEBUG and config.run.dir is None:
            config.run.name = f"{DEBUG}/{config.run.name}"
        config.pop("sweep", None)
    check_pairing(config)  # at once, before torch is imported
    say(f"{config.run.name}, seed {config.seed}")
    if "torch" not in sys.modules:
        say("loading PyTorch")

    made: list[tuple[Run, DataModule]] = []

    def make() -> Path:
        made.append(create(config))
        return made[0][0].directory

    several = config.trainer.num_nodes > 1 and environment_rank() is None
    directory = _share_between_machines(config, make) if several else share_directory(make)
    if made:
        return made[0]
    run = Run(directory)
    run.adopt(config)
    return run, None


def _share_between_machines(config: DictConfig, make: Callable[[], Path]) -> Path:
    """The first machine to make the run directory reads the data; the others wait until it has."""
    if config.run.dir is None:
        raise ValueError(
            "trainer.num_nodes above 1 needs run.dir=<a directory that all machines see>, the same on each"
        )
    directory = Path(config.run.dir).expanduser().absolute()
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        pass
    else:
        try:
            return make()
        except BaseException:
            with suppress(OSError):  # the others look whether it is there
                directory.rmdir()
            raise
    if (directory / "result.json").exists():
        return make()  # which refuses a directory that is not empty
    say(f"waiting for the machine that reads the data into {directory}")
    for _ in range(2 * DATA_READY_TIMEOUT_S):
        if (directory / "preprocessing.json").exists():
            return directory
        if not directory.exists():
            raise ValueError("the machine that reads the data has failed; see its output")
        time.sleep(0.5)
    raise ValueError(
        f"no machine has read the data into {directory} within {DATA_READY_TIMEOUT_S} s; remove it and start again"
    )


def _resume(config: DictConfig) -> tuple[Run, DataModule | None]:
    """The run to resume; its own config counts, so nothing else may be asked for but where its data are now."""
    words = [word.lstrip("+") for word in HydraConfig.get().overrides.task]
    others = [word for word in words if not word.startswith(("resume=", "workers.rendezvous=", "data.path="))]
    if others:
        raise ValueError(f"resume={config.resume} resumes a run as it was; leave out {' '.join(others)}")
    run = Run.open_for_resume(config.resume, root=config.run.root)
    from quartet import build
    from quartet.engine.fit import restore_data

    settings = build.opened(run)
    n_nodes, place = settings.trainer.num_nodes, settings.workers.rendezvous
    if n_nodes > 1 and place != config.workers.rendezvous and not environment_rank():
        # processes that meet there trust each other: what a file says is not enough
        again = f"workers.rendezvous={place}"
        raise ValueError(f"{run} trains on {n_nodes} machines; say again where they meet, such as {again}")
    begun = "resuming from its last checkpoint" if run.last_checkpoint else "it had no checkpoint yet and starts anew"
    say(f"{run.config.run.name}, seed {run.config.seed}, {run}: {begun}")
    if not any(word.startswith("data.path=") for word in words):
        return run, None
    # the data have moved: read them from their new place, and note it in the run
    with run.exclusively():
        moved = build.opened(run, data_path=str(config.data.path))
        data = restore_data(run, moved)
        with written(run.directory / "config.yaml") as file:
            changed = run.config
            changed.data.path = moved.data.path
            file.write(OmegaConf.to_yaml(changed).encode())
    return run, data


def _trust_prefix(run: Run) -> str:
    """What stands before a command that opens the run, if it is made of a package that only this command has named."""
    with suppress(OSError, ValueError):
        return trust.prefix(OmegaConf.to_container(run.config))
    return ""


def _print_result(run: Run, result: dict[str, Any]) -> None:
    """Headline metrics, a sample of a language model, and the commands that come next."""
    metrics = result["metrics"]
    print(f"\n{result['steps']:,} steps in {result['seconds']:.0f} s, {result['parameters']:,} parameters")
    at = f"  (best validation, after step {result['best_step']:,})" if result.get("best_step") is not None else ""
    for part in ("val", "test"):
        named = [f"{name} {metrics[f'{part}/{name}']:.4f}" for name in HEADLINES if f"{part}/{name}" in metrics]
        if named:
            print(f"  {part:<5} {'  '.join(named)}{at if part == 'val' else ''}")
    if in_sweep():
        print(printable(f"run: {run}"), flush=True)
        return
    where, trusting = argument("run", run), _trust_prefix(run)
    next_commands = [f"{trusting}{printable(command('evaluate', where, 'split=test'))}"]
    if "test/bits_per_byte" in metrics:  # a language model
        from quartet.commands.generate import generate

        prompt = run.config.prompt or ""  # how a sample of these data begins; "" begins a document
        print("\na sample:\n")
        pieces = generate(run, prompt=prompt, max_tokens=SAMPLE_TOKENS, temperature=0.7, top_k=50, top_p=None, seed=0)
        for line in (prompt + "".join(pieces)).splitlines():
            print(f"  | {printable(line, keep=TAB)}")
        word = argument("prompt", "def " if prompt else "The ")
        next_commands.append(f"{trusting}{printable(command('generate', where, word))}")
    if any(run.directory.glob("events.*")):
        next_commands.append(printable(tensorboard(run.directory)))
    print(f"\nrun: {printable(str(run))}\nnext:")
    print("\n".join(f"  {line}" for line in next_commands), flush=True)
