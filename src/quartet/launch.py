"""From a composed config to a finished run, and what a person reads before and after.

One device runs in this process, several run as workers that are given nothing but the run directory.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from quartet import trust
from quartet.cli import in_sweep
from quartet.config import check_pairing
from quartet.interruption import Interrupted, stoppable
from quartet.run import DEBUG, Run, written
from quartet.say import TAB, printable, say
from quartet.typed import argument, command, tensorboard
from quartet.workers import environment_rank, inherited, run_workers, share_directory

MEETING = 3600  # seconds that a machine waits for another one that reads the data: tokenising 1 GB takes 20 minutes
SAMPLE_TOKENS = 160  # about ten lines of code
HEADLINES = ("loss", "bits_per_byte", "perplexity", "accuracy", "auroc", "f1", "r2", "rmse")


def launch(config: DictConfig) -> float | None:
    """Train one run (a job, inside a sweep) and say what came out; returns the monitored value for sweepers."""
    rank, _ = environment_rank() or (0, 1)
    os.environ.setdefault("RANK", str(rank))  # SLURM has another name for it; the first one writes and speaks
    with stoppable():
        if in_sweep():  # by a launcher of Hydra: the sweep has made the run already
            hydra = HydraConfig.get()
            run = Run(Path(hydra.sweep.dir).absolute() / str(hydra.job.num))
            try:
                execute(run)
            except Exception as error:
                if run.status == "unfinished":  # a mistake that was found before it trained
                    run.ended_badly(error)
                raise
        else:
            run = _train(*(_resume(config) if config.resume is not None else _start(config)))
    if rank > 0:
        return None
    result = run.read("result.json")
    _report(run, result)
    return result["objective"]["value"]


def _train(run: Run, data: Any) -> Run:
    try:
        execute(run, data)
    except Interrupted as interruption:
        again = f"{_trusting(run)}{command('train', argument('resume', run))}"
        print(printable(f"{interruption}; go on with: {again}"), file=sys.stderr)
        raise
    return run


def _trusting(run: Run) -> str:
    """What stands before a command that opens the run, where it is made of a package that only this command has named."""
    with suppress(OSError, ValueError):
        return trust.prefix(OmegaConf.to_container(run.config))
    return ""


def execute(run: Run, data: Any = None) -> None:
    """On one device here; on several by workers, unless this process is one of them already."""
    n, n_nodes = (1, 1) if environment_rank() else (n_workers(run.config), run.config.trainer.num_nodes)
    if n * n_nodes == 1:
        from quartet.train import train

        train(run, data)
        return
    del data  # each worker reads them for itself
    if n_nodes == 1:  # before workers start, the first of which holds the lock
        with run.exclusively():
            pass
    try:
        with inherited(run.for_workers()):
            run_workers(
                run.directory,
                n,
                n_nodes=n_nodes,
                rendezvous=run.config.workers.rendezvous,
                max_restarts=run.config.workers.max_restarts,
            )
    except BlockingIOError:  # it is another process's to say how the run ends
        raise
    except (Exception, Interrupted) as error:
        run.ended_badly(error)
        raise


def n_workers(config: DictConfig) -> int:
    """Processes on this machine: one for each device."""
    devices = config.trainer.devices
    if isinstance(devices, list | ListConfig):
        return len(devices)
    if devices not in (-1, "-1", "auto"):
        return int(devices)
    if config.trainer.accelerator in ("cpu", "mps"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _start(config: DictConfig) -> tuple[Run, Any]:
    """A new run."""
    chosen = HydraConfig.get().runtime.choices.get("sweep", "default")
    if chosen != "default" and not in_sweep():
        raise ValueError(f"sweep={chosen} makes many runs; say -m too")
    _name(config)
    check_pairing(config)  # at once, before torch is imported
    _announce(config)
    if "torch" not in sys.modules:
        say("loading PyTorch")
    from quartet.train import create

    made: list[Any] = []

    def make() -> Path:
        made[:] = create(config)
        return made[0].directory

    several = config.trainer.num_nodes > 1 and environment_rank() is None
    directory = _first_of_several(config, make) if several else share_directory(make)
    if made:
        return made[0], made[1]
    run = Run(directory)
    run.adopt(config)
    return run, None


def _first_of_several(config: DictConfig, make: Callable[[], Path]) -> Path:
    """On several machines the first to make the run directory reads the data; the others find them there."""
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
    for _ in range(2 * MEETING):
        if (directory / "preprocessing.json").exists():
            return directory
        if not directory.exists():
            raise ValueError("the machine that was to read the data has given up; what it printed says why")
        time.sleep(0.5)
    raise ValueError(f"no machine has read the data into {directory} within {MEETING} s; remove it and start again")


def _resume(config: DictConfig) -> tuple[Run, Any]:
    """The run to go on with; its own config is what counts, so nothing else can be asked for but where its data are now."""
    said = ("resume=", "workers.rendezvous=", "data.path=")
    others = [word for word in HydraConfig.get().overrides.task if not word.lstrip("+").startswith(said)]
    if others:
        raise ValueError(f"resume={config.resume} goes on with a run as it was; leave out {' '.join(others)}")
    run = Run.reopen(config.resume, root=config.run.root)
    from quartet.build import opened

    settings = opened(run)
    n_nodes, place = settings.trainer.num_nodes, settings.workers.rendezvous
    if n_nodes > 1 and place != config.workers.rendezvous and not environment_rank():
        # processes that meet there trust each other: what a file says is not enough
        again = f"workers.rendezvous={place}"
        raise ValueError(f"{run} trains on {n_nodes} machines; say again where they meet, such as {again}")
    begun = "going on from its last checkpoint" if run.last_checkpoint else "it had no checkpoint yet and starts anew"
    say(f"{run.config.run.name}, seed {run.config.seed}, {run}: {begun}")
    if any(word.lstrip("+").startswith("data.path=") for word in HydraConfig.get().overrides.task):
        return run, _moved(run, str(config.data.path))
    return run, None


def _moved(run: Run, path: str) -> Any:
    """The data module that reads the run's data where they are now, which the run knows from then on."""
    from quartet.build import opened, restore_data

    with run.exclusively():
        config = opened(run, data_path=path)
        data = restore_data(run, config)
        with written(run.directory / "config.yaml") as file:
            changed = run.config
            changed.data.path = config.data.path
            file.write(OmegaConf.to_yaml(changed).encode())
    return data


