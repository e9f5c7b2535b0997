"""Small runs of each family, trained once; their data are gone and they have been moved before a test sees them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import numpy as np
import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf, open_dict
from PIL import Image

from quartet.commands.train import create_and_train
from quartet.run import Run

CONF = Path(__file__).parents[2] / "conf"
SHORT = ("trainer.max_epochs=2", "trainer.accelerator=cpu", "data.batch_size=16")


class Trained(NamedTuple):
    """A run without its data, the raw file (or folder) of its test part, and the test metrics that training wrote."""

    directory: Path
    test_data: str
    metrics: dict[str, float]


def settings_of(command: str, **values: Any) -> Any:
    """The settings of a command as its file in conf/ has them, with some others."""
    config: Any = OmegaConf.load(CONF / f"{command}.yaml")
    return OmegaConf.merge(
        config,
        {key: value for key, value in values.items() if key != "path"},
        *([{"data": {"path": values["path"]}}] if "path" in values else []),
    )


def train(*overrides: str) -> tuple[Run, dict[str, Any]]:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = hydra.compose("train", overrides=list(overrides), return_hydra_config=True)
    with open_dict(config):
        del config["hydra"]
        config.run.name = "small"
    return create_and_train(config)


def table(n: int = 240, seed: int = 0) -> pd.DataFrame:
    """Numbers with gaps, a category and a date; `y` is a class, `z` a quantity that they determine in part."""
    random = np.random.default_rng(seed)
    x1, x2 = random.normal(size=(2, n)).round(3)
    city = random.choice(["Bonn", "Rome", "Paris"], n)
    z = 1000 + 50 * x1 - 20 * x2 + 30 * (city == "Rome") + random.normal(size=n)
    frame = pd.DataFrame({"x1": x1, "x2": x2, "city": city, "z": z.round(2), "y": np.where(z > 1000, "high", "low")})
    frame.loc[random.choice(n, 20, replace=False), "x1"] = np.nan
    frame["part"] = random.permutation(["train"] * (n - n // 4) + ["val"] * (n // 8) + ["test"] * (n // 4 - n // 8))
    return frame


def texts(n: int = 160, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    words = {"good": ["fine", "great", "lovely", "film"], "bad": ["poor", "dull", "awful", "film"]}
    labels = random.choice(["good", "bad"], n)
    rows = [
        " ".join(random.choice(words[label], random.integers(3, 30))) + f" number {i}" for i, label in enumerate(labels)
    ]
    part = ["train"] * (n - 60) + ["val"] * 30 + ["test"] * 30
    return pd.DataFrame({"text": rows, "label": labels, "part": part, "year": random.choice([1999, 2020], n)})


def pictures(folder: Path, n: int = 20) -> None:
    """Dark images are of night, bright ones of day."""
    random = np.random.default_rng(0)
    for part, many in (("train", n), ("val", n // 2), ("test", n // 2)):
        for label, level in (("night", 60), ("day", 190)):
            (folder / part / label).mkdir(parents=True)
            for i in range(many):
                pixels = (level + random.normal(0, 25, (10, 12, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / label / f"{i}.png")


def documents(folder: Path) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(12):
        words = random.choice(["to", "be", "or", "not", "that", "is", "the", "question"], 400)
        (folder / f"d{i:02}.txt").write_text(f"document {i}\n" + " ".join(words), encoding="utf-8")


def move(run: Run, place: Path, *data: Path) -> Path:
    for path in data:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.move(run.directory, place)
    return place


@pytest.fixture(scope="session")
def small_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """small_runs(family): trained when first asked for."""
    made: dict[str, Trained] = {}
    home = tmp_path_factory.mktemp("small_runs")

    def make(family: str) -> Trained:
        here = home / family
        here.mkdir()
        test: Path
        directory = [f"run.dir={here / 'run'}"]
        if family in ("table", "regression"):
            frame, target, path, test = table(), "y" if family == "table" else "z", here / "t.csv", here / "test.csv"
            frame = frame.drop(columns="z" if family == "table" else "y")
            frame.to_csv(path, index=False)
            frame[frame.part == "test"].to_csv(test, index=False)
            task = [] if family == "table" else ["task=regression"]
            own = [
                "model=mlp",
                "data=csv",
                *task,
                f"data.path={path}",
                f"data.target={target}",
                "data.split_column=part",
            ]
            run, result = train(*own, "model.hidden=[16]", *SHORT, *directory)
            data = [path]
        elif family == "images":
            pictures(here / "images")
            shutil.copytree(here / "images" / "test", here / "test")
            own = ["model=image_small", "data=image_folder", f"data.path={here / 'images'}", "model.widths=[4,8]"]
            run, result = train(*own, *SHORT, *directory)
            data, test = [here / "images"], here / "test"
        elif family in ("rnn_classifier", "transformer_classifier"):
            frame, path, test = texts(), here / "t.csv", here / "test.csv"
            frame.to_csv(path, index=False)
            frame[frame.part == "test"].to_csv(test, index=False)
            size = {
                "rnn_classifier": ["model.d_hidden=16", "model.n_layers=1"],
                "transformer_classifier": ["model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.d_ff=32"],
            }[family]
            own = [f"model={family}", "data=labelled_text", f"data.path={path}", "data.split_column=part", *size]
            run, result = train(*own, "data.vocab_size=300", *SHORT, *directory)
            data = [path]
        else:
            documents(here / "docs")
            size = {
                "rnn": ["model.d_hidden=16", "model.n_layers=1"],
                "transformer": ["model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.d_ff=32"],
            }[family]
            own = [f"model={family}", "data=text", f"data.path={here / 'docs'}", "data.split=[0.6,0.2,0.2]", *size]
            short = [
                "trainer.max_steps=10",
                "trainer.val_check_interval=5",
                "data.context_length=16",
                "data.vocab_size=280",
            ]
            run, result = train(*own, *short, "trainer.accelerator=cpu", *directory)
            names = json.loads((run.directory / "data.json").read_text())
            assert names["parts"]["test"]["documents"]
            from quartet import build

            module = build.restore_data(run, build.opened(run))
            (here / "test").mkdir()
            for name in module.ids["test"]:
                shutil.copy(here / "docs" / name, here / "test" / name)
            data, test = [here / "docs"], here / "test"
        metrics = {name[4:]: value for name, value in result["metrics"].items() if name.startswith("test")}
        return Trained(move(run, here / "moved", *data), str(test), metrics)

    def small_run(family: str) -> Trained:
        if family not in made:
            made[family] = make(family)
        return made[family]

    return small_run
