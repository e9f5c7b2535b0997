"""Let a language model write: python scripts/generate.py run=latest prompt="def " """

from omegaconf import DictConfig

from quartet.cli import command


@command("generate")
def main(config: DictConfig) -> None:
    from quartet.generate import stream

    stream(config)


if __name__ == "__main__":
    main()