def _name(config: DictConfig) -> None:
    """Fill in the run's name, which Hydra's choices make."""
    hydra = HydraConfig.get()
    with open_dict(config):
        if config.run.name is None:
            config.run.name = "{model}-{data}".format(**hydra.runtime.choices)
        if hydra.runtime.choices.get("trainer") == DEBUG and config.run.dir is None:
            config.run.name = f"{DEBUG}/{config.run.name}"
        config.pop("sweep", None)


def _announce(config: DictConfig) -> None:
    say(f"{config.run.name}, seed {config.seed}")


def _report(run: Run, result: dict[str, Any]) -> None:
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
    generates = "test/bits_per_byte" in metrics
    if generates:
        _show_sample(run)
    where, trusting = argument("run", run), _trusting(run)
    print(f"\nrun: {printable(str(run))}\nnext:")
    print(f"  {trusting}{printable(command('evaluate', where, 'split=test'))}")
    if generates:
        word = "def " if _prompt(run) else "The "
        print(f"  {trusting}{printable(command('generate', where, argument('prompt', word)))}")
    if any(run.directory.glob("events.*")):
        print(f"  {printable(tensorboard(run.directory))}", flush=True)


def _prompt(run: Run) -> str:
    """How a sample of these data begins; "" begins a document."""
    return run.config.prompt or ""


def _show_sample(run: Run) -> None:
    from quartet.generate import generate

    print("\na sample:\n")
    prompt = _prompt(run)
    pieces = generate(run, prompt=prompt, max_tokens=SAMPLE_TOKENS, temperature=0.7, top_k=50, top_p=None, seed=0)
    text = prompt + "".join(pieces)
    print("\n".join(f"  | {printable(line, keep=TAB)}" for line in text.splitlines()))
