"""What simple models reach on the same data, split and metrics: python scripts/baseline.py data=breast_cancer"""

import signal

if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # Ctrl-C while Python imports: no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from omegaconf import DictConfig

from quartet.cli import command


@command("baseline")
def main(config: DictConfig) -> None:
    from quartet.commands.baseline import report

    report(config)


if __name__ == "__main__":
    main()
