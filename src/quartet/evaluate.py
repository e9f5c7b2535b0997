"""Evaluation: the metrics of a run's best checkpoint on one of its splits, from the run directory alone."""

from __future__ import annotations

from quartet import build
from quartet.run import Run
from quartet.say import printable
from quartet.train import load_network, measure


def report(where: str, split: str | None) -> None:
    """Print the metrics of the run at `where`, of both splits where `split` is None."""
    run = Run.open(where)
    print(f"run: {printable(str(run))}")
    for part in (split,) if split else ("val", "test"):
        for name, value in evaluate(run, part).items():
            print(f"  {printable(name):<28} {value:.6f}")


def evaluate(run: Run, split: str) -> dict[str, float]:
    """Metrics of "val" or "test". Raises ValueError for another split or where the data are no longer those of the run."""
    if split not in ("val", "test"):
        raise ValueError(f"split must be val or test, not {split!r}")
    config = build.opened(run)
    build.seed_everything(config.seed)
    data = build.restore_data(run, config)
    task = build.build_task(config, data.spec)
    load_network(task, run)
    trainer = build.build_trainer(config, run.directory)
    return measure(trainer, task, data, split)
