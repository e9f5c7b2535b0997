"""Score a run's best checkpoint: python scripts/evaluate.py run=latest split=test"""

import signal

if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # Ctrl-C while Python imports: no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from omegaconf import DictConfig

from quartet.cli import command


@command("evaluate")
def main(config: DictConfig) -> None:
    from quartet.commands.evaluate import report

    report(config)


if __name__ == "__main__":
    main()
