"""Combine finished runs: python scripts/ensemble.py runs=latest method=greedy"""

import signal

if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # Ctrl-C while Python imports: no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from omegaconf import DictConfig

from quartet.cli import command


@command("ensemble")
def main(config: DictConfig) -> None:
    from quartet.commands.ensemble import ensemble

    ensemble(config)


if __name__ == "__main__":
    main()
