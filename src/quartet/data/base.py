"""What all data modules share: fitting once, restoring from a run, loaders over data held in memory."""

from __future__ import annotations

import hashlib
import unicodedata
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule

from quartet.data.memory import Dataset, MemoryLoader, Order, generator, sequential, shuffled
from quartet.data.spec import Spec
from quartet.data.splits import SPLITS, Split
from quartet.system.lightning_compat import batches_seen
from quartet.typed import user_path as user_path

if TYPE_CHECKING:
    from quartet.data.examples import Examples


class DataModule(LightningDataModule):
    """A source read, split, encoded and held in memory; subclasses say how (`read`, `fit`, `encode_split`).

    The preprocessing is fitted on the training part only, once: `restore` takes it from a run instead, and then a source
    whose content has changed is refused with a ValueError. `ids` names the samples (or documents) of each part.
    """

    inference_batch_size = 1024  # examples that are computed at once; an image or a text takes megabytes in a network

    def __init__(
        self,
        *,
        batch_size: int,
        split: list[float],
        split_seed: int,
        folds: int | None,
        fold: int | None,
        seed: int,
        bootstrap: bool = False,
    ):
        super().__init__()
        self.bootstrap = bootstrap
        self.batch_size, self.seed = batch_size, seed
        self.split = Split(list(split), split_seed, folds, fold)
        self.ids: dict[str, list] = {}
        self.datasets: dict[str, Dataset] = {}
        self._preprocessing: dict[str, Any] | None = None
        self._overfits = False

    # what a subclass provides
    @abstractmethod
    def read(self) -> tuple[dict[str, Any], str]:
        """The cleaned raw examples of each part (train, val, test) and the SHA-256 of the source; sets `ids`."""

    @abstractmethod
    def fit(self, train: Any) -> dict[str, Any]:
        """Preprocessing fitted on the raw training examples: plain JSON with the key `spec` among others."""

    @abstractmethod
    def use(self, preprocessing: dict[str, Any]) -> None:
        """Take fitted preprocessing: make the tokenizer, scaling, … from plain data."""

    def encode_split(self, examples: Any) -> Dataset:
        """Raw examples with their targets to a data set; those that are one already stay as they are."""
        return examples

    @abstractmethod
    def report(self) -> dict[str, Any]:
        """Sizes, class counts, lengths: a short plain summary of the data."""

    @abstractmethod
    def encode(self, examples: Any) -> dict[str, torch.Tensor]:
        """Raw examples without targets to the inputs of the network, for inference."""

    def examples(self, source: str) -> Iterator[Examples]:
        """New examples that a user names, in chunks; raises ValueError or OSError for input of another kind."""
        raise ValueError(f"{type(self).__name__} reads no new examples; give it a method examples(source)")

    def targets(self, labels: Sequence[str | None]) -> np.ndarray:
        """Labels as they were read to targets (N,): places in the classes, -1 for one that is none of them."""
        place = {name: i for i, name in enumerate(self.spec.classes)}
        return np.array([place.get(label, -1) if label is not None else -1 for label in labels], dtype=np.int64)

    def read_new(self, path: str) -> Any:
        """New examples with their targets, all of them, as `encode_split` reads them; sets the ids of "test"."""
        raise ValueError(f"{type(self).__name__} reads no new data; give it a method read_new(path)")

    def slice_columns(self, part: str, names: list[str]) -> dict[str, np.ndarray]:
        """Raw columns (N,) in the order of the samples of a part; without names, what such data can always be sliced by.

        Raises ValueError for a column that is not there.
        """
        if names:
            raise ValueError(f"slices={names}: these data have no columns to slice by; leave it out")
        return {}

    def describe_samples(self, part: str, places: Sequence[int]) -> list[str]:
        """Samples of a part for people: where they are, or what they say."""
        ids = self.ids.get(part, [])
        return [str(ids[i]) if len(ids) == len(self.datasets[part]) else f"sample {i}" for i in places]

    def use_new(self, path: str) -> None:
        """Make the data at a path the test part, read with the preprocessing of the run."""
        self.datasets = {"test": self.encode_split(self.read_new(path))}

    def reuse(self, preprocessing: dict[str, Any]) -> str | None:
        """Before `setup`: take from another run's preprocessing what its weights depend on. Says what; None: nothing."""
        return None

    # what Lightning and the commands call
    def setup(self, stage: str | None = None) -> None:
        if not self.datasets:
            self.prepare(*self.read_parts())

    def read_parts(self) -> tuple[dict[str, Any], str]:
        """What `read` gives; a file that may not be read is an error of one line."""
        try:
            return self.read()
        except PermissionError as error:
            if error.filename is None:  # explained already
                raise
            raise PermissionError(
                f"no permission to read {error.filename}; allow it (chmod -R u+rX) or take it out of the data"
            ) from None

    def prepare(self, parts: dict[str, Any], fingerprint: str) -> None:
        """Fit the preprocessing, unless it is a run's, and encode every part."""
        if self._preprocessing is None:
            self.restore({**self.fit(parts["train"]), "fingerprint": fingerprint})
        elif self._preprocessing["fingerprint"] != fingerprint:
            raise ValueError("the data have changed since the run was trained; restore the old data or train again")
        _refuse_twins(self.spec.classes or ())
        datasets = {part: self.encode_split(parts[part]) for part in SPLITS}
        n_train = len(datasets["train"])
        if self.batch_size > n_train:
            raise ValueError(
                f"data.batch_size={self.batch_size} is more than the {n_train} training samples; "
                f"use data.batch_size={n_train} or less"
            )
        empty = [part for part, dataset in datasets.items() if len(dataset) == 0]
        if empty:
            raise ValueError(
                f"nothing is left for {' and '.join(empty)}; change data.split={self.split.shares} or bring more data"
            )
        self.datasets = datasets

    def restore(self, preprocessing: dict[str, Any]) -> None:
        self._preprocessing = preprocessing
        self.use(preprocessing)

    def preprocessing(self) -> dict[str, Any]:
        assert self._preprocessing is not None, "call setup() or restore() first"
        return self._preprocessing

    @property
    def spec(self) -> Spec:
        return Spec.from_json(self.preprocessing()["spec"])

    # loaders
    def train_dataloader(self) -> MemoryLoader:
        loader = self._loader("train", self._training_order(), drop_last=True)
        if self.trainer and self.trainer.training:
            loader.position = partial(batches_seen, self.trainer)
        return loader

    def val_dataloader(self) -> MemoryLoader:
        order = self._training_order() if self._overfits else self.eval_order("val")
        return self._from_the_start(self._loader("val", order, drop_last=False))

    def test_dataloader(self) -> MemoryLoader:
        return self._from_the_start(self._loader("test", self.eval_order("test"), drop_last=False))

    def _from_the_start(self, loader: MemoryLoader) -> MemoryLoader:
        """Each pass begins with the first batch, also where `limit_val_batches` ended the one before early."""
        if self.trainer:
            loader.position = lambda: (0, 0)
        return loader

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augmentation and dropout of a training step are the same whatever was computed before it in this process."""
        trainer = self.trainer
        if trainer and trainer.training:
            seed_step(trainer.strategy.root_device, self.seed, *batches_seen(trainer), trainer.global_rank)
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Lightning's, for nested dictionaries of tensors only; most batches are where they belong already."""
        return moved(batch, device)

    def first_inputs(self, n: int) -> dict[str, torch.Tensor]:
        """What the network is given of the first `n` training samples, where the data are now."""
        batch = self.datasets["train"].gather(torch.arange(n))
        return self.on_after_batch_transfer(self.on_before_batch_transfer(batch, 0), 0)["inputs"]

    def overfit(self) -> None:
        """Train on the same batches again and again, and validate on them: a network that learns drives their loss to 0."""
        self._overfits = True
        self.datasets["val"], self.ids["val"] = self.datasets["train"], self.ids["train"]

    def _training_order(self) -> Order:
        order = self.train_order()
        if self.bootstrap:
            # rows drawn with replacement, the same in every epoch (Breiman 1996); another seed draws others
            drawn = self.bootstrap_rows()
            return lambda epoch: drawn[order(0 if self._overfits else epoch)]
        return (lambda epoch: order(0)) if self._overfits else order

    def bootstrap_rows(self) -> torch.Tensor:
        """As many training samples as there are, drawn with replacement by the seed."""
        n = len(self.datasets["train"])
        return torch.randint(n, (n,), generator=generator(self.seed, -1))

    def train_order(self) -> Order:
        return shuffled(len(self.datasets["train"]), self.seed)

    def eval_order(self, part: str) -> Order:
        return sequential(len(self.datasets[part]))

    @property
    def world(self) -> int:
        """Processes that share each global batch."""
        return self.trainer.world_size if self.trainer else 1

    def _loader(self, part: str, order: Order, *, drop_last: bool) -> MemoryLoader:
        trainer = self.trainer
        if len(self.datasets[part]) < self.world:
            raise ValueError(f"{part} has {len(self.datasets[part])} samples for {self.world} workers; bring more data")
        dataset = self.datasets[part].to(trainer.strategy.root_device if trainer else torch.device("cpu"))
        return MemoryLoader(
            dataset,
            batch_size=self.batch_size,
            order=order,
            drop_last=drop_last,
            rank=trainer.global_rank if trainer else 0,
            world=self.world,
            window=getattr(trainer, "accumulate_grad_batches", 1),
        )


def _refuse_twins(classes: Sequence[str]) -> None:
    """ValueError for classes that nobody can tell apart: é may be written as one sign or as two."""
    seen: dict[str, str] = {}
    for name in classes:
        twin = seen.setdefault(unicodedata.normalize("NFC", name), name)
        if twin != name:
            raise ValueError(
                f"the classes {twin!a} and {name!a} look the same, {name}; write them in the same way in the data"
            )


def moved(batch: Any, device: torch.device) -> Any:
    """A tensor, or a dictionary of them at any depth, on a device; anything else stays as it is."""
    if isinstance(batch, dict):
        return {name: moved(value, device) for name, value in batch.items()}
    return batch.to(device, non_blocking=True) if isinstance(batch, torch.Tensor) else batch


def seed_step(device: torch.device, *position: int) -> None:
    """Seed the global generators of torch for one step; not `torch.manual_seed`, which walks the stack for idle GPUs."""
    number = int.from_bytes(hashlib.blake2b(repr(position).encode(), digest_size=7).digest())
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(number)
