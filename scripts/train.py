"""Train a model: python scripts/train.py model=transformer optimizer=adam"""

import signal

if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # Ctrl-C while Python imports: no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from omegaconf import DictConfig

from quartet.cli import command


@command("train")
def main(config: DictConfig) -> float | None:
    from quartet.commands.train import run_command

    return run_command(config)


if __name__ == "__main__":
    main()
