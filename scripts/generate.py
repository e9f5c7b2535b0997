"""Let a language model write: python scripts/generate.py run=latest prompt="def " """

import signal

if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # Ctrl-C while Python imports: no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from omegaconf import DictConfig

from quartet.cli import command


@command("generate")
def main(config: DictConfig) -> None:
    from quartet.commands import generate

    generate.main(config)


if __name__ == "__main__":
    main()
