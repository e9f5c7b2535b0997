"""Small data of a user's own, written as files: what data modules that read paths are tried on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch


def sample_table(folder: Path, n: int = 120) -> Path:
    """A CSV of scikit-learn's breast_cancer with a column of every kind: data=csv data.target=diagnosis.

    Identifier, numbers with gaps, a category that only the part `test` has, true and false, a date, free text, a
    constant, a group (`hospital`), official parts (`part`) and a quantity (`radius`) for regression.
    """
    import numpy as np
    import pandas as pd
    from sklearn.datasets import load_breast_cancer

    random = np.random.default_rng(0)
    cancer: Any = load_breast_cancer()
    rows = np.arange(n)
    malignant = cancer.target[:n] == 0
    table = pd.DataFrame(
        {
            "patient_id": random.permutation(n) + 1000,
            "texture": np.where(rows % 11 == 3, np.nan, cancer.data[:n, 1]),
            "concavity": cancer.data[:n, 6],
            "city": np.where(rows % 7 == 5, "?", random.choice(["Bonn", "Köln", "Ulm"], n)),
            "smoker": np.where(malignant ^ (random.random(n) < 0.3), "yes", "no"),
            "seen": pd.Timestamp("2024-01-01") + pd.to_timedelta(random.integers(0, 700, n), unit="D"),
            "remark": [f"seen by doctor {i % 100}, then again" for i in random.permutation(n)],
            "country": "DE",
            "hospital": [f"h{i % 30}" for i in rows],
            "part": np.select([rows % 10 == 8, rows % 10 == 9], ["valid", "TEST"], "train"),
            "radius": cancer.data[:n, 0],
            "diagnosis": np.where(malignant, "malignant", "benign"),
        }
    )
    table.loc[(table["part"] == "TEST") & (rows % 20 == 9), "city"] = "Paris"
    path = folder / "table.csv"
    table.to_csv(path, index=False)
    return path


def sample_image_folder(folder: Path, n: int = 12, size: int = 8) -> Path:
    """PNG images of two classes in one tree to split: data=image_folder. Each has a content of its own."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / "images" / label).mkdir(parents=True)
        for i in range(n):
            pixels = random.integers(256, size=(size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / label / f"{i:02}.png")
    return folder / "images"


def sample_cifar10(folder: Path, n: int = 40) -> Path:
    """`n` images in each of the six files of CIFAR-10's Python version: data=cifar10 data.path=….

    torchvision compares MD5 sums: a test sets `torchvision.datasets.cifar.check_integrity` to one that looks whether the
    file is there.
    """
    import pickle

    import numpy as np

    random, home = np.random.default_rng(0), folder / "cifar-10-batches-py"
    home.mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        batch = {"data": random.integers(256, size=(n, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(n)]}
        (home / name).write_bytes(pickle.dumps(batch))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (home / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    return folder


def sample_mnist(folder: Path, name: str = "MNIST", n: int = 60) -> Path:
    """Files of MNIST or FashionMNIST: data=mnist data.path=….

    `n` training and `n` test images, each of one grey: its number, test counts from 100 on.
    """
    import numpy as np

    home = folder / name / "raw"
    home.mkdir(parents=True)
    for part, first in (("train", 0), ("t10k", 100)):
        images = np.repeat(np.arange(first, first + n, dtype=np.uint8), 28 * 28)
        header = np.array([0x803, n, 28, 28], ">i4").tobytes()  # magic number: bytes, three dimensions
        (home / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = (np.arange(n) % 10).astype(np.uint8)
        (home / f"{part}-labels-idx1-ubyte").write_bytes(np.array([0x801, n], ">i4").tobytes() + labels.tobytes())
    return folder


def sample_text(folder: Path, n: int = 12) -> Path:
    """A folder of small texts, one of them Chinese: data=text data.path=…."""
    home = folder / "texts"
    home.mkdir(parents=True)
    for i in range(n):
        lines = [f"Line {j} of text {i} says {i * j} and no more.\n" for j in range(40)]
        (home / f"{i:02}.txt").write_text("".join(lines), encoding="utf-8")
    (home / "chinese.txt").write_text("風停了，水面像鏡子一樣平靜。\n" * 40, encoding="utf-8")
    return home


def sample_labelled_text(folder: Path, n: int = 60) -> Path:
    """A TSV of two classes without a header: data=labelled_text data.path=…."""
    folder.mkdir(parents=True, exist_ok=True)
    words = (("a fine and moving film", "1"), ("a dull and empty film", "0"))
    path = folder / "reviews.tsv"
    path.write_text("".join("\t".join((f"{words[i % 2][0]} {i}", words[i % 2][1])) + "\n" for i in range(n)))
    return path


def check_that_only_train_is_fitted(data, changed) -> None:
    """`changed` has other samples in val and test than `data`: fingerprints differ, nothing that was fitted does."""
    assert data.ids == changed.ids
    before, after = data.preprocessing(), changed.preprocessing()
    assert before.pop("fingerprint") != after.pop("fingerprint")
    assert before == after


def check_that_texts_are_restored(data, restored, other) -> None:
    """From the preprocessing of `data` `restored` encodes and batches alike; `other`, which reads other data, is refused."""
    preprocessing = json.loads(json.dumps(data.preprocessing()))
    restored.restore(preprocessing)
    assert restored.spec == data.spec  # before any data are read
    assert restored.encode(["a text"])["tokens"].tolist() == data.encode(["a text"])["tokens"].tolist()
    restored.setup()
    for a, b in zip(data.train_dataloader(), restored.train_dataloader(), strict=True):
        assert torch.equal(a["inputs"]["tokens"], b["inputs"]["tokens"]) and torch.equal(a["target"], b["target"])
    other.restore(preprocessing)
    with pytest.raises(ValueError, match="the data have changed since the run"):
        other.setup()
