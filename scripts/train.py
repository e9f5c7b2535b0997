"""Train a model: python scripts/train.py model=transformer optimizer=adam"""

from omegaconf import DictConfig

from quartet.cli import command


@command("train")
def main(config: DictConfig) -> float | None:
    from quartet.launch import launch

    return launch(config)


if __name__ == "__main__":
    main()
