"""Predict new data: python scripts/predict.py run=latest input=new.csv output=predictions.csv"""

import signal

if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # Ctrl-C while Python imports: no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from omegaconf import DictConfig

from quartet.cli import command


@command("predict")
def main(config: DictConfig) -> None:
    from quartet.commands.predict import predict

    predict(config)


if __name__ == "__main__":
    main()
