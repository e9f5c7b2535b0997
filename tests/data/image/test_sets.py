"""CIFAR-10, MNIST and Fashion-MNIST from tiny files in the official formats."""

import pickle

import pytest
import torch
import torchvision
from samples import sample_cifar10, sample_mnist

from quartet.data.image.augment import Augment
from quartet.data.image.sets import SETS, TorchvisionData, TorchvisionSet

OFF = {"fill": "zero", "flip": False, "randaugment": 0, "colour": 0.0, "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}
COMMON = {"batch_size": 8, "split": [0.9, 0.1, 0.0], "split_seed": 0, "folds": None, "fold": None, "seed": 0}


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Forty images in each of the six files; their MD5 sums are not the official ones."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: True)
    return sample_cifar10(tmp_path)


def ready(name, path):
    data = TorchvisionData(name=name, path=str(path), download=False, augment=Augment(crop=0, **OFF), **COMMON)
    data.setup()
    return data


def test_cifar_10(cifar):
    data = ready("cifar10", cifar)
    assert data.spec.sizes == {"in_channels": 3, "image_size": 32, "n_classes": 10}
    assert data.spec.classes == (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    assert data.ids["test"] == list(range(200, 240)) and len(data.ids["val"]) == 20 and len(data.ids["train"]) == 180
    raw = pickle.loads((cifar / "cifar-10-batches-py/test_batch").read_bytes())["data"][3].reshape(3, 32, 32)
    assert torch.equal(data.datasets["test"].gather(torch.tensor([3]))["inputs"]["image"][0], torch.from_numpy(raw))
    assert data.labels("test", [3, 11]) == [3, 1]


@pytest.mark.parametrize(
    ("name", "folder", "first"), [("mnist", "MNIST", "0"), ("fashion_mnist", "FashionMNIST", "T-shirt/top")]
)
def test_mnist_and_its_like(tmp_path, name, folder, first):
    data = ready(name, sample_mnist(tmp_path, folder))
    assert data.spec.sizes == {"in_channels": 1, "image_size": 28, "n_classes": 10} and data.spec.classes[0] == first
    assert data.raw_images("test", range(60))[:, 0, 0, 0].tolist() == list(range(100, 160))
    values = [*data.raw_images("train", range(54))[:, 0, 0, 0], *data.raw_images("val", range(6))[:, 0, 0, 0]]
    assert sorted(values) == list(range(60))  # val is taken of the official training part


@pytest.mark.parametrize("name", SETS)
def test_a_set_that_is_not_there_says_what_to_type(tmp_path, name):
    with pytest.raises(FileNotFoundError) as error:
        ready(name, tmp_path)
    message = str(error.value)
    assert f"is not in data.path={tmp_path}" in message and "\n" not in message
    assert f"data.download=true to fetch {SETS[name].megabytes} MB" in message and SETS[name].folder in message


def test_without_a_path_the_cache_is_meant(tmp_path, monkeypatch):
    monkeypatch.setenv("QUARTET_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match=rf"is not in the cache, {tmp_path / 'cache'}"):
        TorchvisionSet("mnist", None, False).load()
    sample_mnist(tmp_path / "cache", "MNIST")
    assert len(TorchvisionSet("mnist", None, False).load().labels) == 120


def test_a_damaged_set_is_refused(cifar, monkeypatch):
    monkeypatch.undo()  # the MD5 sums are checked again
    with pytest.raises(FileNotFoundError, match=r"or is damaged: .*cifar-10-batches-py"):
        ready("cifar10", cifar)


def test_a_download_happens_only_when_asked_and_only_if_needed(tmp_path, monkeypatch, capsys):
    fetched = []

    def download(self):
        fetched.append(self.root)
        sample_mnist(tmp_path, "MNIST")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    with pytest.raises(FileNotFoundError):
        TorchvisionSet("mnist", str(tmp_path), False).load()
    assert not fetched
    for _ in range(2):
        assert len(TorchvisionSet("mnist", str(tmp_path), True).load().labels) == 120
    assert fetched == [str(tmp_path)] and f"fetching MNIST into {tmp_path}" in capsys.readouterr().out


@pytest.mark.parametrize("error", [RuntimeError("Error downloading\ntried a, got no route"), OSError("disk is full")])
def test_a_failed_download_is_one_line(tmp_path, monkeypatch, error):
    def download(self):
        raise error

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    with pytest.raises(
        ConnectionError, match=rf"MNIST cannot be fetched into {tmp_path}: (Error|disk).*data.path="
    ) as raised:
        TorchvisionSet("mnist", str(tmp_path), True).load()
    assert "\n" not in str(raised.value)
