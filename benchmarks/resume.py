"""Runs killed by SIGKILL at random moments and resumed each time: do they end with the weights of an undisturbed run?

    python benchmarks/resume.py                                        four families, one and two workers, 20 kills each
    python benchmarks/resume.py --family mlp --workers 1 --kills 3     one of them, seconds

Each family is a small network on its real data with dropout (pictures: with mixup), 60 steps in several epochs, a
validation every 7 steps and a checkpoint every 3. The moments are drawn evenly over the time of an undisturbed run, which
is mostly steps, validations and checkpoints being written. Of two workers one is killed, and its peer fails or is killed
as by torchelastic. A run that reaches its end is compared, and the next one started, until all kills are done. Processes
are forked from one that has imported everything; the start of a fresh Python has its own tests.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import socket
import sys
import sysconfig
import tempfile
import time

import torch

from quartet.commands.train import create
from quartet.config_errors import compose
from quartet.engine.fit import train
from quartet.run import Run
from quartet.system.quiet import quiet_libraries

TEXT = (
    f"data=text data.path={sysconfig.get_path('stdlib')}/email/*.py data.vocab_size=512"  # some 300 kB, read in no time
)
FAMILIES = {
    "transformer": "model=transformer model.d_model=32 model.n_layers=2 model.n_heads=2 model.d_ff=64 model.dropout=0.1 "
    "data.context_length=64 " + TEXT,
    "rnn": "model=rnn model.d_hidden=32 model.n_layers=1 model.dropout=0.1 data.context_length=32 " + TEXT,
    "image": "model=image_small model.widths=[8,16] data.augment.crop=1 data.augment.mixup=0.4",
    "mlp": "model=mlp model.hidden=[64] trainer.accumulate_grad_batches=4 callbacks=ema scheduler=one_cycle",
}
COMMON = "run.name=resume data.batch_size=8 trainer.accelerator=cpu trainer.max_steps=60 trainer.max_epochs=-1 "
COMMON += (
    "trainer.val_check_interval=7 callbacks.checkpoint.every_n_steps=3 callbacks.figures=null callbacks.samples=null "
)
COMMON += "callbacks.data_report=null callbacks.progress=null +trainer.limit_train_batches=50"


def start(run: Run, world: int) -> list[int]:
    """Fork the workers of a run; their process ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [_fork(run, rank, world, port) for rank in range(world)]


def _fork(run: Run, rank: int, world: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    if world > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0", LOCAL_WORLD_SIZE=str(world))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(world))
        os.environ.update(TORCHELASTIC_RUN_ID="resume")
    code = 1
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        train(run)
        code = 0
    finally:
        os._exit(code)


def wait(workers: list[int], until: float = float("inf")) -> bool:
    """Whether all workers ended well; False where they still ran at `until` or one of them failed."""
    left = set(workers)
    while left and time.monotonic() < until:
        for worker in list(left):
            done, status = os.waitpid(worker, os.WNOHANG)
            if done and status:
                return False
            left -= {done} if done else set()
        time.sleep(0.002)
    return not left


def kill(workers: list[int]) -> None:
    """One of them, then what is left."""
    for worker in random.sample(workers, len(workers)):
        try:
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def new_run(family: str, world: int) -> Run:
    strategy = f"trainer=ddp trainer.devices={world} " if world > 1 else ""
    with open(os.devnull, "w") as nowhere:
        shown, sys.stdout = sys.stdout, nowhere
        try:
            return create(compose("train", (strategy + FAMILIES[family] + " " + COMMON).split()))[0]
        finally:
            sys.stdout = shown


def weights(run: Run) -> dict[str, torch.Tensor]:
    states = [
        torch.load(run.checkpoints / name, weights_only=True)["state_dict"] for name in ("last.ckpt", "best.ckpt")
    ]
    return {f"{i}/{name}": value for i, state in enumerate(states) for name, value in state.items()}


def survive(family: str, world: int, kills: int) -> bool:
    undisturbed = new_run(family, world)
    begun = time.monotonic()
    if not wait(start(undisturbed, world)):
        raise SystemExit(f"{family} with {world} workers does not train; see {undisturbed.directory}")
    seconds, expected = time.monotonic() - begun, weights(undisturbed)
    done, runs, resumed_at = 0, 0, []
    while done < kills:
        run = new_run(family, world)
        while run.status != "completed":
            workers = start(run, world)
            until = time.monotonic() + random.uniform(0, seconds) if done < kills else float("inf")
            if wait(workers, until):
                continue
            kill(workers)
            done += 1
            last = run.last_checkpoint
            resumed_at.append(torch.load(last, weights_only=True)["global_step"] if last else 0)
        runs += 1
        found = weights(run)
        if expected.keys() != found.keys() or not all(torch.equal(expected[k], found[k]) for k in expected):
            print(f"{family:12s} {world} workers: DIFFERENT after {done} kills, see {run.directory}", flush=True)
            return False
        shutil.rmtree(run.directory)
    places = len(set(resumed_at))
    print(
        f"{family:12s} {world} worker(s): identical; {done} kills in {runs} runs, resumed from {places} different steps "
        f"(an undisturbed run: {seconds:.1f} s)",
        flush=True,
    )
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, nargs="*", default=list(FAMILIES))
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments, as far as the clock is the same")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads do not survive a fork
    quiet_libraries()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["QUARTET_OUTPUTS"] = folder
        results = [survive(f, w, arguments.kills) for w in arguments.workers for f in arguments.family]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
