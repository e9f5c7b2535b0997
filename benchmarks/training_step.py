"""A step of training with all that is on by default, beside the barest loop that trains a network of the same sizes.

    python benchmarks/training_step.py mlp             10 numbers, 64 hidden units; also plain Lightning and scikit-learn
    python benchmarks/training_step.py rnn             two layers of LSTM over a text
    python benchmarks/training_step.py transformer     4 layers of width 128, nanoGPT's setting for a processor
    python benchmarks/training_step.py transformer --nanogpt PATH      beside nanoGPT, of which PATH is a clone
    python benchmarks/training_step.py image           32×32 images from files; the usual loader is ImageFolder's

Each takes a minute or three. Data are made up. The bare loops clip the gradient and use fused AdamW, as Quartet does; they
have no schedule, log nothing, keep nothing, and cannot be resumed.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pairs import Kinds, compare, loop_step, machine, network_of, training_step
from torch import Tensor, nn


def update(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()


def adamw(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), lr=2e-3, fused=True)


def mlp(place: Path, given: argparse.Namespace) -> tuple[Kinds, str]:
    n, batch, steps = 20_000, 64, given.steps or 2000
    random = np.random.default_rng(0)
    x = random.normal(size=(n, 10)).astype(np.float32)
    y = (x.sum(1) > 0).astype(np.int64)
    frame = pd.DataFrame(x, columns=[f"x{i}" for i in range(10)]).assign(y=np.where(y, "yes", "no"))
    frame.to_csv(place / "table.csv", index=False)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)

    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 2))

    def bare() -> float:
        net, order = network(), iter(())
        optimizer = adamw(net)

        def step() -> None:
            nonlocal order
            ids = next(order, None)
            if ids is None or len(ids) < batch:
                order = iter(torch.randperm(n).split(batch))
                ids = next(order)
            update(net, optimizer, F.cross_entropy(net(inputs[ids]), targets[ids]))

        return loop_step(step, steps=steps)

    def lightning() -> float:
        import pytorch_lightning as pl
        from pairs import WARM_UP, Clock
        from torch.utils.data import DataLoader, TensorDataset

        class Module(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.network = network()

            def training_step(self, batch: Any, index: int) -> Tensor:
                loss = F.cross_entropy(self.network(batch[0]), batch[1])
                self.log("train/loss", loss)
                return loss

            def configure_optimizers(self) -> Any:
                return adamw(self)

        clock = Clock()
        off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = pl.Trainer(max_steps=steps, accelerator="cpu", gradient_clip_val=1.0, callbacks=[clock], **off)
        trainer.fit(Module(), DataLoader(TensorDataset(inputs, targets), batch_size=batch, shuffle=True))
        return (clock.last - clock.first) / (steps - WARM_UP) * 1000

    def scikit_learn() -> float:
        from sklearn.neural_network import MLPClassifier

        rows = min(n, steps * batch)
        model: Any = MLPClassifier((64,), batch_size=batch, max_iter=1, learning_rate_init=2e-3)  # type: ignore[arg-type]
        started = time.perf_counter()
        model.fit(x[:rows], y[:rows])
        return (time.perf_counter() - started) / -(-rows // batch) * 1000

    words = ["model=mlp", "data=csv", f"data.path={place / 'table.csv'}", "data.target=y", f"data.batch_size={batch}"]
    words += ["model.hidden=[64]", "model.normalization=none", "model.dropout=0"]
    return {
        "bare loop": bare,
        "Quartet": lambda: training_step(*words, steps=steps),
        "Lightning, DataLoader": lightning,
        "scikit-learn, Adam": scikit_learn,
    }, "bare loop"


def text(place: Path) -> tuple[Path, Tensor]:
    """A text of words that are drawn, and its characters as numbers."""
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abcdefghijklmnopqrstuvwxyz"), 5)) for _ in range(500)]
    written = " ".join(random.choice(words, 150_000))
    (place / "text.txt").write_text(written, encoding="utf-8")
    numbers = {c: i for i, c in enumerate(sorted(set(written)))}
    return place / "text.txt", torch.tensor([numbers[c] for c in written])


def rnn(place: Path, given: argparse.Namespace) -> tuple[Kinds, str]:
    path, stream = text(place)
    batch, length, width, embedding, steps = 16, 128, 256, 192, given.steps or 60
    rows = stream[: len(stream) // batch * batch].view(batch, -1)

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(32, embedding)
            self.lstm = nn.LSTM(embedding, width, 2, batch_first=True)
            self.project, self.head = nn.Linear(width, embedding), nn.Linear(embedding, 32)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
            x, state = self.lstm(self.embedding(tokens), state)
            return self.head(self.project(x)), state

    def bare() -> float:
        torch.manual_seed(0)
        network, state, at = Bare(), None, 0
        optimizer = adamw(network)

        def step() -> None:
            nonlocal state, at
            at = at + length if at + 2 * length < rows.shape[1] else 0
            logits, state = network(rows[:, at : at + length], state)
            state = tuple(part.detach() for part in state)
            update(
                network, optimizer, F.cross_entropy(logits.flatten(0, 1), rows[:, at + 1 : at + length + 1].flatten())
            )

        return loop_step(step, steps=steps)

    words = ["model=rnn", "optimizer=adamw", "data=text", f"data.path={path}", "data.tokenizer=char"]
    words += [
        f"data.batch_size={batch}",
        f"data.context_length={length}",
        f"model.d_hidden={width}",
        "model.n_layers=2",
    ]
    words += [f"model.d_embedding={embedding}", "model.dropout=0", "callbacks.samples=null"]
    return {"bare loop": bare, "Quartet": lambda: training_step(*words, steps=steps)}, "bare loop"


def transformer(place: Path, given: argparse.Namespace) -> tuple[Kinds, str]:
    path, stream = text(place)
    batch, length, steps = 12, 64, given.steps or 60
    words = ["model=transformer_gpt2", "optimizer=adamw", "data=text", f"data.path={path}", "data.tokenizer=char"]
    words += [f"data.batch_size={batch}", f"data.context_length={length}", "model.n_layers=4", "model.n_heads=4"]
    words += ["model.d_model=128", "model.d_ff=512", "model.dropout=0", "model.bias=false", "callbacks.samples=null"]

    def windows() -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(stream) - length, (batch,))
        rows = torch.stack([stream[i : i + length + 1] for i in starts.tolist()])
        return rows[:, :-1], rows[:, 1:]

    def loop(network: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> float:
        optimizer = adamw(network)
        return loop_step(lambda: update(network, optimizer, loss(*windows())), steps=steps)

    def same_network() -> float:
        network = network_of([word for word in words if "data." not in word], vocab_size=32, context_length=length)
        return loop(network, lambda x, y: F.cross_entropy(network(x).flatten(0, 1), y.flatten()))

    kinds = {"bare loop": same_network, "Quartet": lambda: training_step(*words, steps=steps)}
    if given.nanogpt:
        sys.path.insert(0, given.nanogpt)
        from model import GPT, GPTConfig  # type: ignore[import-not-found]

        def nanogpt() -> float:
            torch.manual_seed(0)
            sizes = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": length}
            network = GPT(GPTConfig(vocab_size=32, dropout=0.0, bias=False, **sizes))
            return loop(network, lambda x, y: network(x, y)[1])

        kinds["nanoGPT's network in the bare loop"] = nanogpt
    return kinds, "bare loop"


def image(place: Path, given: argparse.Namespace) -> tuple[Kinds, str]:
    from PIL import Image

    batch, steps, random = 128, given.steps or 30, np.random.default_rng(0)
    for i in range(6000):
        folder = place / "images" / f"class{i % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.kron(random.integers(0, 256, (8, 8, 3)), np.ones((4, 4, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=90)
    words = ["model=image_small", "data=image_folder", f"data.path={place / 'images'}", f"data.batch_size={batch}"]
    words += ["data.augment.crop=4", "data.augment.flip=true", "data.augment.fill=zero", "callbacks.figures=null"]

    def usual() -> float:
        from torch.utils.data import DataLoader
        from torchvision import datasets, transforms

        change = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        files = datasets.ImageFolder(str(place / "images"), transforms.Compose(change))
        facts = {"in_channels": 3, "image_size": 32, "n_classes": 10}
        network = network_of(["model=image_small", "model.channels_last=false"], **facts)
        optimizer = adamw(network)

        def batches() -> Iterator[Any]:
            while True:
                yield from DataLoader(
                    files, batch, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True
                )

        coming = batches()

        def step() -> None:
            x, y = next(coming)
            update(network, optimizer, F.cross_entropy(network(image=x), y))

        return loop_step(step, steps=steps)

    return {"usual loop": usual, "Quartet": lambda: training_step(*words, steps=steps)}, "usual loop"


if __name__ == "__main__":
    families = {"mlp": mlp, "rnn": rnn, "transformer": transformer, "image": image}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=families)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of each kind in each round")
    parser.add_argument("--threads", type=int, help="of torch; without, as many as it takes by itself")
    parser.add_argument("--nanogpt", help="a clone of github.com/karpathy/nanoGPT")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    if given.threads:
        torch.set_num_threads(given.threads)
    print(machine())
    with tempfile.TemporaryDirectory() as place:
        kinds, base = families[given.family](Path(place), given)
        compare(kinds, rounds=given.rounds, base=base, unit="ms a step")
