"""Compare the runs of a sweep: python scripts/report.py sweep=latest"""

import re
import signal
import sys

if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # Ctrl-C while Python imports: no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from omegaconf import DictConfig

from quartet.cli import command


@command("report")
def work(config: DictConfig) -> None:
    from quartet.report import report
    from quartet.say import printable

    print(printable(report(config.sweep_directory, config.runs, config.output, config.test_winner).summary, keep="\n"))


def main() -> None:
    # conf/sweep/ holds the choices that train.py has, so Hydra takes sweep=… for one of them
    sys.argv[1:] = [re.sub("^sweep=", "sweep_directory=", word) for word in sys.argv[1:]]
    work()


if __name__ == "__main__":
    main()
